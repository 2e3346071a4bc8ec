//! A next hop for the tests: an SMTP server that does what a test tells it at each step, and keeps
//! what it is given.
//!
//! It is strict: what a client may not do (lines without CRLF, commands ahead of a reply without
//! PIPELINING, what was not offered, bare CR or LF in DATA) is a complaint, by which a test that
//! reads the messages fails. A message is taken when all of its content has come and the script
//! does not refuse it, whatever becomes of its reply.
//!
//! It keeps its port while it is stopped: connections are refused, and nobody else can take it.

use crate::harness::until;
use socket2::{Domain, SockRef, Socket, Type};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What is offered unless a test says otherwise.
pub const EXTENSIONS: &[&str] = &["PIPELINING", "SIZE 0", "8BITMIME", "DSN", "CHUNKING", "ENHANCEDSTATUSCODES"];

/// Where a script is asked: before a reply is sent, and (`Body`) before content is read. `Data` is
/// also a BDAT that is not the last; `End` is when all content has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Connect,
    Ehlo,
    Helo,
    Mail,
    Rcpt,
    Data,
    Body,
    End,
    Rset,
    Quit,
}

/// A step of a session.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub verb: Verb,
    /// The command; empty where there is none.
    pub line: &'a str,
    /// How often this verb came since the script was set, on all connections, this time included.
    pub count: usize,
}

/// What a script has the next hop do.
#[derive(Clone, Debug)]
pub enum Act {
    /// What is asked for.
    Go,
    /// This reply instead: whole lines, the last one without its CRLF. A 421 closes the
    /// connection. At the body it comes before its time, and no other follows.
    Say(&'static str),
    /// No reply, until the client leaves; at the body nothing is read either.
    Hang,
    Reset,
    Close,
    /// Noise in place of the reply.
    Garbage,
    /// What is asked for, once the test has set this.
    Hold(Arc<AtomicBool>),
}

/// A script: `act` the first `times` times that `verb` comes.
pub fn first(times: usize, verb: Verb, act: Act) -> impl Fn(Step<'_>) -> Act + Send + Sync {
    move |step| if step.verb == verb && step.count <= times { act.clone() } else { Act::Go }
}

/// A message that was taken. Commands are whole lines.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Number of the connection, from 1.
    pub connection: usize,
    pub hello: String,
    pub mail: String,
    /// The accepted ones.
    pub rcpt: Vec<String>,
    pub by_chunks: bool,
    pub content: Vec<u8>,
    /// Its 250 has been written.
    pub answered: bool,
}

impl Message {
    /// The recipients' paths without brackets, in order.
    pub fn recipients(&self) -> Vec<&str> {
        self.rcpt.iter().filter_map(|line| Some(line.split_once('<')?.1.rsplit_once('>')?.0)).collect()
    }
}

type Script = Arc<dyn Fn(Step<'_>) -> Act + Send + Sync>;

#[derive(Default)]
struct State {
    script: Option<Script>,
    counts: HashMap<Verb, usize>,
    messages: Vec<Message>,
    complaints: Vec<String>,
    connections: usize,
    /// By number.
    open: HashMap<usize, TcpStream>,
}

struct Shared {
    extensions: Vec<String>,
    stopped: AtomicBool,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no session panics with it")
    }

    fn ask(&self, verb: Verb, line: &str) -> Act {
        let mut state = self.state();
        let count = state.counts.entry(verb).or_default();
        *count += 1;
        let (count, script) = (*count, state.script.clone());
        // The script may look at this next hop.
        drop(state);
        script.map_or(Act::Go, |script| script(Step { verb, line, count }))
    }

    fn complain(&self, complaint: String) {
        self.state().complaints.push(complaint);
    }
}

/// A next hop; it is gone when dropped.
pub struct NextHop {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    running: Mutex<Option<(TcpListener, JoinHandle<()>)>>,
    /// Bound, and never listening.
    _port: Socket,
}

impl NextHop {
    /// A next hop that takes everything.
    pub fn start() -> Self {
        Self::offering(EXTENSIONS)
    }

    /// The same with these extensions.
    pub fn offering(extensions: &[&str]) -> Self {
        let port = socket((Ipv4Addr::LOCALHOST, 0).into());
        let address = port.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let extensions = extensions.iter().map(|&extension| extension.to_owned()).collect();
        let shared = Shared { extensions, stopped: AtomicBool::new(true), state: Mutex::default() };
        let next_hop = NextHop { address, shared: Arc::new(shared), running: Mutex::new(None), _port: port };
        next_hop.restart();
        next_hop
    }

