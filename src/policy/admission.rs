//! Who is let in: the checks before the banner, in their order, and the counts they are made with.

use super::blocks::DynamicBlocks;
use super::marks::TarpitMarks;
use super::ranges::AddressRanges;
use super::source::{Source, SourceHasher, canonical};
use super::table::{ConnectionCounter, ConnectionTable, RateTable, SlotCount};
use crate::smtp::reply::Reply;
use crate::smtp::server::Role;
use std::net::IpAddr;

/// The rules of a binding that concern who may connect.
#[derive(Clone, Debug, Default)]
pub struct BindingRules {
    /// The server's role there: block lists are a gateway's.
    pub role: Role,
    /// The only addresses that may use it; `None`: all.
    pub allow: Option<AddressRanges>,
}

/// The facts that are the same for everybody who connects at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// The binding.
    pub rules: &'a BindingRules,
    /// Addresses that are always blocked.
    pub blocked: &'a AddressRanges,
    /// Addresses that are blocked for some time.
    pub blocked_for_a_time: &'a DynamicBlocks,
    /// Memory or the spool's disk is below its watermark, or the spool cannot be written to.
    pub resources_short: bool,
    /// The steady clock of the block list's expiries.
    pub now_ms: u64,
}

impl Door<'_> {
    /// The reply that a client is refused with by its address or for want of resources, if it is.
    /// What is counted comes after these: [`Sources::try_enter`], then [`Sources::try_connect`].
    ///
    //= [MS-OXSMTP] 3.2.7 IPAddressNotAllowed, BindingNotConfigured, OutOfResources: in this order.
    #[must_use]
    pub fn refusal(&self, client: IpAddr) -> Option<Reply> {
        let client = canonical(client);
        let lists_apply = self.rules.role == Role::Gateway;
        if lists_apply && self.blocked.contains(client) {
            Some(Reply::BlockedSource)
        } else if lists_apply && self.blocked_for_a_time.contains(client, self.now_ms) {
            Some(Reply::BlockedSourceForATime)
        } else if self.rules.allow.as_ref().is_some_and(|allowed| !allowed.contains(client)) {
            Some(Reply::NotConfigured)
        } else if self.resources_short {
            Some(Reply::OutOfResources)
        } else {
            None
        }
    }
}

/// The shared tables, and what makes an address a source. 0 as a cap is unlimited.
#[derive(Debug)]
pub struct Sources {
    hasher: SourceHasher,
    connections: ConnectionCounter,
    per_source: ConnectionTable,
    rates: RateTable,
    user_rates: RateTable,
    logons: RateTable,
    marks: TarpitMarks,
}

impl Sources {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(slots: SlotCount, ipv6_prefix: u8) -> Self {
        Sources {
            hasher: SourceHasher::new(slots, ipv6_prefix),
            connections: ConnectionCounter::new(),
            per_source: ConnectionTable::new(slots),
            rates: RateTable::new(slots),
            user_rates: RateTable::new(slots),
            logons: RateTable::new(slots),
            marks: TarpitMarks::new(slots),
        }
    }

    /// Counts a connection in the total, or says with which reply to refuse it. A place there is owed one
    /// [`Self::leave`].
    ///
    //= [MS-OXSMTP] 3.2.7 ConnectionCountExceeded: before ConnectionCountPerSource.
    pub fn try_enter(&self, total_max: u32) -> Result<(), Reply> {
        if self.connections.try_acquire(total_max) { Ok(()) } else { Err(Reply::TooManyConnections) }
    }

    /// Counts a connection that has a place in the total at its source too, or says with which reply to
    /// refuse it. A source is owed one [`Self::disconnect`], before its connection leaves the total.
    /// The two are counted apart because a proxy tells only later where its connection comes from.
    ///
    //= [MS-OXSMTP] 3.2.7 ConnectionCountPerSource
    pub fn try_connect(&self, client: IpAddr, per_source_max: u32) -> Result<Source, Reply> {
        let source = self.hasher.source(client);
        if self.per_source.try_acquire(source.slot, per_source_max) {
            Ok(source)
        } else {
            Err(Reply::TooManyConnectionsFromSource)
        }
    }

    /// A connection of this source has ended.
    pub fn disconnect(&self, source: Source) {
        self.per_source.release(source.slot);
    }

    /// A connection that was counted in the total has ended.
    pub fn leave(&self) {
        self.connections.release();
    }

    /// Counts one more message from this source, unless its rate is used up.
    ///
    //= [MS-OXSMTP] 3.2.7 MessageRateLimitExceeded
    #[must_use]
    pub fn try_count_message(&self, source: Source, now_ms: u64, per_minute_max: u32) -> bool {
        self.rates.try_count(source.slot, now_ms, per_minute_max)
    }

    /// The same for a user of a relay, whatever its address.
    #[must_use]
    pub fn try_count_message_of_user(&self, name: &str, now_ms: u64, per_minute_max: u32) -> bool {
        self.user_rates.try_count(self.hasher.slot_of_user(name), now_ms, per_minute_max)
    }

