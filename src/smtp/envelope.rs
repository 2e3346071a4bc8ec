//! The envelope of a transaction: reverse-path, forward-paths and what came with them.
//!
//! Texts stand one after the other in a single buffer that is used again for the next transaction,
//! so a command costs no allocation once a session is warm.

use super::address::Mailbox;
use super::dsn::{Notify, Ret};
use crate::limits::{ENVELOPE_MAX_OCTETS, KEPT_BUFFER_OCTETS};

/// `BODY=` of MAIL (RFC 6152, RFC 3030).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyType {
    /// Not given, or `7BIT`.
    #[default]
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
    /// `BINARYMIME` (RFC 3030): octets that are no lines, for BDAT only.
    BinaryMime,
}

/// What came with a reverse-path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderParameters<'a> {
    /// `BODY=`.
    pub body_type: BodyType,
    /// `RET=`.
    pub ret: Option<Ret>,
    /// `ENVID=`, as written: xtext, never empty.
    pub envid: Option<&'a [u8]>,
    /// `AUTH=` (RFC 4954 section 5), as written: xtext, or `<>`.
    pub auth: Option<&'a [u8]>,
}

/// What came with a forward-path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecipientParameters<'a> {
    /// `NOTIFY=`.
    pub notify: Option<Notify>,
    /// `ORCPT=`, as written: address type and xtext, never empty.
    pub orcpt: Option<&'a [u8]>,
}

/// A forward-path and what came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// The path without brackets.
    pub path: &'a [u8],
    /// `NOTIFY=`.
    pub notify: Option<Notify>,
    /// `ORCPT=`, as written.
    pub orcpt: Option<&'a [u8]>,
}

/// Reverse-path, forward-paths and their parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse-path, ENVID, AUTH, then each forward-path with its ORCPT.
    text: Vec<u8>,
    reverse_path_end: usize,
    envid_end: usize,
    auth_end: usize,
    forward: Vec<Forward>,
    body_type: BodyType,
    ret: Option<Ret>,
}

/// Where a forward-path stands in the text: behind its predecessor, its ORCPT behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forward {
    end: u32,
    path_octets: u16,
    notify: Option<Notify>,
}

impl Envelope {
    /// Starts a transaction. `None` is the null reverse-path; `default_domain` qualifies an
    /// unqualified mailbox.
    pub fn begin(
        &mut self,
        reverse_path: Option<&Mailbox<'_>>,
        default_domain: Option<&str>,
        parameters: SenderParameters<'_>,
    ) {
        self.clear();
        self.body_type = parameters.body_type;
        self.ret = parameters.ret;
        if let Some(mailbox) = reverse_path {
            self.push(mailbox, default_domain);
        }
        self.reverse_path_end = self.text.len();
        self.text.extend_from_slice(parameters.envid.unwrap_or_default());
        self.envid_end = self.text.len();
        self.text.extend_from_slice(parameters.auth.unwrap_or_default());
        self.auth_end = self.text.len();
    }

    /// Adds a forward-path. False: the envelope is full, and as it was.
    #[must_use]
    pub fn add_recipient(
        &mut self,
        mailbox: &Mailbox<'_>,
        default_domain: Option<&str>,
        parameters: RecipientParameters<'_>,
    ) -> bool {
        let before = self.text.len();
        self.push(mailbox, default_domain);
        let path_octets = self.text.len() - before;
        self.text.extend_from_slice(parameters.orcpt.unwrap_or_default());
        let fits = self.text.len() + (self.forward.len() + 1) * size_of::<Forward>() <= ENVELOPE_MAX_OCTETS;
        match (u32::try_from(self.text.len()), u16::try_from(path_octets)) {
            (Ok(end), Ok(path_octets)) if fits => {
                self.forward.push(Forward { end, path_octets, notify: parameters.notify });
                true
            }
            _ => {
                self.text.truncate(before);
                false
            }
        }
    }

    /// Takes the last forward-path back: its recipient was refused.
    pub fn remove_last_recipient(&mut self) {
        self.forward.pop();
        self.text.truncate(self.start_of(self.forward.len()));
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
        self.forward.clear();
        self.forward.shrink_to(KEPT_BUFFER_OCTETS / size_of::<Forward>());
        self.reverse_path_end = 0;
        self.envid_end = 0;
        self.auth_end = 0;
        self.body_type = BodyType::default();
        self.ret = None;
    }

    /// The reverse-path without brackets; empty is the null reverse-path.
    pub fn reverse_path(&self) -> &[u8] {
        &self.text[..self.reverse_path_end]
    }

    /// The forward-paths in the order given.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = Recipient<'_>> {
        self.forward.iter().enumerate().map(|(index, forward)| {
            let text = &self.text[self.start_of(index)..forward.end as usize];
            let (path, orcpt) = text.split_at(usize::from(forward.path_octets));
            Recipient { path, notify: forward.notify, orcpt: given(orcpt) }
        })
    }

    /// Where the text of the recipient with this index begins.
    fn start_of(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(self.auth_end, |before| self.forward[before].end as usize)
    }

    /// How many forward-paths there are.
    pub fn recipient_count(&self) -> usize {
        self.forward.len()
    }

    /// The forward-path that was added last.
    pub fn last_recipient(&self) -> Option<&[u8]> {
        let index = self.forward.len().checked_sub(1)?;
        let begin = self.start_of(index);
        self.text.get(begin..begin + usize::from(self.forward[index].path_octets))
    }

    /// `BODY=`.
    pub fn body_type(&self) -> BodyType {
        self.body_type
    }

    /// `RET=`.
    pub fn ret(&self) -> Option<Ret> {
        self.ret
    }

    /// `ENVID=`, as written.
    pub fn envid(&self) -> Option<&[u8]> {
        given(&self.text[self.reverse_path_end..self.envid_end])
    }

    /// `AUTH=`, as written.
    pub fn auth(&self) -> Option<&[u8]> {
        given(&self.text[self.envid_end..self.auth_end])
    }
}

