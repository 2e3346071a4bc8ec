//! `gatepost-load audit`: messages from files or from standard input instead of from a connection.
//!
//! Messages are streamed through the verifier in pieces: none is held in memory, however large. A file that cannot be
//! read ends the audit with a fault, since it may be the message that is missing.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use super::{Expected, Tally};
use crate::cli::AuditArgs;
use crate::fault::Fault;
use crate::message::verify::Verifier;
use crate::sink::dump;

const READ_OCTETS: usize = 64 * 1024;

/// Runs the audit and prints its report.
pub fn run(args: &AuditArgs) -> Result<ExitCode, Fault> {
    let expected = Expected::read(&args.acked)?;
    let mut auditor = Auditor::new(args.lf);
    for dir in &args.dir {
        auditor.directory(dir)?;
    }
    if args.stdin0 {
        auditor.separated(&mut io::stdin().lock()).map_err(|error| Fault::File("standard input".to_owned(), error))?;
    }
    Ok(auditor.tally.report(expected.as_ref()).conclude(args.json))
}

struct Auditor {
    tally: Tally,
    verifier: Verifier,
    octets: u64,
    /// Line ends are bare LFs that stand for CRLF.
    lf: bool,
    buffer: Vec<u8>,
}

impl Auditor {
    fn new(lf: bool) -> Self {
        Self { tally: Tally::default(), verifier: Verifier::default(), octets: 0, lf, buffer: vec![0; READ_OCTETS] }
    }

    fn directory(&mut self, dir: &Path) -> Result<(), Fault> {
        let at = |error| Fault::file(dir, error);
        for entry in std::fs::read_dir(dir).map_err(at)? {
            let path = entry.map_err(at)?.path();
            if path.is_file() && !dump::is_beside_a_message(&path) {
                File::open(&path)
                    .and_then(|mut file| self.one(&mut file))
                    .map_err(|error| Fault::file(&path, error))?;
            }
        }
        Ok(())
    }

    /// One message up to the end of the input.
    fn one(&mut self, input: &mut impl Read) -> io::Result<()> {
        self.pieces(input, |auditor, piece| auditor.feed(piece))?;
        self.end();
        Ok(())
    }

    /// Messages separated, or each ended, by NUL.
    fn separated(&mut self, input: &mut impl Read) -> io::Result<()> {
        self.pieces(input, |auditor, mut piece| {
            while let Some(nul) = memchr::memchr(0, piece) {
                auditor.feed(&piece[..nul]);
                auditor.end();
                piece = &piece[nul + 1..];
            }
            auditor.feed(piece);
        })?;
        if self.octets > 0 {
            self.end();
        }
        Ok(())
    }

    fn pieces(&mut self, input: &mut impl Read, mut take: impl FnMut(&mut Self, &[u8])) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            match input.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(len) => take(self, &buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        result
    }

    fn feed(&mut self, piece: &[u8]) {
        self.octets += piece.len() as u64;
        if !self.lf {
            self.verifier.feed(piece);
            return;
        }
        for line in piece.split_inclusive(|octet| *octet == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    self.verifier.feed(text);
                    self.verifier.feed(b"\r\n");
                }
                None => self.verifier.feed(line),
            }
        }
    }

    fn end(&mut self) {
        self.tally.note(self.verifier.finish(), self.octets);
        self.verifier.reset();
        self.octets = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::template::tests::message;

    #[test]
    fn nul_separated_messages_are_told_apart() {
        for trailing in [&b""[..], b"\0"] {
            let input = [&message(900, false, 1)[..], b"\0", &message(90_000, true, 2), trailing].concat();
            let mut auditor = Auditor::new(false);
            auditor.separated(&mut &input[..]).unwrap();
            let report = auditor.tally.report(None);
            assert_eq!((report.received, report.altered, report.foreign), (2, 0, 0));
        }
    }

    #[test]
    fn files_with_unix_line_ends_need_the_flag() {
        let text = String::from_utf8(message(900, true, 1)).unwrap().replace("\r\n", "\n");
        for (lf, foreign) in [(true, 0), (false, 1)] {
            let mut auditor = Auditor::new(lf);
            auditor.one(&mut text.as_bytes()).unwrap();
            let report = auditor.tally.report(None);
            assert_eq!((report.received, report.altered, report.foreign), (1, 0, foreign));
        }
    }
}
