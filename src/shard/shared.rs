//! What all shards share: counts, rates, the configuration and the stage of the process's life. Plain
//! atomics, and snapshots that are replaced as a whole.

use super::outbound::Security;
use crate::config::{Config, Host, Limits, NextHopAddress};
use crate::delivery::{Availability, NextHopId, NextHopState};
use crate::limits::{NEXT_HOP_CROWDED_MS, SHARDS_MAX};
use crate::policy::{BindingRules, Door, DynamicBlocks, Source, Sources};
use crate::smtp::reply::Reply;
use crate::users::Users;
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// The stages of the process's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Serving = 0,
    /// No new connections; sessions end when their transaction does.
    Draining = 1,
    /// Sessions end now, save for a commit on its way.
    Ending = 2,
}

/// A configuration, and its number among those of this process.
#[derive(Debug)]
pub struct Edition {
    /// 0 is what the process was started with.
    pub number: u64,
    /// The configuration.
    pub config: Arc<Config>,
}

/// Shared by all shards and the control thread.
#[derive(Debug)]
pub struct Shared {
    /// Replaced as a whole by the control thread; each shard takes it when it is told to.
    edition: ArcSwap<Edition>,
    sources: Sources,
    /// Replaced as a whole by the control thread.
    blocks: ArcSwap<DynamicBlocks>,
    /// Who may authenticate. Replaced as a whole by the control thread.
    users: ArcSwapOption<Users>,
    /// How to speak TLS as a server: one for all shards, so that a session that began on one is
    /// resumed on another. Replaced as a whole by the control thread.
    tls: ArcSwapOption<ServerConfig>,
    /// Memory or the spool's disk is below its watermark.
    resources_short: AtomicBool,
    /// Shards whose storage fails.
    storage_failing: AtomicU32,
    /// Arrival of the oldest message in each shard's queue, in milliseconds since the Unix epoch; 0: none.
    oldest_arrivals: Box<[AtomicU64]>,
    /// All shards serve.
    is_serving: AtomicBool,
    /// Memory taken by messages that are arriving.
    body_octets: AtomicUsize,
    next_hops: Box<[NextHop]>,
    stage: AtomicU8,
    started: Instant,
}

/// A next hop.
#[derive(Debug)]
pub struct NextHop {
    /// As the operator wrote it.
    pub name: String,
    /// Whether it is up, and how many transactions are in flight.
    pub state: NextHopState,
    /// What protects connections to it.
    pub security: Security,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// Connections past their hello, with a transaction or idle, all shards.
    connections: AtomicU32,
    /// When the last of them answered the hello.
    opened_ms: AtomicU64,
    /// Until when one that has ended still counts: the next hop may notice later.
    worked_until_ms: AtomicU64,
    /// A shard that has no connection was refused one while others have some.
    is_wanted: AtomicBool,
}

impl NextHop {
    fn new(address: &NextHopAddress, security: Security) -> Self {
        let addresses = match &address.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, address.port)],
            Host::Name(_) => Vec::new(),
        };
        NextHop {
            name: address.to_string(),
            state: NextHopState::new(),
            security,
            addresses: ArcSwap::from_pointee(addresses),
            connections: AtomicU32::new(0),
            opened_ms: AtomicU64::new(0),
            worked_until_ms: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// Whether it may be sent to now. Not while its name has no address: that is no failure of the
    /// next hop, and over when the name is resolved.
    pub fn availability(&self, now_ms: u64) -> Availability {
        if self.addresses.load().is_empty() {
            return Availability::Down { probe_at_ms: u64::MAX };
        }
        self.state.availability(now_ms)
    }

    /// A connection got the reply to its hello; [`Self::closed`] is owed.
    pub fn opened(&self, now_ms: u64) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.opened_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    /// Whether a connection was opened after this time: what befalls one that was begun before is
    /// late news.
    pub fn was_opened_after(&self, ms: u64) -> bool {
        self.opened_ms.load(Ordering::Relaxed) > ms
    }

    /// Such a connection has ended.
    pub fn closed(&self, now_ms: u64) {
        self.worked_until_ms.fetch_max(now_ms + NEXT_HOP_CROWDED_MS, Ordering::Relaxed);
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a connection to it works, or did a moment ago.
    pub fn is_connected(&self, now_ms: u64) -> bool {
        self.connections.load(Ordering::Relaxed) > 0 || now_ms < self.worked_until_ms.load(Ordering::Relaxed)
    }

    /// The next hop allows no more connections, and this shard has none: another is to give one up.
    pub fn ask_for_connection(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    /// Whether a shard asked for a connection; one of those that have some is told.
    pub fn take_request(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed) && self.is_wanted.swap(false, Ordering::Relaxed)
    }

    /// Where it can be reached; none as long as its name is not resolved.
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Its name was looked up.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        self.addresses.store(Arc::new(addresses));
    }
}

