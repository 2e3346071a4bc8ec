//! The envelope of a record: tagged fields in a fixed order, each a tag, 1 octet, the length, 4
//! (little-endian), and the value.
//!
//! | field | tag | value |
//! |---|---|---|
//! | reverse-path | 1 | without brackets; empty is the null reverse-path |
//! | RET | 6 | 0 `FULL`, 1 `HDRS`; left out when not given |
//! | ENVID | 7 | as written; left out when not given |
//! | AUTH | 10 | as written; left out when not given |
//! | recipient | 2 | any number of them, each with what applies to it behind it |
//! | its NOTIFY | 8 | the bits of [`Notify`]; left out when not given |
//! | its ORCPT | 9 | as written; left out when not given |
//! | body type | 3 | 0 `7BIT`, 1 `8BITMIME` |
//! | EHLO's argument | 5 | |
//! | client | 4 | its address, as text |
//! | outcomes | 11 | of a record that was written again: what was known of its recipients ([`super::outcome`]) |
//!
//! What does not read like this was not written by this version, and is not half understood:
//! decoding fails as a whole.

use super::record::NewMessage;
use crate::smtp::dsn::{Notify, Ret};
use crate::smtp::envelope::BodyType;
pub use crate::smtp::envelope::Recipient as StoredRecipient;
use std::io::Write as _;

const TAG_REVERSE_PATH: u8 = 1;
const TAG_RECIPIENT: u8 = 2;
const TAG_BODY_TYPE: u8 = 3;
const TAG_CLIENT: u8 = 4;
const TAG_HELLO: u8 = 5;
const TAG_RET: u8 = 6;
const TAG_ENVID: u8 = 7;
const TAG_NOTIFY: u8 = 8;
const TAG_ORCPT: u8 = 9;
const TAG_AUTH: u8 = 10;
const TAG_OUTCOMES: u8 = 11;

/// Octets of a field without its value.
pub(super) const FIELD_OCTETS: usize = 5;
/// The longest address as text, with its scope: more than `to_string` makes of any.
const CLIENT_MAX_OCTETS: usize = 48;

/// A stored envelope: a view of its octets, which were checked when it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredEnvelope<'a> {
    reverse_path: &'a [u8],
    ret: Option<Ret>,
    envid: Option<&'a [u8]>,
    auth: Option<&'a [u8]>,
    recipient_count: usize,
    /// The first recipient's field, and all behind it.
    recipients: Fields<'a>,
    body_type: BodyType,
    hello: &'a [u8],
    client: &'a [u8],
    outcomes: &'a [u8],
}

/// Appends the message's envelope to `out`.
pub fn encode_envelope(out: &mut Vec<u8>, message: &NewMessage<'_>) {
    let envelope = message.envelope;
    put(out, TAG_REVERSE_PATH, envelope.reverse_path());
    if let Some(ret) = envelope.ret() {
        put(out, TAG_RET, &[u8::from(ret == Ret::Headers)]);
    }
    if let Some(envid) = envelope.envid() {
        put(out, TAG_ENVID, envid);
    }
    if let Some(auth) = envelope.auth() {
        put(out, TAG_AUTH, auth);
    }
    for recipient in envelope.recipients() {
        put(out, TAG_RECIPIENT, recipient.path);
        if let Some(notify) = recipient.notify {
            put(out, TAG_NOTIFY, &[notify.bits()]);
        }
        if let Some(orcpt) = recipient.orcpt {
            put(out, TAG_ORCPT, orcpt);
        }
    }
    put(out, TAG_BODY_TYPE, &[body_type_number(envelope.body_type())]);
    put(out, TAG_HELLO, message.hello);
    put(out, TAG_CLIENT, b"");
    let value = out.len();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{}", message.client);
    let octets = u32::try_from(out.len() - value).unwrap_or(u32::MAX);
    out[value - 4..value].copy_from_slice(&octets.to_le_bytes());
}

/// Appends an envelope as it stands in a record that is written again: with these outcomes, and not those
/// that it may have had.
pub fn encode_again(out: &mut Vec<u8>, octets: &[u8], outcomes: &[u8]) {
    let before = StoredEnvelope::decode(octets).map_or(0, |envelope| match envelope.outcomes.len() {
        0 => 0,
        outcomes => FIELD_OCTETS + outcomes,
    });
    out.extend_from_slice(&octets[..octets.len() - before]);
    if !outcomes.is_empty() {
        put(out, TAG_OUTCOMES, outcomes);
    }
}

