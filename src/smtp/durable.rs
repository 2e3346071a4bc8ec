//! Queue ids, and the proof without which no message is acknowledged.

use crate::limits::SHARDS_MAX;
use std::fmt;

/// A message's id: time-ordered, tagged with its shard, never reused.
///
/// 54 bits of microseconds since the Unix epoch, made unique by counting up, and 10 bits of shard
/// (`queue::IdSource` makes them). Written as 11 digits of base 62 whose order is the ids' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(u64);

/// Bits of an id that are its shard's.
pub const QUEUE_ID_SHARD_BITS: u32 = SHARDS_MAX.trailing_zeros();
/// Octets of a written queue id.
pub const QUEUE_ID_OCTETS: usize = 11;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl QueueId {
    /// The id with this number.
    pub const fn from_number(number: u64) -> Self {
        QueueId(number)
    }

    /// The id's number, as stored in the spool.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// When it was given out, in microseconds since the Unix epoch.
    pub const fn unix_us(self) -> u64 {
        self.0 >> QUEUE_ID_SHARD_BITS
    }

    /// The same in milliseconds.
    pub const fn unix_ms(self) -> u64 {
        self.unix_us() / 1000
    }

    /// The id as it is written in replies, fields and file names.
    pub fn text(self) -> QueueIdText {
        let mut text = [b'0'; QUEUE_ID_OCTETS];
        let mut rest = self.0;
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
        QueueIdText(text)
    }

    /// Reads a written id.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != QUEUE_ID_OCTETS {
            return None;
        }
        let digits = text.bytes().map(|octet| DIGITS.iter().position(|&digit| digit == octet));
        digits
            .into_iter()
            .try_fold(0_u64, |number, digit| number.checked_mul(62)?.checked_add(digit? as u64))
            .map(QueueId)
    }
}

/// A written queue id.
#[derive(Clone, Copy)]
pub struct QueueIdText([u8; QUEUE_ID_OCTETS]);

impl QueueIdText {
    /// The id's 11 characters of `[0-9A-Za-z]`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

/// The proof that a message is on stable storage. Only the queue makes one, after a sync that
/// covers the message has succeeded; `tests/architecture.rs` watches that nobody else does.
#[derive(Debug)]
pub struct Durable(QueueId);

impl Durable {
    /// States that the message with this id is on stable storage. For the queue alone.
    pub(crate) fn attest(id: QueueId) -> Self {
        Durable(id)
    }

    /// The message's id.
    pub fn queue_id(&self) -> QueueId {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_in_order_and_read_back() {
        let numbers = [0, 1, 61, 62, 1 << 32, u64::MAX - 1, u64::MAX];
        let texts: Vec<String> = numbers.iter().map(|&number| QueueId::from_number(number).to_string()).collect();
        assert!(texts.is_sorted());
        for (number, text) in numbers.iter().zip(&texts) {
            assert_eq!(text.len(), QUEUE_ID_OCTETS);
            assert_eq!(QueueId::parse(text), Some(QueueId::from_number(*number)));
        }
        for bad in ["", "0", "zzzzzzzzzzz", "0000000000-", "000000000000"] {
            assert_eq!(QueueId::parse(bad), None, "{bad}");
        }
    }
}