impl Shared {
    /// Empty tables, and next hops that are up until one finds otherwise; `security` is theirs, in
    /// their order.
    pub fn new(config: Arc<Config>, security: impl IntoIterator<Item = Security>) -> Self {
        let limits = &config.limits;
        let addresses = config.delivery.next_hops.iter().map(|next_hop| &next_hop.address);
        Shared {
            sources: Sources::new(limits.table_slots, limits.ipv6_prefix),
            blocks: ArcSwap::default(),
            users: ArcSwapOption::empty(),
            tls: ArcSwapOption::empty(),
            resources_short: AtomicBool::new(false),
            storage_failing: AtomicU32::new(0),
            oldest_arrivals: (0..SHARDS_MAX).map(|_| AtomicU64::new(0)).collect(),
            is_serving: AtomicBool::new(false),
            body_octets: AtomicUsize::new(0),
            next_hops: addresses.zip(security).map(|(address, security)| NextHop::new(address, security)).collect(),
            stage: AtomicU8::new(Stage::Serving as u8),
            started: Instant::now(),
            edition: ArcSwap::from_pointee(Edition { number: 0, config }),
        }
    }

    /// The newest configuration. Sessions go by the one that they began with.
    pub fn edition(&self) -> Arc<Edition> {
        self.edition.load_full()
    }

    /// The same without its number.
    pub fn config(&self) -> Arc<Config> {
        self.edition.load().config.clone()
    }

    /// Replaces the configuration, and returns the number of the new one. One thread at a time may. The
    /// caller tells the shards ([`super::Doorbell::tell`]).
    pub fn set_config(&self, config: Arc<Config>) -> u64 {
        let number = self.edition.load().number + 1;
        self.edition.store(Arc::new(Edition { number, config }));
        number
    }

    /// Inbound connections now.
    pub fn connections(&self) -> u32 {
        self.sources.connections()
    }

    /// All shards have begun to serve.
    pub fn set_serving(&self) {
        self.is_serving.store(true, Ordering::Release);
    }

    /// One more shard's storage fails; [`Self::storage_works`] is owed.
    pub fn storage_fails(&self) {
        self.storage_failing.fetch_add(1, Ordering::Relaxed);
    }

    /// A shard's storage works again.
    pub fn storage_works(&self) {
        self.storage_failing.fetch_sub(1, Ordering::Relaxed);
    }

    /// Why mail is not accepted now, if it is not, by some shard at least.
    pub fn unreadiness(&self) -> Option<&'static str> {
        if self.stage() != Stage::Serving {
            Some("draining")
        } else if !self.is_serving.load(Ordering::Acquire) {
            Some("starting")
        } else if self.resources_short() {
            Some("disk or memory is below its watermark")
        } else if self.storage_failing.load(Ordering::Relaxed) > 0 {
            Some("storage fails")
        } else {
            None
        }
    }

    /// The oldest message in a shard's queue arrived then, in milliseconds since the Unix epoch.
    pub fn set_oldest_arrival(&self, shard: usize, unix_ms: Option<u64>) {
        if let Some(oldest) = self.oldest_arrivals.get(shard) {
            oldest.store(unix_ms.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// The same of all shards.
    pub fn oldest_arrival(&self) -> Option<u64> {
        let all = self.oldest_arrivals.iter().map(|oldest| oldest.load(Ordering::Relaxed));
        all.filter(|&unix_ms| unix_ms > 0).min()
    }

    /// The stage of the process's life.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Ending,
        }
    }

    /// Enters a stage; there is no way back. The caller rings the shards' doorbells.
    pub fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// Admits a connection to a binding, or says with which reply to refuse it; `is_short`: mail cannot
    /// be taken for want of resources.
    pub fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        rules: &BindingRules,
        config: &Config,
        is_short: bool,
        now: Instant,
    ) -> Result<Permit, Reply> {
        self.check(client, rules, config, is_short, now)?;
        self.take_place(config)?.connect(client, config)
    }

    /// Gives a connection a place in the total, whoever is behind it, or says with which reply to
    /// refuse it. `Place::admit` is next.
    pub fn take_place(self: &Arc<Self>, config: &Config) -> Result<Place, Reply> {
        self.sources.try_enter(config.limits.connections_max)?;
        Ok(Place { shared: self.clone() })
    }

    /// The checks in which nothing is counted.
    fn check(
        &self,
        client: IpAddr,
        rules: &BindingRules,
        config: &Config,
        is_short: bool,
        now: Instant,
    ) -> Result<(), Reply> {
        let door = Door {
            rules,
            blocked: &config.blocked,
            blocked_for_a_time: &self.blocks.load(),
            resources_short: is_short,
            now_ms: self.ms(now),
        };
        door.refusal(client).map_or(Ok(()), Err)
    }

    /// The dynamic block list.
    pub fn blocks(&self) -> Arc<DynamicBlocks> {
        self.blocks.load_full()
    }

    /// Replaces the dynamic block list.
    pub fn set_blocks(&self, blocks: DynamicBlocks) {
        self.blocks.store(Arc::new(blocks));
    }

    /// Who may authenticate; `None`: nobody was named.
    pub fn users(&self) -> Option<Arc<Users>> {
        self.users.load_full()
    }

    /// Replaces them.
    pub fn set_users(&self, users: Option<Arc<Users>>) {
        self.users.store(users);
    }

    /// How to speak TLS as a server; `None`: there is no certificate.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.load_full()
    }

    /// Replaces that, for handshakes from now on.
    pub fn set_tls(&self, config: Arc<ServerConfig>) {
        self.tls.store(Some(config));
    }

    /// Whether memory or the spool's disk is below its watermark (E8, C6).
    pub fn resources_short(&self) -> bool {
        self.resources_short.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set_resources_short(&self, short: bool) {
        self.resources_short.store(short, Ordering::Relaxed);
    }

    /// A next hop.
    pub fn next_hop(&self, id: NextHopId) -> &NextHop {
        &self.next_hops[id.index()]
    }

    /// All next hops, in the order of their ids.
    pub fn next_hops(&self) -> &[NextHop] {
        &self.next_hops
    }

    /// `now` in milliseconds since the start of the process.
    pub fn ms(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_millis() as u64
    }

    /// Memory taken by messages that are arriving or about to leave, in octets.
    pub fn body_octets(&self) -> usize {
        self.body_octets.load(Ordering::Relaxed)
    }
}