/// Octets that the message's envelope takes at most, for planning.
pub fn envelope_octets(message: &NewMessage<'_>) -> usize {
    let envelope = message.envelope;
    let field = |value: Option<&[u8]>| value.map_or(0, |value| FIELD_OCTETS + value.len());
    let recipients: usize = envelope
        .recipients()
        .map(|recipient| field(Some(recipient.path)) + FIELD_OCTETS + 1 + field(recipient.orcpt))
        .sum();
    // RET and the body type, an octet each.
    let fixed = 2 * (FIELD_OCTETS + 1) + FIELD_OCTETS + CLIENT_MAX_OCTETS;
    fixed
        + field(Some(envelope.reverse_path()))
        + field(envelope.envid())
        + field(envelope.auth())
        + field(Some(message.hello))
        + recipients
}

fn body_type_number(body_type: BodyType) -> u8 {
    match body_type {
        BodyType::SevenBit => 0,
        BodyType::EightBitMime => 1,
        BodyType::BinaryMime => 2,
    }
}

fn put(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(value);
}

impl<'a> StoredEnvelope<'a> {
    /// Takes an envelope apart; `None`: it is not what this version writes.
    pub fn decode(octets: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(octets);
        let reverse_path = fields.take(TAG_REVERSE_PATH)?;
        let ret = match fields.take(TAG_RET) {
            None => None,
            Some([0]) => Some(Ret::Full),
            Some([1]) => Some(Ret::Headers),
            Some(_) => return None,
        };
        let envid = fields.take(TAG_ENVID);
        let auth = fields.take(TAG_AUTH);
        let recipients = fields;
        let mut recipient_count = 0;
        while fields.next_is(TAG_RECIPIENT) {
            fields.take_recipient()?;
            recipient_count += 1;
        }
        let body_type = match fields.take(TAG_BODY_TYPE)? {
            [0] => BodyType::SevenBit,
            [1] => BodyType::EightBitMime,
            [2] => BodyType::BinaryMime,
            _ => return None,
        };
        let hello = fields.take(TAG_HELLO)?;
        let client = fields.take(TAG_CLIENT)?;
        let outcomes = fields.take(TAG_OUTCOMES).unwrap_or_default();
        let whole = fields.0.is_empty();
        whole.then_some(StoredEnvelope {
            reverse_path,
            ret,
            envid,
            auth,
            recipient_count,
            recipients,
            body_type,
            hello,
            client,
            outcomes,
        })
    }

    /// The reverse-path without brackets; empty is the null reverse-path.
    pub fn reverse_path(&self) -> &'a [u8] {
        self.reverse_path
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
    pub fn envid(&self) -> Option<&'a [u8]> {
        self.envid
    }

    /// `AUTH=`, as written.
    pub fn auth(&self) -> Option<&'a [u8]> {
        self.auth
    }

    /// The client's address, as text.
    pub fn client(&self) -> &'a [u8] {
        self.client
    }

    /// The argument of EHLO or HELO.
    pub fn hello(&self) -> &'a [u8] {
        self.hello
    }

    /// What was known of the recipients when the record was written again.
    pub fn outcomes(&self) -> &'a [u8] {
        self.outcomes
    }

    /// How many forward-paths there are.
    pub fn recipient_count(&self) -> usize {
        self.recipient_count
    }

    /// The forward-paths in the order given.
    pub fn recipients(&self) -> impl Iterator<Item = StoredRecipient<'a>> + use<'a> {
        let mut fields = self.recipients;
        (0..self.recipient_count).map_while(move |_| fields.take_recipient())
    }
}

