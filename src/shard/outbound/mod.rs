//! Delivery: takes queued mail to the next hops, and writes down what became of it.
//!
//! | module | subject |
//! |---|---|
//! | here | which job goes when, and over which connection |
//! | [`keeper`] | what comes with time: retries, expiry, segments that nothing needs |
//! | [`worker`] | one connection, transaction after transaction |
//! | [`link`] | the driver of `smtp::client` |
//! | [`security`] | what protects a connection, and who logs on |
//! | [`content`] | a message to be sent, in memory or read back |
//! | [`settle`] | what an attempt came to: outcomes, retries |
//! | [`recorder`] | outcomes on their way to the spool |
//! | [`rewriter`] | records written again, so that the oldest segment can go |
//! | [`notice`] | a session that waits for the next hop (E16) |
//!
//! A lane of the queue is a route. A job of a lane starts when one of the route's next hops is up
//! and its window has a slot; else it waits in its lane, and costs nothing. A slot is held for the
//! time of a transaction, also across transactions that follow each other; an idle connection has
//! none, waits for a moment in its pool, then says QUIT. Where a next hop allows fewer connections
//! than the shards want, a shard that gets none asks the others, and one of them gives one up: else
//! its mail would wait until they have nothing to do.
//!
//! On failure: what cannot be reached is down until its probe, and its mail waits without an
//! attempt being counted; a transaction that breaks defers its message with backoff; a worker that
//! panics ends alone, and its job is deferred. Nothing here ever keeps a session or another route
//! waiting: windows, pools and lanes are apart.

mod content;
mod keeper;
mod link;
mod notice;
mod recorder;
mod rewriter;
mod security;
mod settle;
mod worker;

pub use content::{Body, Content};
pub use keeper::keep;
pub use notice::{Acknowledgement, Notice};
pub use recorder::{Recorder, write_lost};
pub use security::{ClientTls, Security};

use super::Context;
use super::net::{Alarm, Net, Nudge};
use super::shared::Stage;
use crate::delivery::{Availability, NextHopId, RouteId, Routes, Window, WindowShare, recipient_domain};
use crate::limits::{BODIES_IN_MEMORY_MAX_OCTETS, HOT_JOBS_MAX, NEXT_HOP_PROBE_LEASE_MS, NEXT_HOP_WINDOW_DEFAULT};
use crate::queue::recover::Found;
use crate::queue::schedule::{Job, Message, MessageKey, Schedule};
use crate::queue::spool::Location;
use crate::queue::stored::StoredEnvelope;
use crate::smtp::QueueId;

use recorder::Unrecorded;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use worker::Seat;

/// A message in the queue.
type Queued = Message<Content>;

/// What a shard keeps for its deliveries.
pub struct Outbound {
    /// Lanes and pools are built on them: they stay for the process's life.
    routes: Arc<Routes>,
    schedule: RefCell<Schedule<Content>>,
    /// By next hop.
    pools: Vec<Pool>,
    window: Window,
    /// Outcomes that are not on stable storage yet, in the order of their batches.
    unrecorded: RefCell<VecDeque<Unrecorded>>,
    /// Outcomes whose batch failed, to be written again.
    lost: RefCell<Vec<Unrecorded>>,
    /// Not sooner. Of its own: what else fails meanwhile, for want of space for a large message
    /// say, does not keep outcomes from being written.
    lost_until_ms: Cell<u64>,
    is_rewriting: Cell<bool>,
    /// Not sooner: the last time came to nothing.
    rewrite_again_ms: Cell<u64>,
    alarm: Alarm,
    keeper: Nudge,
    /// The keeper looks again soon: no need to wake it.
    keeper_is_near: Cell<bool>,
    workers: Cell<usize>,
    random: Cell<u64>,
    /// Lanes of the message at hand.
    lanes: RefCell<Vec<u16>>,
}

