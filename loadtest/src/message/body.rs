//! The body of a generated message as a function of id, length and kind.
//!
//! Blocks of 512 octets hold eight lines of 64 octets with their CRLF. The first line of a block starts with the id and
//! the block's number, so that a sector of another message, or of another place in this one, is found out; the others
//! hold a rotation of the alphabet that differs from line to line. In the kind `dots` the first, third, fifth and
//! seventh line of a block start with a dot, a dot, two dots, and a line that is a single dot. The last line may be
//! shorter, or one octet longer, so that the body ends in CRLF at any length; it is filled from the alphabet alone when
//! short.

use crate::id::ID_OCTETS_MAX;

/// Octets of a block.
pub const BLOCK_OCTETS: u64 = 512;
/// Octets of the longest block: the last one takes an octet that could not hold a CRLF of its own.
pub const BLOCK_OCTETS_MAX: usize = BLOCK_OCTETS as usize + 1;
const LINE_OCTETS: usize = 64;
const BLOCK_NUMBER_DIGITS: usize = 8;

const ALPHABET_LEN: usize = 62;
const ALPHABET_TWICE: &[u8; 2 * ALPHABET_LEN + 1] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789A";

const _: () = assert!(
    1 + ID_OCTETS_MAX + 1 + BLOCK_NUMBER_DIGITS < LINE_OCTETS - 2,
    "the longest id must fit a line with its block's number"
);

/// Length and kind of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    octets: u64,
    dots: bool,
}

impl Shape {
    /// A body of `octets`. A single octet cannot end in CRLF and becomes two.
    pub fn new(octets: u64, dots: bool) -> Self {
        Self { octets: if octets == 1 { 2 } else { octets }, dots }
    }

    /// Length in octets.
    pub fn octets(self) -> u64 {
        self.octets
    }

    /// The word for the kind in the header.
    pub fn kind(self) -> &'static str {
        if self.dots { "dots" } else { "plain" }
    }

    /// Writes block `index` of the body of `id` and returns its length, 0 behind the last one. Blocks before the last
    /// have [`BLOCK_OCTETS`].
    pub fn block(self, id: &[u8], index: u64, block: &mut [u8; BLOCK_OCTETS_MAX]) -> usize {
        let left = self.octets.saturating_sub(index.saturating_mul(BLOCK_OCTETS));
        let len = match left {
            0 => return 0,
            // The octet that the block before has taken over.
            1 if index > 0 => return 0,
            left if left <= BLOCK_OCTETS_MAX as u64 => left as usize,
            _ => BLOCK_OCTETS as usize,
        };
        let mut start = 0;
        for line in 0.. {
            let rest = len - start;
            if rest == 0 {
                break;
            }
            let line_len = if rest <= LINE_OCTETS + 1 { rest } else { LINE_OCTETS };
            self.line(id, index, line, &mut block[start..start + line_len]);
            start += line_len;
        }
        len
    }

    fn line(self, id: &[u8], index: u64, line: u64, out: &mut [u8]) {
        let Some(text_len) = out.len().checked_sub(2) else { return };
        let (text, end) = out.split_at_mut(text_len);
        end.copy_from_slice(b"\r\n");
        let rotation = ((index.wrapping_mul(8) + line) % ALPHABET_LEN as u64) as usize;
        text.copy_from_slice(&ALPHABET_TWICE[rotation..rotation + text_len]);
        if text_len < LINE_OCTETS - 2 {
            return;
        }
        if line == 0 {
            let start = usize::from(self.dots);
            text[..start].fill(b'.');
            let stamp = &mut text[start..start + id.len() + BLOCK_NUMBER_DIGITS + 2];
            stamp[..id.len()].copy_from_slice(id);
            let number = &mut stamp[id.len()..];
            number.fill(b' ');
            let mut rest = index;
            for digit in number[1..=BLOCK_NUMBER_DIGITS].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        } else if self.dots {
            match line {
                2 => text[..1].copy_from_slice(b"."),
                4 => text[..2].copy_from_slice(b".."),
                6 => text[..3].copy_from_slice(b".\r\n"),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn whole(id: &[u8], shape: Shape) -> Vec<u8> {
        let mut body = Vec::new();
        let mut block = [0; BLOCK_OCTETS_MAX];
        for index in 0.. {
            let len = shape.block(id, index, &mut block);
            if len == 0 {
                break;
            }
            body.extend_from_slice(&block[..len]);
        }
        body
    }

    #[test]
    fn every_length_is_met_with_proper_lines() {
        for dots in [false, true] {
            for octets in (0..2100).filter(|octets| *octets != 1) {
                let body = whole(b"r-0000000007", Shape::new(octets, dots));
                assert_eq!(body.len() as u64, octets);
                assert!(octets == 0 || body.ends_with(b"\r\n"), "{octets}");
                for line in body.split_inclusive(|octet| *octet == b'\n') {
                    assert!(line.ends_with(b"\r\n") && line.len() <= LINE_OCTETS + 1, "{octets}");
                    assert!(line[..line.len() - 2].iter().all(|octet| (b' '..=b'~').contains(octet)));
                }
            }
        }
        assert_eq!(Shape::new(1, false).octets(), 2);
    }

    #[test]
    fn blocks_name_their_message_and_place() {
        let id = format!("{}-0000000007", "r".repeat(crate::id::RUN_OCTETS_MAX));
        let body = whole(id.as_bytes(), Shape::new(3 * BLOCK_OCTETS, false));
        for (index, block) in body.chunks(BLOCK_OCTETS as usize).enumerate() {
            assert!(block.starts_with(format!("{id} {index:08} ").as_bytes()));
        }
    }

    #[test]
    fn dots_stand_where_they_hurt() {
        let body = whole(b"r-0000000007", Shape::new(BLOCK_OCTETS, true));
        let lines: Vec<_> = body.split(|octet| *octet == b'\n').collect();
        assert!(lines[0].starts_with(b".r-0000000007 "));
        assert!(lines[2].starts_with(b".") && lines[4].starts_with(b".."));
        assert_eq!(lines[6], b".\r");
    }
}
