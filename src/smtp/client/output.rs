//! What is to be sent: octets, and how far they may be sent by now.

use crate::limits::NEXT_HOP_OUTPUT_KEPT_OCTETS;
use memchr::memchr;
use std::fmt;
use zeroize::Zeroize;

/// Output in the order of sending. Without PIPELINING a transaction's later commands wait here,
/// written but not released.
#[derive(Default)]
pub(super) struct Output {
    octets: Vec<u8>,
    sent: usize,
    /// The end of what may be sent.
    released: usize,
    /// It has something that must not stay in memory.
    is_secret: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { octets, sent, released, is_secret: _ } = self;
        write!(f, "Output {{ {} octets, {released} released, {sent} sent }}", octets.len())
    }
}

impl Output {
    /// What may be sent and was not.
    pub fn ready(&self) -> &[u8] {
        self.octets.get(self.sent..self.released).unwrap_or_default()
    }

    /// The first `count` octets of it have left.
    pub fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.released);
        if self.sent == self.octets.len() {
            self.clear();
        }
    }

    /// Appends `octets`, to be sent at once.
    pub fn say(&mut self, octets: &[u8]) {
        self.tail().extend_from_slice(octets);
        self.release_all();
    }

    /// Appends a line, to be sent at once, and overwritten when it has left.
    pub fn say_secret(&mut self, line: &[u8]) {
        self.is_secret = true;
        // What grows leaves a copy behind.
        self.tail().reserve(line.len() + 2);
        self.say(line);
        self.say(b"\r\n");
    }

    /// The buffer, to be appended to; what left of it does not stay for long.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 {
            self.octets.drain(..self.sent);
            self.released -= self.sent;
            self.sent = 0;
        }
        &mut self.octets
    }

    /// Everything may be sent.
    pub fn release_all(&mut self) {
        self.released = self.octets.len();
    }

    /// One more line may be sent.
    pub fn release_line(&mut self) {
        let waiting = self.octets.get(self.released..).unwrap_or_default();
        self.released += memchr(b'\n', waiting).map_or(waiting.len(), |end| end + 1);
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_secret) {
            self.octets.zeroize();
        }
        self.octets.clear();
        (self.sent, self.released) = (0, 0);
    }

    /// Gives back what one large message took.
    pub fn shrink(&mut self) {
        self.octets.shrink_to(NEXT_HOP_OUTPUT_KEPT_OCTETS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_their_release() {
        let mut output = Output::default();
        output.tail().extend_from_slice(b"one\r\ntwo\r\nthree\r\n");
        assert_eq!(output.ready(), b"");
        output.release_line();
        assert_eq!(output.ready(), b"one\r\n");
        output.sent(2);
        assert_eq!(output.ready(), b"e\r\n");
        output.release_line();
        assert_eq!(output.ready(), b"e\r\ntwo\r\n");
        output.sent(100);
        assert_eq!(output.ready(), b"");
        output.release_all();
        assert_eq!(output.ready(), b"three\r\n");
        output.clear();
        output.release_line();
        assert_eq!(output.ready(), b"");
        output.say(b"four");
        output.sent(1);
        output.say(b"five");
        assert_eq!(output.ready(), b"ourfive");
    }
}
