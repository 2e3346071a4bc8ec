//! A next hop with STARTTLS and AUTH, that writes down every line it hears and whether TLS was up.
//!
//! It takes every message, one command at a time and by DATA only.

use crate::harness::until;
use gatepost::smtp::sasl::login::Prompt;
use gatepost::smtp::sasl::ntlm::{ServerExchange, nt_hash};
use gatepost::smtp::sasl::{decode, encode, plain};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ALL_VERSIONS, HandshakeKind, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// One that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of one name would be taken for each other.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A server with a certificate for these names and addresses.
    pub fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        self.server_of(names, ALL_VERSIONS)
    }

    /// The same with these versions of TLS.
    pub fn server_of(&self, names: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &self.issuer);
        let chain = vec![certificate.expect("a certificate").der().clone()];
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        Arc::new(config.expect("its own key"))
    }
}

/// What it does at STARTTLS.
#[derive(Clone, Default)]
pub enum Tls {
    /// Does not offer it.
    #[default]
    None,
    Works(Arc<ServerConfig>),
    /// Works, but somebody puts these lines behind the 220.
    Injected(Arc<ServerConfig>, &'static str),
    /// Says 220, and then no word of TLS.
    Broken,
    /// Says 220, and then nothing.
    Hangs,
}

/// How a next hop behaves.
#[derive(Clone, Default)]
pub struct Behaviour {
    pub tls: Tls,
    /// The mechanisms it offers, with and without TLS; empty: no AUTH.
    pub auth: &'static str,
    /// Who may log on: domain for NTLM, name, password.
    pub user: (&'static str, &'static str, &'static str),
    /// What it says to others; `%` is the line that they sent last.
    pub refusal: &'static str,
    /// It closes the connection after each message.
    pub is_curt: bool,
}

#[derive(Default)]
struct Seen {
    /// `tls` or `clear`, a space, the line.
    lines: Vec<String>,
    /// The same with the content.
    messages: Vec<(bool, String)>,
    /// Handshakes that resumed a session of before.
    resumed: usize,
}

/// The next hop.
pub struct Secure {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Secure {
    /// It serves until the process ends.
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = seen.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let session = Session {
                    behaviour: behaviour.clone(),
                    seen: shared.clone(),
                    wire: Wire::Clear(stream),
                    last: String::new(),
                };
                // It ends with the connection, in whatever way.
                thread::spawn(move || drop(session.serve()));
            }
        });
        Secure { address, seen }
    }

    /// What it heard.
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().expect("no session panics with it").lines.clone()
    }

    /// How often it heard a line.
    pub fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|heard| *heard == line).count()
    }

    /// How many handshakes resumed a session of before.
    pub fn resumed(&self) -> usize {
        self.seen.lock().expect("no session panics with it").resumed
    }

    /// Waits for so many messages: whether TLS was up, and the content.
    #[track_caller]
    pub fn wait(&self, count: usize) -> Vec<(bool, String)> {
        let messages = || self.seen.lock().expect("no session panics with it").messages.clone();
        until(&format!("{count} messages at the next hop"), || messages().len() >= count);
        messages()
    }
}

enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

struct Session {
    behaviour: Behaviour,
    seen: Arc<Mutex<Seen>>,
    wire: Wire,
    /// The last line heard.
    last: String,
}

impl Session {
    fn serve(mut self) -> io::Result<()> {
        self.say("220 next-hop.test.example ESMTP")?;
        let mut content = String::new();
        loop {
            let line = self.line()?;
            match line.split(' ').next().unwrap_or_default() {
                "EHLO" => self.offer()?,
                "STARTTLS" => self = self.start_tls()?,
                "AUTH" => self.authenticate(&line)?,
                "MAIL" | "RCPT" | "RSET" => self.say("250 2.0.0 OK")?,
                "DATA" => {
                    self.say("354 Go ahead")?;
                    content.clear();
                    loop {
                        match self.line()?.as_str() {
                            "." => break,
                            line => content.extend([line, "\r\n"]),
                        }
                    }
                    let message = (self.is_tls(), content.clone());
                    self.seen.lock().expect("no session panics with it").messages.push(message);
                    self.say("250 2.0.0 Taken")?;
                    if self.behaviour.is_curt {
                        return Ok(());
                    }
                }
                "QUIT" => return self.say("221 2.0.0 Bye"),
                _ => self.say("502 5.5.1 What?")?,
            }
        }
    }

