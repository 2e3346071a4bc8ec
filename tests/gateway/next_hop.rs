//! A next hop for the tests: an SMTP server that does what a test tells it at each step, and keeps
//! what it is given.
//!
//! It is strict: what a client may not do (lines without CRLF, commands ahead of a reply without
//! PIPELINING, what was not offered, bare CR or LF in DATA) is a complaint, by which a test that
//! reads the messages fails. A message is taken when all of its content has come and the script
//! does not refuse it, whatever becomes of its reply.
//!
//! [`secure`] is another one, for STARTTLS and AUTH, whose tests are beside it.
//!
//! It keeps its port while it is stopped: connections are refused, and nobody else can take it.

mod auth;
mod dialogue;
mod secure;
mod tls;

use crate::harness::until;
use dialogue::Dialogue;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

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
                let shared = shared.clone();
                thread::spawn(move || {
                    let mut dialogue = Dialogue::new(shared.clone(), stream, connection);
                    // It ends with the connection, in whatever way.
                    let _ = dialogue.serve();
                    shared.state().open.remove(&connection);
                });
            }
        });
        *running = Some((listener, thread));
    }

    /// Lets one connection come about that only its client knows of, while this next hop is
    /// stopped: `connect` is called and must lead to one.
    ///
    /// So it happens when a listening socket is closed at the very moment that a handshake ends. Its
    /// kernel then forgets the connection without a reset, and no retransmission will ever tell
    /// the client, which has nothing to send: it waits for the greeting. Here that moment is made
    /// long: everything that follows a SYN is dropped before the kernel sees it.
    pub fn forget_a_connection(&self, connect: impl FnOnce()) {
        /// Where the flags stand in a TCP header, and the one for SYN (RFC 9293 section 3.1).
        const FLAGS: u32 = 13;
        const SYN: u32 = 2;
        let statement = |code: u32, jf: u8, k: u32| SockFilter::new(code as u16, 0, jf, k);
        let socket = socket(self.address);
        let filter = [
            statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, FLAGS),
            statement(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, SYN),
            statement(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0),
        ];
        socket.attach_filter(&filter).expect("a filter");
        socket.listen(1024).expect("a port of ours");
        connect();
        until("a client believes that it is connected", || self.connections() > 0);
    }

    /// Connections to this next hop as their clients see them.
    fn connections(&self) -> usize {
        const ESTABLISHED: &str = "01";
        let IpAddr::V4(ip) = self.address.ip() else { panic!("an IPv4 address") };
        let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), self.address.port());
        let table = fs::read_to_string("/proc/net/tcp").expect("a table of connections");
        let is_one = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&remote) && fields.next() == Some(ESTABLISHED)
        };
        table.lines().filter(is_one).count()
    }

    /// The messages taken so far.
    #[track_caller]
    pub fn messages(&self) -> Vec<Message> {
        // Not asserted with the lock: whoever drops this next hop then takes it.
        let (messages, complaints) = {
            let state = self.shared.state();
            (state.messages.clone(), state.complaints.clone())
        };
        assert!(complaints.is_empty(), "{complaints:#?}");
        messages
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
