//! The envelope of a transaction: reverse-path, forward-paths and what came with them.
//!
//! Paths stand one after the other in a single buffer that is used again for the next transaction,
//! so a command costs no allocation once a session is warm.

use super::address::Mailbox;
use crate::limits::{ENVELOPE_MAX_OCTETS, KEPT_BUFFER_OCTETS};

/// `BODY=` of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyType {
    /// Not given, or `7BIT`.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
}

/// Reverse-path, forward-paths and their parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    text: Vec<u8>,
    reverse_path_end: usize,
    /// The end of each forward-path in `text`.
    ends: Vec<u32>,
    body_type: BodyType,
}

impl Envelope {
    /// Starts a transaction. `None` is the null reverse-path; `default_domain` qualifies an
    /// unqualified mailbox.
    pub fn begin(&mut self, reverse_path: Option<&Mailbox<'_>>, default_domain: Option<&str>, body_type: BodyType) {
        self.clear();
        self.body_type = body_type;
        if let Some(mailbox) = reverse_path {
            self.push(mailbox, default_domain);
        }
        self.reverse_path_end = self.text.len();
    }

    /// Adds a forward-path. False: the envelope is full, and as it was.
    #[must_use]
    pub fn add_recipient(&mut self, mailbox: &Mailbox<'_>, default_domain: Option<&str>) -> bool {
        let before = self.text.len();
        self.push(mailbox, default_domain);
        if self.text.len() + (self.ends.len() + 1) * size_of::<u32>() > ENVELOPE_MAX_OCTETS {
            self.text.truncate(before);
            return false;
        }
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        true
    }

    /// Takes the last forward-path back: its recipient was refused.
    pub fn remove_last_recipient(&mut self) {
        self.ends.pop();
        let end = self.ends.last().map_or(self.reverse_path_end, |&end| end as usize);
        self.text.truncate(end);
    }

    fn push(&mut self, mailbox: &Mailbox<'_>, default_domain: Option<&str>) {
        self.text.extend_from_slice(mailbox.local_part());
        if let Some(domain) = mailbox.domain().or(default_domain.map(str::as_bytes)) {
            self.text.push(b'@');
            self.text.extend_from_slice(domain);
        }
    }

    /// Forgets everything; small buffers are kept for the next transaction.
    pub fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEPT_BUFFER_OCTETS);
        self.ends.clear();
        self.ends.shrink_to(KEPT_BUFFER_OCTETS / size_of::<u32>());
        self.reverse_path_end = 0;
        self.body_type = BodyType::default();
    }

    /// The reverse-path without brackets; empty is the null reverse-path.
    pub fn reverse_path(&self) -> &[u8] {
        &self.text[..self.reverse_path_end]
    }

    /// The forward-paths without brackets, in the order given.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.ends.len()).map(|index| {
            let start = index.checked_sub(1).map_or(self.reverse_path_end, |before| self.ends[before] as usize);
            &self.text[start..self.ends[index] as usize]
        })
    }

    /// How many forward-paths there are.
    pub fn recipient_count(&self) -> usize {
        self.ends.len()
    }

    /// `BODY=`.
    pub fn body_type(&self) -> BodyType {
        self.body_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::mailbox;

    fn paths(envelope: &Envelope) -> Vec<String> {
        envelope.recipients().map(|path| String::from_utf8(path.to_vec()).expect("ASCII")).collect()
    }

    #[test]
    fn holds_what_was_added() {
        let mut envelope = Envelope::default();
        envelope.begin(mailbox(b"s@a.b").as_ref(), None, BodyType::EightBitMime);
        assert!(envelope.add_recipient(&mailbox(b"one@c.d").expect("valid"), None));
        assert!(envelope.add_recipient(&mailbox(b"two").expect("valid"), Some("e.f")));
        assert!(envelope.add_recipient(&mailbox(b"Postmaster").expect("valid"), None));
        assert_eq!(envelope.reverse_path(), b"s@a.b");
        assert_eq!(paths(&envelope), ["one@c.d", "two@e.f", "Postmaster"]);
        envelope.remove_last_recipient();
        assert_eq!(paths(&envelope), ["one@c.d", "two@e.f"]);
        envelope.begin(None, None, BodyType::SevenBit);
        assert_eq!(envelope.reverse_path(), b"");
        assert_eq!(envelope.recipient_count(), 0);
        assert!(envelope.add_recipient(&mailbox(b"one@c.d").expect("valid"), None));
        envelope.remove_last_recipient();
        assert_eq!(paths(&envelope), Vec::<String>::new());
    }

    #[test]
    fn is_bounded() {
        let mut envelope = Envelope::default();
        envelope.begin(None, None, BodyType::SevenBit);
        let recipient = format!("{}@example.org", "r".repeat(60));
        let recipient = mailbox(recipient.as_bytes()).expect("valid");
        let mut count = 0;
        while envelope.add_recipient(&recipient, None) {
            count += 1;
        }
        assert_eq!(envelope.recipient_count(), count);
        assert!((3000..4000).contains(&count), "{count}");
    }
}
