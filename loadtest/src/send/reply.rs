//! Replies of a server (RFC 5321 section 4.2), cut anywhere by the network.
//!
//! Strict on purpose: a reply line ends in CRLF, begins with three digits of which the first is 2 to 5, and the lines
//! of one reply share their code. Anything else is malformed and ends the connection, since a test that reads around a
//! server's faults does not find them.

use std::ops::Range;

/// Longest reply, all lines together.
pub const REPLY_OCTETS_MAX: usize = 8 * 1024;

/// A reply that no server may send, or one beyond [`REPLY_OCTETS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Code and length of the reply at the start of `input`; None when it is not complete.
pub fn scan(input: &[u8]) -> Result<Option<(u16, usize)>, Malformed> {
    let (mut start, mut code) = (0, None);
    while let Some(end) = memchr::memchr(b'\n', &input[start..]) {
        let line = input[start..start + end].strip_suffix(b"\r").ok_or(Malformed)?;
        let line_code = parse_code(line).ok_or(Malformed)?;
        if *code.get_or_insert(line_code) != line_code {
            return Err(Malformed);
        }
        start += end + 1;
        match line.get(3) {
            None | Some(b' ') => return Ok(Some((line_code, start))),
            Some(b'-') => {}
            Some(_) => return Err(Malformed),
        }
    }
    Ok(None)
}

fn parse_code(line: &[u8]) -> Option<u16> {
    let digits = line.get(..3)?;
    if !(b'2'..=b'5').contains(&digits[0]) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0')))
}

/// A complete reply.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The three digits.
    pub code: u16,
    text: &'a [u8],
}

impl<'a> Reply<'a> {
    /// A reply that [`scan`] has found complete.
    pub fn new(code: u16, text: &'a [u8]) -> Self {
        Self { code, text }
    }

    /// Whether the code is 2yz.
    pub fn is_positive(self) -> bool {
        self.code / 100 == 2
    }

    /// The texts of its lines, without code and line end.
    pub fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        self.text
            .split(|octet| *octet == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.is_empty())
            .map(|line| line.get(4..).unwrap_or_default())
    }

    /// The id under which the server has queued a message, where its reply to the final dot tells: the word before
    /// "Queued" after an enhanced code, or the word after "queued as" or "id=".
    pub fn queue_id(self) -> Option<&'a [u8]> {
        let line = self.lines().last()?;
        let mut words = line.split(|octet| *octet == b' ').filter(|word| !word.is_empty()).peekable();
        while let Some(word) = words.next() {
            if let Some(id) = word.strip_prefix(b"id=") {
                return valid(id);
            }
            if word == b"as" {
                return valid(words.next()?);
            }
            if words.peek().is_some_and(|next| *next == b"Queued") {
                return valid(word);
            }
        }
        None
    }
}

/// Ids end in a list with one line each: nothing but printable ASCII may enter it.
fn valid(id: &[u8]) -> Option<&[u8]> {
    (!id.is_empty() && id.iter().all(u8::is_ascii_graphic)).then_some(id)
}

/// The replies read ahead of a connection.
#[derive(Debug)]
pub struct ReplyBuffer {
    octets: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for ReplyBuffer {
    fn default() -> Self {
        Self { octets: vec![0; REPLY_OCTETS_MAX].into(), start: 0, end: 0 }
    }
}

impl ReplyBuffer {
    /// Forgets everything, for a new connection.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Takes the next reply out, if it is complete.
    pub fn take(&mut self) -> Result<Option<(u16, Range<usize>)>, Malformed> {
        match scan(&self.octets[self.start..self.end])? {
            Some((code, len)) => {
                let range = self.start..self.start + len;
                self.start = range.end;
                Ok(Some((code, range)))
            }
            None if self.start == 0 && self.end == self.octets.len() => Err(Malformed),
            None => Ok(None),
        }
    }

    /// The reply that [`Self::take`] has just returned.
    pub fn reply(&self, code: u16, range: Range<usize>) -> Reply<'_> {
        Reply::new(code, &self.octets[range])
    }

    /// Where to read more octets; never empty as long as [`Self::take`] has returned None.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.clear();
        } else if self.end == self.octets.len() {
            self.octets.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.octets[self.end..]
    }

    /// Notes that `len` octets have been read into the room.
    pub fn filled(&mut self, len: usize) {
        self.end += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EHLO: &[u8] = b"250-host\r\n250-SIZE 1000\r\n250 PIPELINING\r\n";

    #[test]
    fn replies_are_complete_at_their_last_line_only() {
        assert_eq!(scan(EHLO), Ok(Some((250, EHLO.len()))));
        for len in 0..EHLO.len() {
            assert_eq!(scan(&EHLO[..len]), Ok(None), "{len}");
        }
        assert_eq!(scan(b"354\r\n250 next\r\n"), Ok(Some((354, 5))));
        assert_eq!(Reply::new(250, EHLO).lines().collect::<Vec<_>>(), [&b"host"[..], b"SIZE 1000", b"PIPELINING"]);
    }

    #[test]
    fn malformed_replies_are_told() {
        for text in
            ["250 ok\n", "25\r\n", "abc ok\r\n", "650 ok\r\n", "150 ok\r\n", "250ok\r\n", "\r\n", "250-a\r\n251 b\r\n"]
        {
            assert_eq!(scan(text.as_bytes()), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn the_buffer_yields_the_same_replies_at_any_split() {
        let input = [EHLO, b"250 2.1.0 Sender OK\r\n", b"354 go\r\n"].concat();
        for first in 0..input.len() {
            let mut buffer = ReplyBuffer::default();
            let mut codes = Vec::new();
            for piece in [&input[..first], &input[first..]] {
                buffer.room()[..piece.len()].copy_from_slice(piece);
                buffer.filled(piece.len());
                while let Some((code, range)) = buffer.take().unwrap() {
                    codes.push((code, buffer.reply(code, range).lines().count()));
                }
            }
            assert_eq!(codes, [(250, 3), (250, 1), (354, 1)], "{first}");
        }
    }

    #[test]
    fn endless_replies_are_refused() {
        let mut buffer = ReplyBuffer::default();
        let mut line = b"250-a\r\n".iter().cycle();
        loop {
            let room = buffer.room();
            let len = room.len().min(100);
            for octet in &mut room[..len] {
                *octet = *line.next().unwrap();
            }
            buffer.filled(len);
            match buffer.take() {
                Ok(None) => {}
                result => return assert_eq!(result, Err(Malformed)),
            }
        }
    }

    #[test]
    fn queue_ids_are_found_where_servers_put_them() {
        for (text, id) in [
            ("250 2.6.0 0Ab9zQ Queued mail for delivery\r\n", Some("0Ab9zQ")),
            ("250 2.0.0 Ok: queued as 4XyZ\r\n", Some("4XyZ")),
            ("250 OK id=1r2s3t-0001\r\n", Some("1r2s3t-0001")),
            ("250 2.0.0 Ok\r\n", None),
            ("250\r\n", None),
            ("250 Queued\r\n", None),
            ("250 queued as \x01\r\n", None),
        ] {
            let found = Reply::new(250, text.as_bytes()).queue_id();
            assert_eq!(found, id.map(str::as_bytes), "{text:?}");
        }
    }
}
