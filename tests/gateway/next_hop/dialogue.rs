//! One connection of a next hop.

use super::{Act, Message, Shared, Verb};
use socket2::SockRef;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// One connection. An error is its end, also where all went well.
pub struct Dialogue {
    shared: Arc<Shared>,
    input: BufReader<TcpStream>,
    /// The transaction.
    message: Message,
    esmtp: bool,
}

impl Dialogue {
    /// A session that has not begun.
    pub fn new(shared: Arc<Shared>, stream: TcpStream, connection: usize) -> Self {
        let message = Message { connection, ..Message::default() };
        Dialogue { shared, input: BufReader::new(stream), message, esmtp: false }
    }

    /// Serves until either side ends the connection.
    pub fn serve(&mut self) -> io::Result<()> {
        self.step(Verb::Connect, "", "220 next-hop.test.example ESMTP")?;
        loop {
            let line = self.line()?;
            let name = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
            self.check(&name, &line);
            let (verb, reply) = match name.as_str() {
                "EHLO" => (Verb::Ehlo, self.capabilities()),
                "HELO" => (Verb::Helo, "250 next-hop.test.example".to_owned()),
                "MAIL" => (Verb::Mail, "250 2.1.0 Sender OK".to_owned()),
                "RCPT" if !self.message.mail.is_empty() => (Verb::Rcpt, "250 2.1.5 Recipient OK".to_owned()),
                "DATA" if !self.message.rcpt.is_empty() => (Verb::Data, "354 Go ahead".to_owned()),
                "RSET" => (Verb::Rset, "250 2.0.0 Reset".to_owned()),
                "QUIT" => (Verb::Quit, "221 2.0.0 Bye".to_owned()),
                "BDAT" => {
                    self.chunk(&line)?;
                    continue;
                }
                _ => {
                    self.say("503 5.5.1 Not now")?;
                    continue;
                }
            };
            if !self.step(verb, &line, &reply)? {
                continue;
            }
            match verb {
                Verb::Rcpt => self.message.rcpt.push(line),
                Verb::Data => self.data()?,
                Verb::Quit => return Ok(()),
                Verb::Rset => self.reset(),
                Verb::Mail => {
                    self.reset();
                    self.message.mail = line;
                }
                _ => {
                    self.reset();
                    (self.esmtp, self.message.hello) = (verb == Verb::Ehlo, line);
                }
            }
        }
    }

    /// Complains of what was not offered.
    fn check(&self, name: &str, line: &str) {
        let mut used = vec![];
        if name == "BDAT" {
            used.push("CHUNKING");
        } else if !self.input.buffer().is_empty() {
            used.push("PIPELINING");
        }
        let parameters = line.rsplit_once('>').map_or("", |(_, parameters)| parameters);
        used.extend(parameters.split_whitespace().map(|parameter| match parameter.split('=').next() {
            Some("SIZE") => "SIZE",
            Some("BODY") => "8BITMIME",
            Some("RET" | "ENVID" | "NOTIFY" | "ORCPT") => "DSN",
            _ => "what nobody knows",
        }));
        let offered =
            |name| self.esmtp && self.shared.extensions.iter().any(|offer| offer.split(' ').next() == Some(name));
        for extension in used.into_iter().filter(|name| !offered(name)) {
            self.shared.complain(format!("{extension} was not offered: {line}"));
        }
    }

    fn capabilities(&self) -> String {
        let lines = [&["next-hop.test.example".to_owned()], &self.shared.extensions[..]].concat();
        let (last, more) = lines.split_last().expect("a name");
        more.iter().map(|line| format!("250-{line}\r\n")).chain([format!("250 {last}")]).collect()
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
        let text = line.strip_suffix("\r\n").map(str::to_owned);
        if text.is_none() && !line.is_empty() {
            self.shared.complain(format!("a command without CRLF: {line:?}"));
        }
        text.ok_or_else(|| ErrorKind::UnexpectedEof.into())
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