    /// The same with a script.
    pub fn scripted(script: impl Fn(Step<'_>) -> Act + Send + Sync + 'static) -> Self {
        let next_hop = Self::start();
        next_hop.script(script);
        next_hop
    }

    /// Sets what it does from now on; all counts begin anew.
    pub fn script(&self, script: impl Fn(Step<'_>) -> Act + Send + Sync + 'static) {
        let mut state = self.shared.state();
        state.script = Some(Arc::new(script));
        state.counts.clear();
    }

    /// Ends all connections, and refuses new ones.
    pub fn stop(&self) {
        let Some((listener, thread)) = self.running.lock().expect("no test panics with it").take() else { return };
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        SockRef::from(&listener).shutdown(Shutdown::Both).expect("a listening socket");
        thread.join().expect("it does not panic");
        self.shared.state().open.drain().for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
    }

    /// Serves again, on the same port.
    pub fn restart(&self) {
        let mut running = self.running.lock().expect("no test panics with it");
        assert!(running.is_none(), "it runs");
        let socket = socket(self.address);
        socket.listen(1024).expect("a port of ours");
        let listener = TcpListener::from(socket);
        self.shared.stopped.store(false, Ordering::Release);
        let (accepting, shared) = (listener.try_clone().expect("a socket"), self.shared.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let mut state = shared.state();
                state.connections += 1;
                let connection = state.connections;
                state.open.insert(connection, stream.try_clone().expect("a socket"));
                let message = Message { connection, ..Message::default() };
                let input = BufReader::new(stream);
                let mut dialogue = Dialogue { shared: shared.clone(), input, message, esmtp: false };
                thread::spawn(move || {
                    // It ends with the connection, in whatever way.
                    let _ = dialogue.serve();
                    dialogue.shared.state().open.remove(&connection);
                });
            }
        });
        *running = Some((listener, thread));
    }

    /// The messages taken so far.
    #[track_caller]
    pub fn messages(&self) -> Vec<Message> {
        let state = self.shared.state();
        assert!(state.complaints.is_empty(), "{:#?}", state.complaints);
        state.messages.clone()
    }

    /// Waits until so many messages have been taken.
    #[track_caller]
    pub fn wait(&self, count: usize) -> Vec<Message> {
        until(&format!("{count} messages at the next hop"), || self.messages().len() >= count);
        self.messages()
    }

    /// How often a verb came since the script was set.
    pub fn count(&self, verb: Verb) -> usize {
        self.shared.state().counts.get(&verb).copied().unwrap_or_default()
    }
}

impl Drop for NextHop {
    fn drop(&mut self) {
        self.stop();
    }
}

fn socket(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    // Two sockets may be bound to a port as long as only one of them listens.
    socket.set_reuse_address(true).expect("a socket");
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket
}

/// One connection. An error is its end, also where all went well.
struct Dialogue {
    shared: Arc<Shared>,
    input: BufReader<TcpStream>,
    /// The transaction.
    message: Message,
    esmtp: bool,
}

impl Dialogue {
    fn serve(&mut self) -> io::Result<()> {
        self.step(Verb::Connect, "", "220 next-hop.test.example ESMTP")?;
        loop {
            let line = self.line()?;
            let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            if verb != "BDAT" && !self.input.buffer().is_empty() {
                self.hold_to_offer("PIPELINING", &line);
            }
            for parameter in line.rsplit('>').next().filter(|_| line.contains('>')).unwrap_or_default().split(' ') {
                match parameter.split('=').next().unwrap_or_default() {
                    "" => {}
                    "SIZE" => self.hold_to_offer("SIZE", &line),
                    "BODY" => self.hold_to_offer("8BITMIME", &line),
                    "RET" | "ENVID" | "NOTIFY" | "ORCPT" => self.hold_to_offer("DSN", &line),
                    other => self.hold_to_offer(other, &line),
                }
            }
            match verb.as_str() {
                "EHLO" | "HELO" => self.hello(&verb, line)?,
                "MAIL" => {
                    if self.step(Verb::Mail, &line, "250 2.1.0 Sender OK")? {
                        self.reset();
                        self.message.mail = line;
                    }
                }
                "RCPT" if self.message.mail.is_empty() => self.say("503 5.5.1 No sender")?,
                "RCPT" => {
                    if self.step(Verb::Rcpt, &line, "250 2.1.5 Recipient OK")? {
                        self.message.rcpt.push(line);
                    }
                }
                "DATA" if self.message.rcpt.is_empty() => self.say("503 5.5.1 No recipients")?,
                "DATA" => {
                    if self.step(Verb::Data, &line, "354 Go ahead")? {
                        self.data()?;
                    }
                }
                "BDAT" => self.chunk(&line)?,
                "RSET" => {
                    self.step(Verb::Rset, &line, "250 2.0.0 Reset")?;
                    self.reset();
                }
                "QUIT" => {
                    self.step(Verb::Quit, &line, "221 2.0.0 Bye")?;
                    return Ok(());
                }
                _ => {
                    self.shared.complain(format!("unknown command: {line}"));
                    self.say("500 5.5.1 Unknown command")?;
                }
            }
        }
    }

    fn hold_to_offer(&self, extension: &str, line: &str) {
        let offered = self.shared.extensions.iter().any(|offer| offer.split(' ').next() == Some(extension));
        if !self.esmtp || !offered {
            self.shared.complain(format!("{extension} was not offered: {line}"));
        }
    }