    fn offer(&mut self) -> io::Result<()> {
        let mut lines = vec!["250-next-hop.test.example".to_owned()];
        if !self.is_tls() && !matches!(self.behaviour.tls, Tls::None) {
            lines.push("250-STARTTLS".to_owned());
        }
        if !self.behaviour.auth.is_empty() {
            lines.push(format!("250-AUTH {}", self.behaviour.auth));
        }
        lines.push("250 ENHANCEDSTATUSCODES".to_owned());
        self.say(&lines.join("\r\n"))
    }

    fn start_tls(mut self) -> io::Result<Self> {
        let (config, injected) = match self.behaviour.tls.clone() {
            Tls::None => return self.say("502 5.5.1 Not offered").map(|()| self),
            Tls::Works(config) => (config, ""),
            Tls::Injected(config, lines) => (config, lines),
            Tls::Broken => {
                self.say("220 2.0.0 Go ahead")?;
                self.read()?;
                self.say("500 5.5.1 This is no TLS")?;
                return Err(ErrorKind::InvalidData.into());
            }
            Tls::Hangs => {
                self.say("220 2.0.0 Go ahead")?;
                while self.read().is_ok() {}
                return Err(ErrorKind::UnexpectedEof.into());
            }
        };
        self.say(&format!("220 2.0.0 Go ahead{injected}"))?;
        let Wire::Clear(mut stream) = self.wire else { return Err(ErrorKind::InvalidInput.into()) };
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.seen.lock().expect("no session panics with it").resumed += 1;
        }
        self.wire = Wire::Tls(Box::new(StreamOwned::new(session, stream)));
        Ok(self)
    }

    fn authenticate(&mut self, line: &str) -> io::Result<()> {
        let mut words = line.split(' ').skip(1);
        let (mechanism, initial) = (words.next().unwrap_or_default(), words.next());
        let (domain, name, password) = self.behaviour.user;
        let full_name = if domain.is_empty() { name.to_owned() } else { format!("{domain}\\{name}") };
        let is_good = match (mechanism, initial) {
            ("PLAIN", Some(message)) => {
                let message = decode(message.as_bytes()).ok_or(ErrorKind::InvalidData)?;
                plain::parse(&message).is_some_and(|given| given.name == full_name && *given.password == password)
            }
            ("LOGIN", None) => {
                let given_name = self.challenge(Prompt::Username.text())?;
                let given_password = self.challenge(Prompt::Password.text())?;
                given_name == full_name.as_bytes() && given_password == password.as_bytes()
            }
            ("NTLM", None) => {
                let negotiate = self.challenge("NTLM supported")?;
                let server = ServerExchange::new(&negotiate, "next-hop.test.example", [9; 8], 133_000_000_000_000_000);
                let server = server.ok_or(ErrorKind::InvalidData)?;
                let mut challenge = Vec::new();
                encode(server.challenge(), &mut challenge);
                let message = self.challenge(&String::from_utf8_lossy(&challenge))?;
                let logon = server.authenticate(&message).ok_or(ErrorKind::InvalidData)?;
                (logon.domain(), logon.name()) == (domain, name) && logon.verify(&nt_hash(password))
            }
            _ => return self.say("504 5.5.4 Not that"),
        };
        match is_good {
            true => self.say("235 2.7.0 Welcome"),
            false => self.say(&self.behaviour.refusal.replace('%', &self.last)),
        }
    }

    fn challenge(&mut self, text: &str) -> io::Result<Vec<u8>> {
        self.say(&format!("334 {text}"))?;
        decode(self.line()?.as_bytes()).map(|answer| answer.to_vec()).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    fn is_tls(&self) -> bool {
        matches!(self.wire, Wire::Tls(_))
    }

    /// One octet, so that nothing of a handshake is taken for a line.
    fn read(&mut self) -> io::Result<u8> {
        let mut octet = [0];
        match &mut self.wire {
            Wire::Clear(stream) => stream.read_exact(&mut octet)?,
            Wire::Tls(stream) => stream.read_exact(&mut octet)?,
        }
        Ok(octet[0])
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.read()?);
        }
        self.last = String::from_utf8_lossy(&line).trim_end().to_owned();
        let channel = if self.is_tls() { "tls" } else { "clear" };
        self.seen.lock().expect("no session panics with it").lines.push(format!("{channel} {}", self.last));
        Ok(self.last.clone())
    }

    fn say(&mut self, reply: &str) -> io::Result<()> {
        let octets = format!("{reply}\r\n");
        match &mut self.wire {
            Wire::Clear(stream) => stream.write_all(octets.as_bytes()),
            Wire::Tls(stream) => stream.write_all(octets.as_bytes()).and_then(|()| stream.flush()),
        }
    }
}