    /// Counts a logon of this source, unless too many have failed in this minute. One that succeeds
    /// is to be taken back: [`Self::logon_succeeded`].
    #[must_use]
    pub fn try_count_logon(&self, source: Source, now_ms: u64, failures_per_minute_max: u32) -> bool {
        self.logons.try_count(source.slot, now_ms, failures_per_minute_max)
    }

    /// A logon that was counted did not fail.
    pub fn logon_succeeded(&self, source: Source) {
        self.logons.uncount(source.slot);
    }

    /// A command of this source was refused: its next banner is to be late.
    ///
    //= [MS-OXSMTP] 3.2.7 Tarpit
    pub fn mark(&self, source: Source, now_ms: u64) {
        self.marks.mark(source.slot, source.fingerprint, now_ms);
    }

    /// Whether this source's banner is to be late: once after [`Self::mark`], and only for
    /// [`TARPIT_MARK_MS`](crate::limits::TARPIT_MARK_MS).
    #[must_use]
    pub fn take_mark(&self, source: Source, now_ms: u64) -> bool {
        self.marks.take(source.slot, source.fingerprint, now_ms)
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.current()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_range;

    fn ranges(items: &[&str]) -> AddressRanges {
        items.iter().map(|item| parse_range(item).expect("a range")).collect()
    }

    #[test]
    fn a_marked_source_is_late_once() {
        let sources = Sources::new(SlotCount::new(SlotCount::MIN).expect("a count"), 64);
        let connect = |client: &str| sources.try_connect(client.parse().expect("an address"), 0).expect("a place");
        let (marked, other) = (connect("2001:db8::1"), connect("2001:db8:0:1::1"));
        sources.mark(marked, 1000);
        sources.disconnect(marked);
        assert!(!sources.take_mark(other, 1001));
        let returned = connect("2001:db8::2");
        assert!(sources.take_mark(returned, 1001), "of the same network");
        assert!(!sources.take_mark(returned, 1001));
    }

    #[test]
    fn the_total_and_the_sources_are_counted_apart() {
        let sources = Sources::new(SlotCount::new(SlotCount::MIN).expect("a count"), 64);
        let connect = |client: &str| sources.try_connect(client.parse().expect("an address"), 1);
        // Four are in, three of which are known, two of one source: one of those is refused and leaves.
        (0..4).for_each(|_| sources.try_enter(4).expect("a place"));
        assert_eq!(sources.try_enter(4), Err(Reply::TooManyConnections));
        let (one, other) = (connect("192.0.2.1").expect("a place"), connect("2001:db8::1").expect("a place"));
        assert_eq!(connect("::ffff:192.0.2.1"), Err(Reply::TooManyConnectionsFromSource));
        assert_eq!(sources.connections(), 4, "a refusal gives up no place but its own, when it leaves");
        sources.leave();
        sources.try_enter(4).expect("its place");
        // A place that is given up before its source is known gives up no source.
        sources.leave();
        assert_eq!(connect("192.0.2.1"), Err(Reply::TooManyConnectionsFromSource));
        sources.disconnect(one);
        assert_eq!(connect("192.0.2.1"), Ok(one));
        for source in [one, other] {
            sources.disconnect(source);
            sources.leave();
        }
        sources.leave();
        assert_eq!(sources.connections(), 0);
    }

    #[test]
    fn in_their_order() {
        let blocked = ranges(&["192.0.2.0/24"]);
        let mut for_a_time = DynamicBlocks::default();
        for item in ["192.0.2.1", "198.51.100.0/24"] {
            for_a_time.add(parse_range(item).expect("a range"), 1000).expect("room");
        }
        let allow = Some(ranges(&["203.0.113.1", "192.0.2.0/24", "198.51.100.1"]));
        let gateway = BindingRules { role: Role::Gateway, allow: allow.clone() };
        let relay = BindingRules { role: Role::Relay, allow };
        let table = [
            (&gateway, "192.0.2.1", 0, false, Some(Reply::BlockedSource)),
            (&gateway, "::ffff:192.0.2.1", 0, true, Some(Reply::BlockedSource)),
            (&gateway, "198.51.100.1", 999, true, Some(Reply::BlockedSourceForATime)),
            (&gateway, "198.51.100.1", 1000, false, None),
            (&gateway, "198.51.100.2", 1000, true, Some(Reply::NotConfigured)),
            (&gateway, "203.0.113.1", 0, true, Some(Reply::OutOfResources)),
            (&gateway, "203.0.113.1", 0, false, None),
            (&relay, "192.0.2.1", 0, false, None),
            (&relay, "198.51.100.1", 0, true, Some(Reply::OutOfResources)),
            (&relay, "198.51.100.2", 0, true, Some(Reply::NotConfigured)),
        ];
        for (rules, client, now_ms, resources_short, expected) in table {
            let door = Door { rules, blocked: &blocked, blocked_for_a_time: &for_a_time, resources_short, now_ms };
            let client = client.parse().expect("an address");
            assert_eq!(door.refusal(client), expected, "{:?} {client} {now_ms} {resources_short}", rules.role);
        }
    }
}