/// A next hop's connections on this shard.
#[derive(Default)]
struct Pool {
    share: RefCell<WindowShare>,
    /// Idle connections, the one used last at the end.
    idle: RefCell<Vec<Rc<Seat>>>,
    /// The lanes that may use it.
    lanes: Vec<u16>,
    /// Connections past their hello, with a transaction or idle.
    connections: Cell<usize>,
    /// Until when no more connections are made: the next hop has enough of them.
    crowded_until_ms: Cell<u64>,
    /// Until when this shard gives up no further connection: one at a time, or it had none soon.
    gave_way_until_ms: Cell<u64>,
    /// Until when connections go without TLS where it is optional: it failed.
    clear_until_ms: Cell<u64>,
    /// Where the next look for a connection's next job begins, so that no lane has to wait for
    /// another.
    turn: Cell<usize>,
    /// The same for a slot that was given back. A turn of its own: where the next hop ends each
    /// connection, a look for a job that comes to nothing precedes each slot.
    slot_turn: Cell<usize>,
}

impl Pool {
    /// The places of all its lanes, from this one on.
    fn places_from(&self, turn: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.lanes.len();
        (0..count).map(move |step| (turn + step) % count)
    }
}

/// A message that was made durable just now.
pub struct Accepted {
    /// Its id.
    pub id: QueueId,
    /// Where its record is.
    pub location: Location,
    /// Keeps its segment until it is in the queue.
    pub hold: Hold,
    /// Its octets.
    pub octets: u64,
    /// Itself.
    pub content: Content,
}

/// Keeps a segment from being removed, from a message's way into it until the queue knows it.
pub struct Hold {
    context: Rc<Context>,
    generation: u64,
}

impl Hold {
    /// Keeps the segment with this generation.
    pub fn new(context: &Rc<Context>, generation: u64) -> Self {
        context.outbound.schedule.borrow_mut().hold(generation);
        Hold { context: context.clone(), generation }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.context.outbound.schedule.borrow_mut().unhold(self.generation);
    }
}

impl Outbound {
    /// Goes on with what recovery found. `random` is a random number.
    pub fn new(net: &Net, routes: Arc<Routes>, next_hops: usize, shards: usize, found: Found, random: u64) -> Self {
        let mut schedule = Schedule::new(routes.len());
        schedule.resume(found.live, found.segments);
        let mut pools: Vec<Pool> = (0..next_hops).map(|_| Pool::default()).collect();
        for lane in 0..routes.len() as u16 {
            for next_hop in routes.next_hops(RouteId::from_number(lane)) {
                pools[next_hop.index()].lanes.push(lane);
            }
        }
        let alarm = Alarm::new(net);
        let keeper = alarm.nudge();
        Outbound {
            routes,
            schedule: RefCell::new(schedule),
            pools,
            window: Window { slots: NEXT_HOP_WINDOW_DEFAULT, shards: u32::try_from(shards).unwrap_or(u32::MAX) },
            unrecorded: RefCell::default(),
            lost: RefCell::default(),
            lost_until_ms: Cell::new(0),
            is_rewriting: Cell::new(false),
            rewrite_again_ms: Cell::new(0),
            alarm,
            keeper,
            keeper_is_near: Cell::new(false),
            workers: Cell::new(0),
            random: Cell::new(random | 1),
            lanes: RefCell::default(),
        }
    }

    /// Whether a delivery is on its way, or records are being written again.
    pub fn is_busy(&self) -> bool {
        self.workers.get() > 0 || self.is_rewriting.get()
    }

    /// Xorshift: spreads retries, nothing more.
    fn random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        state
    }

    fn wake_keeper(&self) {
        if !self.keeper_is_near.replace(true) {
            self.keeper.nudge();
        }
    }
}

/// The lanes of a message's recipients. False: some have none, and are held.
pub fn lanes_of(routes: &Routes, envelope: &StoredEnvelope<'_>, lanes: &mut Vec<u16>) -> bool {
    lanes.clear();
    let mut all = true;
    for recipient in envelope.recipients() {
        match routes.route(recipient_domain(recipient.path)) {
            // Recipients of one domain follow each other: the last lane is the likely one.
            Some(route) if lanes.last() == Some(&route.number()) || lanes.contains(&route.number()) => {}
            Some(route) => lanes.push(route.number()),
            None => all = false,
        }
    }
    all
}