/// A parameter's value has an octet at least (RFC 5321 section 4.1.2, esmtp-value).
fn given(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::mailbox;

    fn paths(envelope: &Envelope) -> Vec<String> {
        envelope.recipients().map(|recipient| String::from_utf8(recipient.path.to_vec()).expect("ASCII")).collect()
    }

    #[test]
    fn holds_what_was_added() {
        let mut envelope = Envelope::default();
        envelope.begin(mailbox(b"s@a.b").as_ref(), None, SenderParameters::default());
        assert!(envelope.add_recipient(&mailbox(b"one@c.d").expect("valid"), None, RecipientParameters::default()));
        assert!(envelope.add_recipient(&mailbox(b"two").expect("valid"), Some("e.f"), RecipientParameters::default()));
        assert!(envelope.add_recipient(&mailbox(b"Postmaster").expect("valid"), None, RecipientParameters::default()));
        assert_eq!(envelope.reverse_path(), b"s@a.b");
        assert_eq!(paths(&envelope), ["one@c.d", "two@e.f", "Postmaster"]);
        envelope.remove_last_recipient();
        assert_eq!(paths(&envelope), ["one@c.d", "two@e.f"]);
        envelope.begin(None, None, SenderParameters::default());
        assert_eq!(envelope.reverse_path(), b"");
        assert_eq!(envelope.recipient_count(), 0);
        assert!(envelope.add_recipient(&mailbox(b"one@c.d").expect("valid"), None, RecipientParameters::default()));
        envelope.remove_last_recipient();
        assert_eq!(paths(&envelope), Vec::<String>::new());
    }

    #[test]
    fn holds_what_came_with_the_paths() {
        let mut envelope = Envelope::default();
        let (sender, recipient) = (mailbox(b"s@a.b"), mailbox(b"one@c.d").expect("valid"));
        let parameters = SenderParameters {
            body_type: BodyType::EightBitMime,
            ret: Some(Ret::Full),
            envid: Some(b"id"),
            auth: None,
        };
        let asked = [
            RecipientParameters { notify: Some(Notify::NEVER), orcpt: Some(b"rfc822;x") },
            RecipientParameters::default(),
            RecipientParameters { notify: None, orcpt: Some(b"rfc822;y") },
            RecipientParameters { notify: Some(Notify::DELAY), orcpt: None },
        ];
        for (envid, auth) in
            [(Some(&b"id"[..]), Some(&b"<>"[..])), (None, Some(b"a@b")), (Some(b"id"), None), (None, None)]
        {
            envelope.begin(sender.as_ref(), None, SenderParameters { envid, auth, ..parameters });
            assert_eq!((envelope.reverse_path(), envelope.envid()), (&b"s@a.b"[..], envid));
            assert_eq!(envelope.auth(), auth);
            assert_eq!((envelope.ret(), envelope.body_type()), (Some(Ret::Full), BodyType::EightBitMime));
            for parameters in asked {
                assert!(envelope.add_recipient(&recipient, None, parameters));
            }
            envelope.remove_last_recipient();
            assert!(envelope.add_recipient(&recipient, None, asked[0]));
            envelope.remove_last_recipient();
            assert!(envelope.add_recipient(&recipient, None, asked[3]));
            let wanted = asked.map(|asked| Recipient { path: b"one@c.d", notify: asked.notify, orcpt: asked.orcpt });
            assert_eq!(envelope.recipients().collect::<Vec<_>>(), wanted);
        }
        envelope.begin(None, None, SenderParameters::default());
        assert_eq!((envelope.ret(), envelope.envid(), envelope.body_type()), (None, None, BodyType::SevenBit));
        assert_eq!(envelope.recipients().count(), 0);
    }

    #[test]
    fn is_bounded() {
        let mut envelope = Envelope::default();
        envelope.begin(None, None, SenderParameters::default());
        let recipient = format!("{}@example.org", "r".repeat(60));
        let recipient = mailbox(recipient.as_bytes()).expect("valid");
        let mut count = 0;
        while envelope.add_recipient(&recipient, None, RecipientParameters::default()) {
            count += 1;
        }
        assert_eq!(envelope.recipient_count(), count);
        assert!((3000..4000).contains(&count), "{count}");
        // ORCPT counts, and a full envelope loses nothing.
        envelope.remove_last_recipient();
        let parameters = RecipientParameters { notify: None, orcpt: Some(&[b'x'; 500]) };
        assert!(!envelope.add_recipient(&recipient, None, parameters));
        assert!(envelope.add_recipient(&recipient, None, RecipientParameters::default()));
        assert!(envelope.recipients().all(|recipient| recipient.path.len() == 72 && recipient.orcpt.is_none()));
    }
}
