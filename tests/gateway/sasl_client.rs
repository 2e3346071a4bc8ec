//! Clients that log in, and the file of who may.

use crate::harness::{Client, GATEPOST};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatepost::smtp::sasl::ntlm::ClientExchange;
use gatepost::smtp::sasl::ntlm::client::Randomness;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const AUTHENTICATED: &str = "235 2.7.0 Authentication successful";
pub const FAILED: &str = "535 5.7.3 Authentication unsuccessful";
pub const UNAVAILABLE: &str = "454 4.7.0 Temporary authentication failure";
pub const UNRECOGNIZED: &str = "504 5.7.4 Unrecognized authentication type";
pub const TOO_MANY_ERRORS: &str = "421 4.7.0 Too many errors on this connection, closing transmission channel";

/// How a client logs in: sends everything but the last reply's command, and returns that reply.
pub type LogIn = fn(&mut Client, &str, &str) -> String;

/// Every mechanism, by name.
pub const MECHANISMS: [(&str, LogIn); 3] = [("NTLM", ntlm), ("LOGIN", login), ("PLAIN", plain)];

pub fn base64(octets: impl AsRef<[u8]>) -> String {
    STANDARD.encode(octets)
}

/// PLAIN with an initial response.
pub fn plain(client: &mut Client, name: &str, password: &str) -> String {
    client.command(&format!("AUTH PLAIN {}", plain_response(name, password)))
}

pub fn plain_response(name: &str, password: &str) -> String {
    base64(format!("\0{name}\0{password}"))
}

pub fn login(client: &mut Client, name: &str, password: &str) -> String {
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6");
    client.expect(&base64(name), "334 UGFzc3dvcmQ6");
    client.command(&base64(password))
}

pub fn ntlm(client: &mut Client, name: &str, password: &str) -> String {
    client.expect("AUTH NTLM", "334 NTLM supported");
    let response = ntlm_response(client, name, password);
    client.command(&response)
}

/// Sends NEGOTIATE; the AUTHENTICATE for the challenge.
pub fn ntlm_response(client: &mut Client, name: &str, password: &str) -> String {
    let exchange = ClientExchange::new(name, None, password);
    let reply = client.command(&base64(exchange.negotiate()));
    let challenge = reply.strip_prefix("334 ").unwrap_or_else(|| panic!("no challenge: {reply}"));
    let challenge = STANDARD.decode(challenge).expect("base64");
    let random = Randomness { nonce: *b"nonce..8", session_key: *b"session key...16" };
    base64(exchange.authenticate(&challenge, &random, 0).expect("a challenge"))
}

/// A users file that `gatepost user` writes.
#[derive(Debug)]
pub struct UsersFile(PathBuf);

impl UsersFile {
    pub fn new(path: PathBuf) -> Self {
        UsersFile(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The option of `serve` that names it.
    pub fn option(&self) -> String {
        format!("--users={}", self.0.display())
    }

    /// `gatepost user add` with these arguments, the name among them.
    #[track_caller]
    pub fn add(&self, arguments: &[&str], password: &str) {
        self.run("add", arguments, password);
    }

    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.run("remove", &[name], "");
    }

    #[track_caller]
    fn run(&self, what: &str, arguments: &[&str], input: &str) {
        let mut command = Command::new(&*GATEPOST);
        command.args(["user", what]).args(arguments).arg("--users").arg(&self.0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program");
        // One that needs no input does not read.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        assert!(child.wait().expect("a child of ours").success(), "user {what} {arguments:?}");
    }
}