/// Takes a message that is durable into the queue, and starts its delivery if that can be now.
/// `session` is who may wait for it.
///
//= [MS-OXSMTP] 3.2.7 AcknowledgementDelay: the acknowledgement waits only for deliveries that have begun;
//= what must queue, or has no next hop that is up, is acknowledged at once.
pub fn accept(context: &Rc<Context>, accepted: Accepted, session: &dyn Fn() -> Nudge) -> Option<Rc<Notice>> {
    let outbound = &context.outbound;
    let Accepted { id, location, hold, octets, content } = accepted;
    let envelope = StoredEnvelope::decode(&content.envelope)?;
    let mut lanes = outbound.lanes.take();
    let recipients = u32::try_from(envelope.recipient_count()).unwrap_or(u32::MAX);
    let all_have_lanes = lanes_of(&context.outbound.routes, &envelope, &mut lanes);
    let spilled = matches!(content.body, Body::Spilled { .. });
    let wanted = context.current().config.delivery.ack_delay.is_some() && !lanes.is_empty();
    let notice = (wanted && all_have_lanes).then(|| Rc::new(Notice::new(session())));
    content.notice.replace(notice.clone());
    let content = Rc::new(content);
    let hot = (!lanes.is_empty()).then(|| content.clone());
    let key = {
        let mut schedule = outbound.schedule.borrow_mut();
        let key = schedule.add(id, location, octets, spilled, recipients, hot);
        schedule.enqueue(key, &lanes);
        key
    };
    drop(hold);
    let mut waiting = 0;
    for &lane in &lanes {
        pump(context, lane);
        waiting = waiting.max(outbound.schedule.borrow().waiting(lane));
    }
    if waiting > 0 {
        let is_up = lanes.iter().all(|&lane| has_next_hop_up(context, lane));
        cool_unless_near(context, key, is_up && waiting <= HOT_JOBS_MAX);
        if wanted {
            let skipped = &context.metrics.ack_delays;
            if is_up { skipped.queued.increment(1) } else { skipped.next_hop_down.increment(1) }
        }
    }
    outbound.lanes.replace(lanes);
    show_queue(context);
    if waiting > 0 {
        content.notice.take();
        return None;
    }
    notice
}

/// Shows how much there is in the queue. Called wherever that changes.
fn show_queue(context: &Context) {
    let mut schedule = context.outbound.schedule.borrow_mut();
    context.metrics.show_queue(schedule.figures());
    context.shared.set_oldest_arrival(context.number, schedule.oldest().map(|message| message.arrived_unix_ms()));
}

/// Keeps a message in memory only if its turn comes soon and memory is not short.
fn cool_unless_near(context: &Context, key: MessageKey, near: bool) {
    if !near || context.shared.body_octets() > BODIES_IN_MEMORY_MAX_OCTETS / 2 {
        context.outbound.schedule.borrow_mut().cool(key);
    }
}

fn has_next_hop_up(context: &Context, lane: u16) -> bool {
    preferred(context, lane).is_some()
}

/// The next hop that a lane's mail goes to: the first that is up.
fn preferred(context: &Context, lane: u16) -> Option<NextHopId> {
    let now_ms = context.now_ms();
    let next_hops = context.outbound.routes.next_hops(RouteId::from_number(lane));
    let up = |next_hop: &&NextHopId| context.shared.next_hop(**next_hop).availability(now_ms) == Availability::Up;
    next_hops.iter().find(up).copied()
}

/// Whether transactions may begin: not when the process drains, and not while what became of the
/// last ones cannot be written. A restart would deliver all of them again.
fn may_begin(context: &Context) -> bool {
    context.shared.stage() == Stage::Serving && context.outbound.lost.borrow().is_empty()
}

