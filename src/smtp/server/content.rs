//! The content of a message that arrives, by DATA or in chunks: what is measured while it streams,
//! and the judgement at its end.

use super::profile::Profile;
use crate::smtp::data::Decoder;
use crate::smtp::header::MissingFields;
use crate::smtp::header_scan::HeaderScan;
use crate::smtp::reply::Reply;

/// A message between its first octet and its last.
#[derive(Debug, Default)]
pub struct Content {
    /// Of DATA; chunks are verbatim.
    pub decoder: Decoder,
    scan: HeaderScan,
    /// Octets as the client counts them: without the dots of DATA, before line ends are mended.
    octets: u64,
    /// It could not be kept.
    is_lost: bool,
    /// It will be refused: no more of it is passed on.
    is_spoilt: bool,
}

/// What to do with a piece of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Pass it on.
    Yes,
    /// Throw away what was passed on: the message will be refused.
    NoMore,
    /// It is thrown away already.
    No,
}

impl Content {
    /// Measures a piece as it is stored; `octets`: the message's size so far.
    pub fn add(&mut self, piece: &[u8], octets: u64, profile: &Profile) -> Keep {
        self.octets = octets;
        self.scan.step(piece, &profile.local_names);
        if self.is_spoilt {
            return Keep::No;
        }
        if self.refusal(profile).is_some() || self.circular(profile).is_some() {
            self.is_spoilt = true;
            return Keep::NoMore;
        }
        Keep::Yes
    }

    /// The fields that its header lacks; `None` while it has not ended.
    pub fn missing_fields(&self) -> Option<MissingFields> {
        self.scan.missing_fields()
    }

    /// Its size so far.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// A piece that was passed on could not be kept, and nothing is kept of the message.
    pub fn lose(&mut self) {
        self.is_lost = true;
        self.is_spoilt = true;
    }

    /// The reply at the end of a chunk that is not the last, when the message is refused.
    ///
    //= [MS-OXSMTP] 3.2.7 HeaderSizeExceeded, MessageSizeExceeded: at the end of each chunk.
    pub fn refusal(&self, profile: &Profile) -> Option<Reply> {
        self.header_oversize(profile).or_else(|| self.oversize(profile)).or_else(|| self.loss())
    }

    /// The reply at the message's end, when it is refused: in the order of CONFORMANCE C.
    pub fn refusal_at_end(&mut self, profile: &Profile) -> Option<Reply> {
        self.scan.end(&profile.local_names);
        let header = self.header_oversize(profile).or_else(|| self.circular(profile));
        header.or_else(|| self.oversize(profile)).or_else(|| self.loss())
    }

    fn header_oversize(&self, profile: &Profile) -> Option<Reply> {
        profile.header_size_max.is_some_and(|max| self.scan.octets() > max).then_some(Reply::HeaderTooLarge)
    }

    fn oversize(&self, profile: &Profile) -> Option<Reply> {
        profile.message_size_max.is_some_and(|max| self.octets > max).then_some(Reply::MessageTooLarge)
    }

    fn loss(&self) -> Option<Reply> {
        self.is_lost.then_some(Reply::InsufficientResources)
    }

    //= [MS-OXSMTP] 3.2.7 MaxHopCount, MaxLocalHopCount: the fields on arrival, ours is not yet there.
    fn circular(&self, profile: &Profile) -> Option<Reply> {
        if profile.hops_max.is_some_and(|max| self.scan.hops() > max) {
            return Some(Reply::TooManyHops);
        }
        profile.local_hops_max.is_some_and(|max| self.scan.local_hops() > max).then_some(Reply::TooManyLocalHops)
    }
}