/// A connection's place in the total, until it drops.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
}

impl Place {
    /// Admits the connection to a binding, now that its client is known, or says with which reply to
    /// refuse it; `is_short`: mail cannot be taken for want of resources.
    pub fn admit(
        self,
        client: IpAddr,
        rules: &BindingRules,
        config: &Config,
        is_short: bool,
        now: Instant,
    ) -> Result<Permit, Reply> {
        self.shared.check(client, rules, config, is_short, now)?;
        self.connect(client, config)
    }

    fn connect(self, client: IpAddr, config: &Config) -> Result<Permit, Reply> {
        let source = self.shared.sources.try_connect(client, config.limits.connections_per_source_max)?;
        Ok(Permit { place: self, source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.sources.leave();
    }
}

/// A connection's place in the counts, until it drops.
#[derive(Debug)]
pub struct Permit {
    place: Place,
    source: Source,
}

impl Permit {
    fn shared(&self) -> &Shared {
        &self.place.shared
    }

    /// Counts one more message from this source, unless its rate is used up (E4).
    pub fn try_count_message(&self, now: Instant, limits: &Limits) -> bool {
        let now_ms = self.shared().ms(now);
        self.shared().sources.try_count_message(self.source, now_ms, limits.message_rate_per_minute)
    }

    /// The same for a user of a relay, whatever its address.
    pub fn try_count_message_of_user(&self, name: &str, now: Instant, limits: &Limits) -> bool {
        let now_ms = self.shared().ms(now);
        self.shared().sources.try_count_message_of_user(name, now_ms, limits.user_message_rate_per_minute)
    }

    /// Counts a logon of this source, unless too many have failed in this minute (E7 across
    /// connections). One that does not fail is to be taken back: [`Self::logon_succeeded`].
    pub fn try_count_logon(&self, now: Instant, limits: &Limits) -> bool {
        self.shared().sources.try_count_logon(self.source, self.shared().ms(now), limits.logon_failures_per_minute)
    }

    /// A logon that was counted did not fail.
    pub fn logon_succeeded(&self, limits: &Limits) {
        if limits.logon_failures_per_minute > 0 {
            self.shared().sources.logon_succeeded(self.source);
        }
    }

    /// A command of this source was refused, and the refusal is late: so is its next banner (E17).
    pub fn mark(&self, now: Instant) {
        self.shared().sources.mark(self.source, self.shared().ms(now));
    }

    /// Whether this connection's banner is to be late.
    #[must_use]
    pub fn take_mark(&self, now: Instant) -> bool {
        self.shared().sources.take_mark(self.source, self.shared().ms(now))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared().sources.disconnect(self.source);
    }
}

/// Memory that a message takes, counted in the process's sum until it drops.
#[derive(Debug)]
pub struct BodyMemory {
    shared: Arc<Shared>,
    octets: usize,
}

impl BodyMemory {
    /// None yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        BodyMemory { shared, octets: 0 }
    }

    /// The message now takes `octets`.
    pub fn set(&mut self, octets: usize) {
        if octets > self.octets {
            self.shared.body_octets.fetch_add(octets - self.octets, Ordering::Relaxed);
        } else {
            self.shared.body_octets.fetch_sub(self.octets - octets, Ordering::Relaxed);
        }
        self.octets = octets;
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_is_not_up_before_its_name_is_resolved() {
        let next_hop = NextHop::new(&"mail.test.example:25".parse().expect("a next hop"), Security::default());
        assert!(matches!(next_hop.availability(0), Availability::Down { .. }));
        next_hop.set_addresses(vec![SocketAddr::from(([192, 0, 2, 1], 25))]);
        assert_eq!(next_hop.availability(0), Availability::Up);
        let given = NextHop::new(&"192.0.2.1:25".parse().expect("a next hop"), Security::default());
        assert_eq!(given.availability(0), Availability::Up);
    }
}