/// Starts as many jobs of a lane as there are slots for.
fn pump(context: &Rc<Context>, lane: u16) {
    let outbound = &context.outbound;
    while may_begin(context) {
        if outbound.schedule.borrow().waiting(lane) == 0 {
            return leave(context, lane);
        }
        let Some(next_hop) = take_slot(context, lane) else { return outbound.wake_keeper() };
        let Some(job) = outbound.schedule.borrow_mut().next(lane) else { return };
        // A probe is a new connection: one of before the outage would say nothing of the next hop.
        let is_up = context.shared.next_hop(next_hop).availability(context.now_ms()) == Availability::Up;
        let seat = is_up.then(|| outbound.pools[next_hop.index()].idle.borrow_mut().pop()).flatten();
        match seat {
            Some(seat) => seat.give(job),
            None => worker::spawn(context, next_hop, job),
        }
    }
}

/// Takes a slot of the window of the first next hop of a lane that may be tried now.
fn take_slot(context: &Context, lane: u16) -> Option<NextHopId> {
    let now_ms = context.now_ms();
    for &next_hop in context.outbound.routes.next_hops(RouteId::from_number(lane)) {
        let shared = context.shared.next_hop(next_hop);
        let state = &shared.state;
        let pool = &context.outbound.pools[next_hop.index()];
        let is_crowded = now_ms < pool.crowded_until_ms.get() && pool.idle.borrow().is_empty();
        let take = || !is_crowded && pool.share.borrow_mut().try_take(state, context.outbound.window);
        match shared.availability(now_ms) {
            // A full window is no reason to go elsewhere: it is busy, not down.
            Availability::Up => return take().then_some(next_hop),
            Availability::Down { .. } => {}
            Availability::ProbeDue => {
                if take() {
                    if state.try_claim_probe(now_ms, NEXT_HOP_PROBE_LEASE_MS) {
                        return Some(next_hop);
                    }
                    // Another shard was faster.
                    pool.share.borrow_mut().give_back(state);
                }
            }
        }
    }
    None
}

/// Gives a slot back, and lets what waits for one have it.
fn give_slot_back(context: &Rc<Context>, next_hop: NextHopId) {
    let pool = &context.outbound.pools[next_hop.index()];
    pool.share.borrow_mut().give_back(&context.shared.next_hop(next_hop).state);
    pump_next_hop(context, next_hop);
}

fn pump_next_hop(context: &Rc<Context>, next_hop: NextHopId) {
    let pool = &context.outbound.pools[next_hop.index()];
    let begin = pool.slot_turn.get();
    let mut is_first = true;
    for place in pool.places_from(begin) {
        let lane = pool.lanes[place];
        if context.outbound.schedule.borrow().waiting(lane) > 0 {
            if std::mem::take(&mut is_first) {
                pool.slot_turn.set(place + 1);
            }
            pump(context, lane);
        }
    }
}

/// Nothing waits in a lane: this shard starves no longer for its sake.
fn leave(context: &Context, lane: u16) {
    for &next_hop in context.outbound.routes.next_hops(RouteId::from_number(lane)) {
        let pool = &context.outbound.pools[next_hop.index()];
        if pool.share.borrow().is_starving() {
            let schedule = context.outbound.schedule.borrow();
            if pool.lanes.iter().all(|&lane| schedule.waiting(lane) == 0) {
                pool.share.borrow_mut().leave(&context.shared.next_hop(next_hop).state);
            }
        }
    }
}

/// The next job for a connection whose transaction has ended, which keeps its slot for it. `None`:
/// there is none, or the slot is owed to another shard.
fn next_job(context: &Context, next_hop: NextHopId) -> Option<Job> {
    let pool = &context.outbound.pools[next_hop.index()];
    let state = &context.shared.next_hop(next_hop).state;
    if !may_begin(context) || pool.share.borrow().owes(state, context.outbound.window) {
        return None;
    }
    for place in pool.places_from(pool.turn.get()) {
        let lane = pool.lanes[place];
        let waits = context.outbound.schedule.borrow().waiting(lane) > 0;
        if waits && preferred(context, lane) == Some(next_hop) {
            pool.turn.set(place + 1);
            let job = context.outbound.schedule.borrow_mut().next(lane);
            show_queue(context);
            return job;
        }
    }
    None
}
