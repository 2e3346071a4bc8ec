//! Asking whether a client is on a DNS block list (E15): the control thread has the resolver.
//!
//! A shard never waits for that thread: what is asked goes into a bounded queue without a lock, and the
//! answer comes with a nudge. Where too many wait already, or no answer comes in time, the client is
//! taken as one that is on no list: a name server that fails must not stop mail.

use super::net::{Ready, RemoteNudge};
use super::stream::Stream;
use super::{Context, Stage};
use crate::limits::{DNSBL_WAIT_MS, DNSBL_WAITING_MAX};
use crate::policy::{BlockListZone, Listing};
use crossbeam_queue::ArrayQueue;
use futures_channel::oneshot;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A client that waits to be looked up.
#[derive(Debug)]
pub struct Lookup {
    /// Whom to look up.
    pub client: IpAddr,
    /// Where.
    pub zones: Arc<[BlockListZone]>,
    answer: oneshot::Sender<Listing>,
    nudge: RemoteNudge,
}

impl Lookup {
    /// Whether the session has stopped waiting.
    pub fn is_given_up(&self) -> bool {
        self.answer.is_canceled()
    }

    /// Tells the session that waits.
    pub fn answer(self, listing: Listing) {
        // The session may be gone.
        let _ = self.answer.send(listing);
        self.nudge.nudge();
    }
}

/// Clients on their way from the shards to the control thread.
#[derive(Debug)]
pub struct Lookups {
    waiting: ArrayQueue<Lookup>,
    /// Two ends of a wire: an octet on it tells that there is one more. (A channel of the control thread's
    /// executor would take a lock of that thread's to wake it.)
    wire: [UnixStream; 2],
}

impl Lookups {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        let (ring, bell) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        Ok(Lookups { waiting: ArrayQueue::new(DNSBL_WAITING_MAX), wire: [ring, bell] })
    }

    /// What can be read from when one was added.
    pub fn bell(&self) -> io::Result<UnixStream> {
        self.wire[1].try_clone()
    }

    /// The next one.
    pub fn next(&self) -> Option<Lookup> {
        self.waiting.pop()
    }

    /// False when there is no room for one more.
    fn push(&self, lookup: Lookup) -> bool {
        let has_room = self.waiting.push(lookup).is_ok();
        if has_room {
            // A wire that is full rings already.
            let _ = (&self.wire[0]).write(&[0]);
        }
        has_room
    }
}

/// Whether the client is on a list, as far as that can be told in time.
pub async fn is_listed(context: &Context, stream: &Stream, client: IpAddr, zones: &Arc<[BlockListZone]>) -> bool {
    let listing = look_up(context, stream, client, zones.clone()).await;
    let lookups = &context.metrics.dnsbl_lookups;
    let result = match listing {
        Some(Listing::Listed) => &lookups.listed,
        Some(Listing::Clean) => &lookups.clean,
        Some(Listing::Failed) => &lookups.failed,
        None => &lookups.skipped,
    };
    result.increment(1);
    listing == Some(Listing::Listed)
}

/// `None`: it was not asked for, or the wait was cut short.
async fn look_up(context: &Context, stream: &Stream, client: IpAddr, zones: Arc<[BlockListZone]>) -> Option<Listing> {
    let (answer, mut listing) = oneshot::channel();
    if !context.lookups.push(Lookup { client, zones, answer, nudge: stream.nudge().remote() }) {
        return None;
    }
    stream.set_deadline(Some(context.net.now() + Duration::from_millis(DNSBL_WAIT_MS)));
    loop {
        match listing.try_recv() {
            Ok(Some(listing)) => return Some(listing),
            Ok(None) => {}
            Err(oneshot::Canceled) => return Some(Listing::Failed),
        }
        // The bell may have rung for it before this wait began.
        if context.shared.stage() == Stage::Ending {
            return None;
        }
        match stream.held().await {
            Ready::Bell => {}
            Ready::Deadline => return Some(Listing::Failed),
            // The client is gone, which the next write notices.
            Ready::Socket => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::net::Doorbell;
    use super::*;
    use std::io::Read as _;

    fn lookup(octet: u8) -> (Lookup, oneshot::Receiver<Listing>) {
        let (answer, listing) = oneshot::channel();
        let nudge = RemoteNudge::of(Doorbell::new().expect("a descriptor"));
        (Lookup { client: IpAddr::from([192, 0, 2, octet]), zones: [].into(), answer, nudge }, listing)
    }

    #[test]
    fn in_their_order_and_no_more_than_there_is_room_for() {
        let lookups = Lookups::new().expect("descriptors");
        let mut bell = lookups.bell().expect("a descriptor");
        assert!(bell.read(&mut [0]).is_err(), "nobody has rung");
        let mut sessions = Vec::new();
        for number in 0..DNSBL_WAITING_MAX {
            let (lookup, session) = lookup(number as u8);
            assert!(lookups.push(lookup));
            sessions.push(session);
        }
        let (one_more, mut session) = lookup(0);
        assert!(!lookups.push(one_more));
        assert!(session.try_recv().is_err(), "nobody will answer it");
        assert!(bell.read(&mut [0]).is_ok());
        for (number, mut session) in sessions.into_iter().enumerate() {
            let lookup = lookups.next().expect("as many as were taken");
            assert_eq!(lookup.client, IpAddr::from([192, 0, 2, number as u8]));
            lookup.answer(Listing::Listed);
            assert_eq!(session.try_recv(), Ok(Some(Listing::Listed)));
        }
        assert!(lookups.next().is_none());
    }

    #[test]
    fn a_session_that_has_gone() {
        let (lookup, session) = lookup(1);
        assert!(!lookup.is_given_up());
        drop(session);
        assert!(lookup.is_given_up());
        lookup.answer(Listing::Clean);
    }
}
