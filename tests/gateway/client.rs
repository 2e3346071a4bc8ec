//! An SMTP client that does what it is told, in clear or under TLS.

use super::tls_client::ClientTls;
use super::{BANNER, PATIENCE};
use rustls::ClientConnection;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How a session's stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order; under TLS, with close_notify.
    Fin,
    /// By a reset.
    Reset,
    /// In clear, where TLS would have said so first.
    Cut,
    /// By an alert.
    Alert,
}

fn shake_hands(mut session: ClientConnection, socket: &mut (impl Read + Write)) -> io::Result<Box<ClientConnection>> {
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(socket)?;
    }
    Ok(Box::new(session))
}

/// A socket that takes one octet at a time.
struct ByOctets<'a>(&'a mut TcpStream);

impl Read for ByOctets<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for ByOctets<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.write(&octets[..octets.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client that does what it is told.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What was read and not yet taken.
    unread: Vec<u8>,
}

impl Client {
    /// Connects from `source`; does not read the banner.
    pub fn connect(to: SocketAddr, source: Option<IpAddr>) -> Self {
        Self::try_connect(to, source).unwrap_or_else(|error| panic!("connecting to {to} from {source:?}: {error}"))
    }

    pub fn try_connect(to: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(source) = source {
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        socket.connect(&to.into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_tcp_nodelay(true)?;
        Ok(Client { stream: socket.into(), tls: None, unread: Vec::new() })
    }

    /// Begins TLS, and sees its handshake to its end.
    #[track_caller]
    pub fn secure(&mut self, tls: &ClientTls) {
        self.try_secure(tls, b"").unwrap_or_else(|error| panic!("the handshake: {error}"));
    }

    /// The same; `first` leaves with the last octets of the handshake, if they are the client's.
    pub fn try_secure(&mut self, tls: &ClientTls, first: &[u8]) -> io::Result<()> {
        assert_eq!(self.unread, b"", "nothing was to be said in clear any more");
        let mut session = tls.begin();
        session.writer().write_all(first)?;
        self.tls = Some(shake_hands(session, &mut self.stream)?);
        Ok(())
    }

    /// The same; its first octets leave in one piece with these before them.
    pub fn secure_behind(&mut self, before: &[u8], tls: &ClientTls) {
        let mut session = tls.begin();
        let mut first = before.to_vec();
        session.write_tls(&mut first).expect("memory");
        self.stream.write_all(&first).expect("a server that reads");
        self.tls = Some(shake_hands(session, &mut self.stream).expect("a handshake"));
    }

    /// The same, each octet for itself.
    pub fn secure_by_octets(&mut self, tls: &ClientTls) {
        self.tls = Some(shake_hands(tls.begin(), &mut ByOctets(&mut self.stream)).expect("a handshake"));
    }

    /// The TLS session.
    pub fn tls(&self) -> &ClientConnection {
        self.tls.as_ref().expect("under TLS")
    }

    pub fn tls_mut(&mut self) -> &mut ClientConnection {
        self.tls.as_mut().expect("under TLS")
    }

    /// Says that nothing more comes, to TLS and not to TCP.
    pub fn close_notify(&mut self) {
        let tls = self.tls.as_mut().expect("under TLS");
        tls.send_close_notify();
        tls.write_tls(&mut self.stream).expect("a server that reads");
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(buffer),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.stream).read(buffer),
        }
    }

    /// The next line without its CRLF; None at the end of the stream.
    pub fn try_line(&mut self) -> Result<String, End> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8(self.unread[..end].to_vec()).expect("replies are ASCII");
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            let mut buffer = [0; 65536];
            match self.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(self.unread, b"", "the stream ends within a line");
                    return Err(End::Fin);
                }
                Ok(octets) => self.unread.extend_from_slice(&buffer[..octets]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(End::Reset),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(End::Cut),
                Err(error) if error.get_ref().is_some_and(|error| error.is::<rustls::Error>()) => {
                    return Err(End::Alert);
                }
                Err(error) => panic!("waiting for a reply: {error}"),
            }
        }
    }

    pub fn line(&mut self) -> String {
        self.try_line().unwrap_or_else(|end| panic!("the stream ended ({end:?}), a reply was due"))
    }

    /// A whole reply; its lines joined by `\n`.
    pub fn reply(&mut self) -> String {
        let mut reply = self.line();
        while reply.lines().last().is_some_and(|line| line.as_bytes().get(3) == Some(&b'-')) {
            reply.push('\n');
            reply.push_str(&self.line());
        }
        reply
    }

    /// Asserts that the server has ended the session, in order and with nothing more to say.
    #[track_caller]
    pub fn assert_ended(&mut self) {
        assert_eq!(self.try_line(), Err(End::Fin));
    }

    pub fn send(&mut self, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref();
        let sent = match &mut self.tls {
            None => self.stream.write_all(octets),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.stream).write_all(octets),
        };
        sent.expect("a server that reads");
    }

    /// Sends a command and reads the reply.
    pub fn command(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n"));
        self.reply()
    }

    /// Sends a command that must be answered thus.
    #[track_caller]
    pub fn expect(&mut self, command: &str, reply: &str) {
        let got = self.command(command);
        assert_eq!(got, reply, "{command:?}");
    }

    /// Reads the banner and says EHLO; the first line of the reply.
    #[track_caller]
    pub fn hello(&mut self) -> String {
        assert_eq!(self.reply(), BANNER);
        self.ehlo().lines().next().expect("a line").to_owned()
    }

    /// Says EHLO; the reply.
    #[track_caller]
    pub fn ehlo(&mut self) -> String {
        let reply = self.command("EHLO client.test.example");
        assert!(reply.starts_with("250-mx.test.example Hello ["), "{reply}");
        reply
    }

    /// Says STARTTLS, begins TLS and says EHLO again; the reply.
    #[track_caller]
    pub fn starttls(&mut self, tls: &ClientTls) -> String {
        self.expect("STARTTLS", "220 2.0.0 SMTP server ready");
        self.secure(tls);
        self.ehlo()
    }

    /// Sends a message whose content is `content`, dot-stuffed here; the final reply.
    #[track_caller]
    pub fn message(&mut self, from: &str, to: &[&str], content: &[u8]) -> String {
        self.expect(&format!("MAIL FROM:<{from}>"), "250 2.1.0 Sender OK");
        for recipient in to {
            self.expect(&format!("RCPT TO:<{recipient}>"), "250 2.1.5 Recipient OK");
        }
        self.data(content)
    }

    /// DATA, the content and the final dot; the final reply.
    #[track_caller]
    pub fn data(&mut self, content: &[u8]) -> String {
        self.expect("DATA", "354 Start mail input; end with <CRLF>.<CRLF>");
        self.send(stuffed(content));
        self.reply()
    }

    /// Delivers a message; its queue id.
    #[track_caller]
    pub fn deliver(&mut self, from: &str, to: &[&str], content: &[u8]) -> String {
        queue_id(&self.message(from, to, content))
    }

    #[track_caller]
    pub fn quit(mut self) {
        self.expect("QUIT", "221 2.0.0 Service closing transmission channel");
        self.assert_ended();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        let socket = Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }

    /// Says that it will send no more.
    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a connected socket");
    }
}

/// The queue id in the reply to a message, which must be an acceptance.
#[track_caller]
pub fn queue_id(reply: &str) -> String {
    let id = reply.strip_prefix("250 2.6.0 ").and_then(|rest| rest.strip_suffix(" Queued mail for delivery"));
    let id = id.unwrap_or_else(|| panic!("not accepted: {reply}"));
    assert!((1..=20).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric()), "{id}");
    id.to_owned()
}

/// Content as it is sent in DATA: dots doubled at the beginning of lines, and the final dot. What
/// does not end with CRLF is ended here.
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 64);
    let mut line_begins = true;
    for (at, &octet) in content.iter().enumerate() {
        if line_begins && octet == b'.' {
            out.push(b'.');
        }
        out.push(octet);
        line_begins = octet == b'\n' && at > 0 && content[at - 1] == b'\r';
    }
    if !line_begins {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}