    fn hello(&mut self, verb: &str, line: String) -> io::Result<()> {
        let mut reply = "250 next-hop.test.example".to_owned();
        if verb == "EHLO" {
            self.shared.extensions.iter().for_each(|extension| reply = format!("{reply}\r\n250 {extension}"));
            reply = reply.replacen("250 ", "250-", self.shared.extensions.len());
        }
        let verb = if verb == "EHLO" { Verb::Ehlo } else { Verb::Helo };
        if self.step(verb, &line, &reply)? {
            self.esmtp = verb == Verb::Ehlo;
            self.message.hello = line;
            self.reset();
        }
        Ok(())
    }

    fn data(&mut self) -> io::Result<()> {
        let is_open = self.step(Verb::Body, "", "")?;
        loop {
            let mut line = Vec::new();
            self.input.read_until(b'\n', &mut line)?;
            let Some(text) = line.strip_suffix(b"\r\n").filter(|text| !text.contains(&b'\r')) else {
                if line.ends_with(b"\n") {
                    self.shared.complain(format!("bare CR or LF in DATA: {:?}", String::from_utf8_lossy(&line)));
                }
                return Err(ErrorKind::InvalidData.into());
            };
            if text == b"." {
                return self.end("", is_open);
            }
            self.message.content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        }
    }

    fn chunk(&mut self, line: &str) -> io::Result<()> {
        self.hold_to_offer("CHUNKING", line);
        let mut words = line.split(' ').skip(1);
        let octets: u64 = words.next().and_then(|word| word.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let is_open = self.message.rcpt.is_empty() || self.message.by_chunks || self.step(Verb::Body, line, "")?;
        self.message.by_chunks = true;
        let taken = Read::by_ref(&mut self.input).take(octets).read_to_end(&mut self.message.content)?;
        if taken as u64 != octets {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match words.next() {
            _ if self.message.rcpt.is_empty() => self.say("503 5.5.1 No recipients"),
            Some(_) => self.end(line, is_open),
            None if is_open => self.step(Verb::Data, line, "250 2.0.0 Chunk received").map(drop),
            None => Ok(()),
        }
    }

    /// All of the content has come. Unless `is_open`, it had its reply before.
    fn end(&mut self, line: &str, is_open: bool) -> io::Result<()> {
        let message = self.message.clone();
        self.reset();
        if !is_open {
            return Ok(());
        }
        let act = self.shared.ask(Verb::End, line);
        let is_noise = matches!(act, Act::Garbage);
        if matches!(act, Act::Say(_)) {
            return self.act(act, Verb::End, "").map(drop);
        }
        let place = {
            let messages = &mut self.shared.state().messages;
            messages.push(message);
            messages.len() - 1
        };
        self.act(act, Verb::End, "250 2.0.0 Message taken")?;
        self.shared.state().messages[place].answered = !is_noise;
        Ok(())
    }

    fn reset(&mut self) {
        self.message.mail.clear();
        self.message.rcpt.clear();
        self.message.content.clear();
        self.message.by_chunks = false;
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.input.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(text) => return Ok(text.to_owned()),
            None if line.is_empty() => {}
            None => self.shared.complain(format!("a command without CRLF: {line:?}")),
        }
        Err(ErrorKind::UnexpectedEof.into())
    }

    /// Asks the script and does it. False: it refuses.
    fn step(&mut self, verb: Verb, line: &str, reply: &str) -> io::Result<bool> {
        let act = self.shared.ask(verb, line);
        self.act(act, verb, reply)
    }

    fn act(&mut self, act: Act, verb: Verb, reply: &str) -> io::Result<bool> {
        match act {
            Act::Go => self.say(reply)?,
            Act::Say(refusal) => {
                self.say(refusal)?;
                return if refusal.starts_with("421") { Err(ErrorKind::NotConnected.into()) } else { Ok(false) };
            }
            Act::Hang => {
                while verb != Verb::Body && self.input.read(&mut [0; 4096])? > 0 {}
                self.wait(|| false)?;
            }
            // Takes effect when the connection is dropped.
            Act::Reset => {
                SockRef::from(self.input.get_ref()).set_linger(Some(Duration::ZERO))?;
                return Err(ErrorKind::ConnectionReset.into());
            }
            Act::Close => {
                self.input.get_ref().shutdown(Shutdown::Write)?;
                while self.input.read(&mut [0; 4096])? > 0 {}
                return Err(ErrorKind::NotConnected.into());
            }
            Act::Garbage => self.input.get_mut().write_all(b"\xff\0\xfe gar\x01bage \x80\r\n")?,
            Act::Hold(open) => {
                self.wait(|| open.load(Ordering::Acquire))?;
                self.say(reply)?;
            }
        }
        Ok(true)
    }

    fn wait(&self, done: impl Fn() -> bool) -> io::Result<()> {
        while !done() {
            if self.shared.stopped.load(Ordering::Acquire) {
                return Err(ErrorKind::NotConnected.into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn say(&mut self, reply: &str) -> io::Result<()> {
        if reply.is_empty() { Ok(()) } else { self.input.get_mut().write_all(format!("{reply}\r\n").as_bytes()) }
    }
}
