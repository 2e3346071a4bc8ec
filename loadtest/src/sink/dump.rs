//! Messages kept as files, for audits octet by octet.
//!
//! A message is written to `NAME.partial` as it arrives and renamed to `NAME.eml` at its end; `NAME.envelope` beside it
//! holds where it came from and the accepted commands of its transaction as they came, parameters and all. Names begin
//! with the time the sink was started, so that several runs can share a directory. A failure to write is remembered and
//! ends the sink's run with a fault: an audit must not pass for lack of evidence.
//!
//! ```text
//! client 127.0.0.1
//! ehlo gateway.example                        or helo
//! connection 3                                since the sink was started
//! transaction 2                               on this connection
//! MAIL FROM:<a@client.example> SIZE=4096 RET=HDRS
//! RCPT TO:<b@load.example> NOTIFY=NEVER       one for each recipient
//! DATA                                        or BDAT
//! ```

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fault::Fault;

const MESSAGE: &str = "eml";
const PARTIAL: &str = "partial";
const ENVELOPE: &str = "envelope";

/// Whether a file in a directory of dumps is not itself a message.
pub fn is_beside_a_message(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == ENVELOPE || extension == PARTIAL)
}

/// Where messages are kept; shared by all lanes.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    started_ms: u128,
    next: AtomicU64,
}

impl Directory {
    /// Creates the directory if need be.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        std::fs::create_dir_all(path).map_err(|error| Fault::file(path, error))?;
        let started_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Self { path: path.to_owned(), started_ms, next: AtomicU64::new(1) })
    }

    /// Begins a message.
    pub fn begin(&self) -> Result<Dump, Fault> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("{}-{number:010}.{PARTIAL}", self.started_ms));
        let file = File::create_new(&path).map_err(|error| Fault::file(&path, error))?;
        Ok(Dump { path, file: BufWriter::new(file) })
    }
}

/// A message on its way into a file; dropped before its end it stays behind as partial.
#[derive(Debug)]
pub struct Dump {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Dump {
    /// Appends content.
    pub fn write(&mut self, content: &[u8]) -> Result<(), Fault> {
        self.file.write_all(content).map_err(|error| Fault::file(&self.path, error))
    }

    /// Ends the message and writes its envelope.
    pub fn finish(mut self, envelope: &Envelope) -> Result<(), Fault> {
        let result = self.file.flush().and_then(|()| {
            std::fs::write(self.path.with_extension(ENVELOPE), &envelope.text)?;
            std::fs::rename(&self.path, self.path.with_extension(MESSAGE))
        });
        result.map_err(|error| Fault::file(&self.path, error))
    }
}

/// Where the current transaction comes from, and its envelope as text, which is kept only when messages are.
#[derive(Debug)]
pub struct Envelope {
    text: Vec<u8>,
    client: String,
    connection: u64,
    /// What the client calls itself.
    name: Vec<u8>,
    recipients: usize,
    head_len: usize,
    kept: bool,
}

impl Envelope {
    /// An envelope of a client known by its address, on a connection known by its number.
    pub fn new(client: String, connection: u64) -> Self {
        Self { text: Vec::new(), client, connection, name: Vec::new(), recipients: 0, head_len: 0, kept: false }
    }

    /// Notes the client's name: what came behind EHLO (`esmtp`) or HELO.
    pub fn greet(&mut self, esmtp: bool, name: &[u8], kept: bool) {
        self.kept = kept;
        self.name.clear();
        self.name.extend_from_slice(name.trim_ascii());
        self.text.clear();
        if kept {
            let verb = if esmtp { "ehlo" } else { "helo" };
            self.text.extend_from_slice(format!("client {}\n{verb}", self.client).as_bytes());
            self.text.extend_from_slice(name);
            self.text.extend_from_slice(format!("\nconnection {}\n", self.connection).as_bytes());
        }
        self.head_len = self.text.len();
    }

    /// Begins a transaction, the so manieth on this connection.
    pub fn begin(&mut self, transaction: u64) {
        if self.kept {
            self.text.extend_from_slice(format!("transaction {transaction}\n").as_bytes());
        }
    }

    /// Notes a command.
    pub fn line(&mut self, command: &[u8]) {
        if self.kept {
            self.text.extend_from_slice(command);
            self.text.push(b'\n');
        }
    }

    /// Notes a RCPT command that was accepted.
    pub fn recipient(&mut self, command: &[u8]) {
        self.recipients += 1;
        self.line(command);
    }

    /// The accepted recipients.
    pub fn recipients(&self) -> usize {
        self.recipients
    }

    /// For the record: the number of the connection, and the client's name as one printable word.
    pub fn origin(&self) -> String {
        let printable = |octet: &u8| if octet.is_ascii_graphic() { char::from(*octet) } else { '?' };
        let name: String = self.name.iter().map(printable).collect();
        format!("{} {}", self.connection, if name.is_empty() { "-" } else { &name })
    }

    /// Forgets the transaction.
    pub fn reset(&mut self) {
        self.recipients = 0;
        self.text.truncate(self.head_len);
    }
}