/// Fields not yet read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// Takes the next field if it has this tag. One that is cut off stays, and nobody takes it.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (length, rest) = self.0.strip_prefix(&[tag])?.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.0 = rest;
        Some(value)
    }

    fn take_recipient(&mut self) -> Option<StoredRecipient<'a>> {
        let path = self.take(TAG_RECIPIENT)?;
        let notify = match self.take(TAG_NOTIFY) {
            None => None,
            Some(&[bits]) => Some(Notify::from_bits(bits)?),
            Some(_) => return None,
        };
        Some(StoredRecipient { path, notify, orcpt: self.take(TAG_ORCPT) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Body;
    use super::*;
    use crate::smtp::QueueId;
    use crate::smtp::address::mailbox;
    use crate::smtp::envelope::{Envelope, RecipientParameters, SenderParameters};
    use proptest::prelude::*;

    fn encoded(envelope: &Envelope) -> Vec<u8> {
        let message = NewMessage {
            id: QueueId::from_number(7),
            arrived_unix_ms: 8,
            envelope,
            client: "2001:db8:1111:2222:3333:4444:5555:6666".parse().expect("an address"),
            hello: b"client",
            body: Body::Inline(b""),
        };
        let mut out = Vec::new();
        encode_envelope(&mut out, &message);
        assert!(out.len() <= envelope_octets(&message));
        out
    }

    fn plain() -> Envelope {
        let mut envelope = Envelope::default();
        envelope.begin(mailbox(b"s@a.b").as_ref(), None, SenderParameters::default());
        assert!(envelope.add_recipient(&mailbox(b"r@c.d").expect("valid"), None, RecipientParameters::default()));
        envelope
    }

    fn asking() -> Envelope {
        let mut envelope = Envelope::default();
        let sender = SenderParameters {
            body_type: BodyType::EightBitMime,
            ret: Some(Ret::Headers),
            envid: Some(b"QQ+2B314159"),
            auth: Some(b"one+3D@c.d"),
        };
        envelope.begin(mailbox(b"s@a.b").as_ref(), None, sender);
        let asked = [
            (&b"one@c.d"[..], None, None),
            (b"two@c.d", Some(Notify::NEVER), None),
            (b"three@c.d", Some(Notify::SUCCESS.and(Notify::DELAY)), Some(&b"rfc822;3@c.d"[..])),
            (b"four@c.d", None, Some(b"x400;4")),
        ];
        for (path, notify, orcpt) in asked {
            let parameters = RecipientParameters { notify, orcpt };
            assert!(envelope.add_recipient(&mailbox(path).expect("valid"), None, parameters));
        }
        envelope
    }

    #[test]
    fn envelope_is_read_back() {
        for envelope in [plain(), asking()] {
            let octets = encoded(&envelope);
            let stored = StoredEnvelope::decode(&octets).expect("an envelope");
            assert_eq!(stored.reverse_path(), envelope.reverse_path());
            assert_eq!((stored.ret(), stored.envid()), (envelope.ret(), envelope.envid()));
            assert_eq!(stored.auth(), envelope.auth());
            assert_eq!(stored.body_type(), envelope.body_type());
            assert_eq!(stored.recipient_count(), envelope.recipient_count());
            assert!(stored.recipients().eq(envelope.recipients()));
            assert_eq!(
                (stored.client(), stored.hello()),
                (&b"2001:db8:1111:2222:3333:4444:5555:6666"[..], &b"client"[..])
            );
        }
    }

    #[test]
    fn a_piece_is_no_envelope() {
        let octets = encoded(&asking());
        for cut in 0..octets.len() {
            assert_eq!(StoredEnvelope::decode(&octets[..cut]), None, "cut at {cut}");
        }
        assert_eq!(StoredEnvelope::decode(&[&octets[..], &octets[..]].concat()), None);
    }

    #[test]
    fn outcomes_are_those_of_the_last_writing() {
        for envelope in [plain(), asking()] {
            let octets = encoded(&envelope);
            let mut before = octets.clone();
            for outcomes in [&b""[..], b"some", b"", b"others"] {
                let mut again = Vec::new();
                encode_again(&mut again, &before, outcomes);
                let stored = StoredEnvelope::decode(&again).expect("an envelope");
                assert_eq!(stored.outcomes(), outcomes);
                assert!(stored.recipients().eq(envelope.recipients()));
                let mut without = Vec::new();
                encode_again(&mut without, &again, b"");
                assert_eq!(without, octets);
                before = again;
            }
        }
    }

    /// The encoding of spools that exist: changing it means another format version.
    #[test]
    fn octets_stay_what_they_are() {
        let mut wanted =
            b"\x01\x05\0\0\0s@a.b\x02\x05\0\0\0r@c.d\x03\x01\0\0\0\0\x05\x06\0\0\0client\x04\x26\0\0\0".to_vec();
        wanted.extend_from_slice(b"2001:db8:1111:2222:3333:4444:5555:6666");
        assert_eq!(encoded(&plain()).escape_ascii().to_string(), wanted.escape_ascii().to_string());
        let octets = encoded(&asking());
        let wanted = b"\x01\x05\0\0\0s@a.b\x06\x01\0\0\0\x01\x07\x0b\0\0\0QQ+2B314159\
                       \x0a\x0a\0\0\0one+3D@c.d\x02\x07\0\0\0one@c.d\
                       \x02\x07\0\0\0two@c.d\x08\x01\0\0\0\0\
                       \x02\x09\0\0\0three@c.d\x08\x01\0\0\0\x05\x09\x0c\0\0\0rfc822;3@c.d\
                       \x02\x08\0\0\0four@c.d\x09\x06\0\0\0x400;4\x03\x01\0\0\0\x01";
        assert_eq!(octets[..wanted.len()].escape_ascii().to_string(), wanted.escape_ascii().to_string());
    }

    #[test]
    fn strange_values_are_refused() {
        let octets = encoded(&asking());
        let at = |field: &[u8]| memchr::memmem::find(&octets, field).expect("the field") + FIELD_OCTETS;
        let places = [at(b"\x06\x01\0\0\0\x01"), at(b"\x08\x01\0\0\0\x05"), at(b"\x03\x01\0\0\0\x01")];
        for (place, least) in places.into_iter().zip([2, 8, 3]) {
            for value in 0..=255 {
                let mut changed = octets.clone();
                changed[place] = value;
                assert_eq!(StoredEnvelope::decode(&changed).is_some(), value < least, "{value} at {place}");
            }
        }
        // NOTIFY belongs to a recipient.
        let mut changed = octets.clone();
        changed[at(b"\x06\x01\0\0\0\x01") - FIELD_OCTETS] = TAG_NOTIFY;
        assert_eq!(StoredEnvelope::decode(&changed), None);
    }

    /// A full envelope fits into a record however short its recipients: the limits count on it.
    #[test]
    fn a_full_envelope_takes_at_most_twice_its_octets() {
        let asked = [(None, None), (Some(Notify::DELAY), None), (Some(Notify::DELAY), Some(&b"a;b"[..]))];
        for (notify, orcpt) in asked {
            let mut envelope = Envelope::default();
            envelope.begin(None, None, SenderParameters::default());
            let shortest = mailbox(b"a").expect("valid");
            while envelope.add_recipient(&shortest, None, RecipientParameters { notify, orcpt }) {}
            let octets = encoded(&envelope);
            assert!(octets.len() <= 2 * crate::limits::ENVELOPE_MAX_OCTETS, "{}", octets.len());
            assert!(
                StoredEnvelope::decode(&octets).is_some_and(|stored| stored.recipients().eq(envelope.recipients()))
            );
        }
    }

    /// What is read of `octets` is all of them: written again they are the same.
    fn assert_whole(octets: &[u8]) {
        let Some(stored) = StoredEnvelope::decode(octets) else { return };
        let recipients: Vec<_> = stored.recipients().collect();
        assert_eq!(recipients.len(), stored.recipient_count());
        let mut again = Vec::new();
        put(&mut again, 1, stored.reverse_path());
        stored.ret().iter().for_each(|ret| put(&mut again, 6, &[u8::from(*ret == Ret::Headers)]));
        stored.envid().iter().for_each(|envid| put(&mut again, 7, envid));
        stored.auth().iter().for_each(|auth| put(&mut again, 10, auth));
        for recipient in recipients {
            put(&mut again, 2, recipient.path);
            recipient.notify.iter().for_each(|notify| put(&mut again, 8, &[notify.bits()]));
            recipient.orcpt.iter().for_each(|orcpt| put(&mut again, 9, orcpt));
        }
        put(&mut again, 3, &[body_type_number(stored.body_type())]);
        put(&mut again, 5, stored.hello());
        put(&mut again, 4, stored.client());
        if !stored.outcomes().is_empty() || octets.len() == again.len() + FIELD_OCTETS {
            put(&mut again, 11, stored.outcomes());
        }
        assert_eq!(again, octets);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// Whatever happens to the octets, they are refused, or read to the last.
        #[test]
        fn changed_octets_are_refused_or_read_whole(
            changes in proptest::collection::vec(
                (any::<proptest::sample::Index>(), prop_oneof![0..10_u8, any::<u8>()], 0..3_u8), 0..4),
        ) {
            let mut octets = encoded(&asking());
            for (place, octet, how) in changes {
                let at = place.index(octets.len());
                match how {
                    0 => octets[at] = octet,
                    1 => octets.insert(at, octet),
                    _ => drop(octets.remove(at)),
                }
            }
            assert_whole(&octets);
        }
    }
}
