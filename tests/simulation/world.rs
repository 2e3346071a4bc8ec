//! The world of one seed: its clock, what happens when, and who is in it.

use crate::clients::Client;
use crate::disk::{Disk, OperationId, Weather};
use crate::judge::{Judge, Message, Taken, Tally};
use crate::next_hops::{Mood, NextHop};
use crate::process::Process;
use crate::random::Random;
use gatepost::delivery::{Backoff, NextHopId, RoutePattern, Routes};
use gatepost::limits::{SEGMENTS_PER_LIVE_MAX, SEGMENTS_SLACK, SPARE_SEGMENTS_MAX};
use gatepost::queue::disk::{segment_generation, spare_generation, spill_id};
use gatepost::queue::recover;
use gatepost::smtp::QueueId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

/// The time at which every run begins, in milliseconds since the Unix epoch.
const UNIX_MS: u64 = 1_800_000_000_000;
/// The longest that a run may take once everything works again, in its own time.
const HEALING_MAX_MS: u64 = 4 * 3600 * 1000;
/// How long nothing happens before the disk is looked at.
const RESTING_MS: u64 = 10 * 60 * 1000;

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A client has paused long enough.
    Client(usize),
    ToServer {
        life: u64,
        session: u64,
        input: Option<Vec<u8>>,
    },
    ToClient {
        client: usize,
        connection: u64,
        input: Option<Vec<u8>>,
    },
    Call {
        next_hop: usize,
        connection: u64,
        worker: u64,
        life: u64,
    },
    ToNextHop {
        next_hop: usize,
        connection: u64,
        input: Option<Vec<u8>>,
    },
    ToWorker {
        life: u64,
        worker: u64,
        connection: u64,
        input: Option<Vec<u8>>,
        taken: Option<Taken>,
    },
    LateReply {
        next_hop: usize,
        connection: u64,
        taken: Option<Taken>,
    },
    Disk {
        life: u64,
        operation: OperationId,
    },
    Worker {
        life: u64,
        worker: u64,
    },
    Keeper {
        life: u64,
    },
    Probe {
        life: u64,
    },
    Start,
    Crash {
        life: u64,
    },
    Weather,
    Mood(usize),
    Heal,
}

struct Scheduled {
    at_ms: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.number).cmp(&(other.at_ms, other.number))
    }
}

/// What a seed settles for the whole run.
pub struct Settings {
    pub backoff: Backoff,
    pub lifetime: Duration,
    pub segment_octets: u64,
    /// From this size on messages go to files of their own.
    pub spill_octets: usize,
    pub window: u32,
    pub next_hop_timeout: Duration,
    /// Only crashes disturb: mail comes and goes, but for some that stays, and so do segments.
    pub is_calm: bool,
}

/// Everything.
pub struct World {
    pub random: Random,
    pub now_ms: u64,
    began: Instant,
    events: BinaryHeap<Reverse<Scheduled>>,
    last_event: u64,
    /// When the last octets on a way arrive: what is sent later arrives later.
    ways: BTreeMap<(u8, u64), u64>,
    pub last_connection: u64,
    pub settings: Settings,
    pub routes: std::rc::Rc<Routes>,
    pub disk: Disk,
    pub clients: Vec<Client>,
    /// Who is at the other end of a session.
    peers: BTreeMap<u64, usize>,
    pub next_hops: Vec<NextHop>,
    pub judge: Judge,
    pub process: Option<Process>,
    pub life: u64,
    /// Nothing fails any more.
    pub is_healing: bool,
    /// A crash comes with the operation of the disk, or the delivery, after so many.
    operations_left: Option<u64>,
    deliveries_left: Option<u64>,
    crashes_left: u64,
    flips_left: u64,
    history: Option<Vec<String>>,
}

/// What a seed came to.
pub struct Outcome {
    pub violation: Option<String>,
    pub tally: Tally,
    pub history: Vec<String>,
}

/// What is not as it should be, for the sake of the test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    /// The disk says that it has synced, and has not.
    pub disk_lies: bool,
}

impl World {
    /// Runs a seed.
    pub fn run(seed: u64, sabotage: Sabotage, keeps_history: bool) -> Outcome {
        let mut world = World::new(seed, sabotage, keeps_history);
        world.live();
        Outcome {
            violation: world.judge.violation.take(),
            tally: world.judge.tally,
            history: world.history.take().unwrap_or_default(),
        }
    }

    fn new(seed: u64, sabotage: Sabotage, keeps_history: bool) -> Self {
        let mut random = Random::new(seed);
        let backoff = Backoff { min: Duration::from_secs(10), max: Duration::from_secs(80) };
        let settings = Settings {
            backoff,
            lifetime: Duration::from_secs(random.pick(&[200, 900, 3600])),
            segment_octets: random.pick(&[2, 4, 8, 16, 64]) * 1024,
            spill_octets: random.pick(&[1500, 5000, usize::MAX]),
            window: random.pick(&[1, 2, 4]),
            next_hop_timeout: Duration::from_secs(30),
            is_calm: random.percent(30),
        };
        let shortest_wait_ms = backoff.min.as_millis() as u64 * 8 / 10;
        let mut judge = Judge::new(shortest_wait_ms, 3 * settings.window as usize);
        let (clients, next_hops) = (random.between(1, 6), 3);
        let clients = (0..clients).map(|client| {
            let tokens = (1..=random.between(1, 12)).map(|place| client * 100 + place);
            let tokens: std::collections::VecDeque<u64> = tokens.collect();
            for &token in &tokens {
                judge.messages.insert(token, Message::random(token, &mut random));
            }
            Client::new(tokens)
        });
        let clients: Vec<Client> = clients.collect();
        let next_hops = (0..next_hops).map(|_| NextHop::new(&mut random)).collect();
        let crashes_left = random.pick(&[0, 1, 2, 4, 8]);
        let disk = Disk::new(Random::new(random.next()), sabotage.disk_lies);
        World {
            now_ms: 0,
            began: Instant::now(),
            events: BinaryHeap::new(),
            last_event: 0,
            ways: BTreeMap::new(),
            last_connection: 0,
            settings,
            routes: std::rc::Rc::new(routes()),
            disk,
            clients,
            peers: BTreeMap::new(),
            next_hops,
            judge,
            process: None,
            life: 0,
            is_healing: false,
            operations_left: None,
            deliveries_left: None,
            crashes_left,
            flips_left: u64::from(random.percent(15)),
            history: keeps_history.then(Vec::new),
            random,
        }
    }

    fn live(&mut self) {
        self.start();
        for client in 0..self.clients.len() {
            let wait_ms = self.random.below(30_000);
            self.after(wait_ms, Event::Client(client));
        }
        for next_hop in 0..self.next_hops.len() {
            self.after(0, Event::Mood(next_hop));
        }
        self.after(0, Event::Weather);
        let heals_ms = self.random.between(30_000, 400_000);
        self.after(heals_ms, Event::Heal);
        self.until_quiet();
        // Once more: what is settled is settled on the disk too.
        for power in [true, false] {
            if self.judge.violation.is_some() {
                return;
            }
            self.crash(power);
            self.until_quiet();
        }
        self.rest();
        self.finish();
    }

    fn until_quiet(&mut self) {
        let mut last_ms = u64::MAX;
        while self.judge.violation.is_none() && !self.is_quiet() {
            let Some(Reverse(scheduled)) = self.events.pop() else { break };
            self.now_ms = scheduled.at_ms;
            self.happen(scheduled.event);
            if self.is_healing && last_ms == u64::MAX {
                last_ms = self.now_ms + HEALING_MAX_MS;
            }
            if self.now_ms > last_ms {
                let queue = self.process.as_ref().map(|process| process.schedule.figures());
                return self.judge.blame(format!("everything works, and the end does not come: {queue:?}"));
            }
        }
    }

    /// A time in which nothing is left to be done but tidying.
    fn rest(&mut self) {
        let until_ms = self.now_ms + RESTING_MS;
        while self.judge.violation.is_none() {
            let is_next = |scheduled: &Reverse<Scheduled>| scheduled.0.at_ms <= until_ms;
            if !self.events.peek().is_some_and(is_next) {
                return;
            }
            let Some(Reverse(scheduled)) = self.events.pop() else { return };
            self.now_ms = scheduled.at_ms;
            self.happen(scheduled.event);
        }
    }

    fn is_quiet(&self) -> bool {
        let is_idle = self.process.as_ref().is_some_and(Process::is_idle);
        self.is_healing && is_idle && self.clients.iter().all(Client::is_done)
    }

    fn finish(&mut self) {
        if self.judge.violation.is_some() {
            return;
        }
        let mut listed = BTreeMap::new();
        let mut live_octets = 0;
        let found = recover::read(&self.disk, |record, statuses| {
            live_octets += record.header.octets();
            let count = record.stored_envelope().map_or(0, |envelope| envelope.recipient_count());
            listed.insert(record.header.id, (0..count).map(|place| statuses.of(place).0).collect());
        });
        if let Err(error) = found {
            self.judge.blame(format!("the spool cannot be read: {error}"));
        }
        self.measure(live_octets, &listed.keys().copied().collect());
        let (now_ms, lifetime_ms) = (self.unix_ms(), self.settings.lifetime.as_millis() as u64);
        self.judge.close(&listed, now_ms, lifetime_ms);
    }

    /// What the spool takes, with nothing to do: its bound, and no file that nobody needs.
    fn measure(&mut self, live_octets: u64, listed: &BTreeSet<QueueId>) {
        let files = self.disk.list();
        let is_log = |name: &str| segment_generation(name).or(spare_generation(name)).is_some();
        let of_log = || files.iter().filter(|(name, _)| is_log(name)).map(|(_, octets)| *octets);
        let largest = of_log().max().unwrap_or(0).max(self.settings.segment_octets);
        let bound = SEGMENTS_PER_LIVE_MAX * live_octets + (SEGMENTS_SLACK + SPARE_SEGMENTS_MAX as u64) * largest;
        let taken: u64 = of_log().sum();
        if taken > bound {
            self.judge.blame(format!("segments take {taken} octets, and {bound} are allowed: {files:?}"));
        }
        let is_orphan = |name: &str| spill_id(name).is_some_and(|id| !listed.contains(&id));
        if let Some((name, _)) = files.iter().find(|(name, _)| is_orphan(name)) {
            self.judge.blame(format!("nobody needs {name}"));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Client(number) => self.client_wakes(number),
            Event::ToClient { client, connection, input } => self.client_hears(client, connection, input),
            Event::ToServer { life, session, input } if life == self.life => self.session_hears(session, input),
            Event::ToServer { life: _, session, .. } => self.hang_up(session),
            Event::Call { next_hop, connection, worker, life } => {
                if life == self.life {
                    self.next_hop_is_called(next_hop, connection, worker, life);
                }
            }
            Event::ToNextHop { next_hop, connection, input } => self.next_hop_hears(next_hop, connection, input),
            Event::ToWorker { life, worker, connection, input, taken } => {
                if life == self.life && self.process.is_some() {
                    self.worker_hears(worker, connection, input, taken);
                }
            }
            Event::LateReply { next_hop, connection, taken } => self.next_hop_replies_late(next_hop, connection, taken),
            Event::Disk { life, operation } if life == self.life => self.operation_ends(operation),
            Event::Worker { life, worker } if life == self.life => self.worker_wakes(worker),
            Event::Keeper { life } if life == self.life => self.keep(),
            Event::Probe { life } if life == self.life => self.probe(),
            Event::Disk { .. } | Event::Worker { .. } | Event::Keeper { .. } | Event::Probe { .. } => {}
            Event::Start => self.start(),
            Event::Crash { life } if life == self.life => self.crash_somehow(),
            Event::Crash { .. } => {}
            Event::Weather => self.change_weather(),
            Event::Mood(next_hop) => self.change_mood(next_hop),
            Event::Heal => {
                self.note(|| "everything works from now on".to_owned());
                self.is_healing = true;
                self.disk.weather = Weather::default();
                self.next_hops.iter_mut().for_each(|next_hop| next_hop.mood = Mood::Healthy);
                (self.operations_left, self.deliveries_left) = (None, None);
            }
        }
    }

    /// The origin of the run's clock, which is of no account, and the time since.
    pub fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.now_ms)
    }

    pub fn unix_ms(&self) -> u64 {
        UNIX_MS + self.now_ms
    }

    pub fn after(&mut self, wait_ms: u64, event: Event) {
        self.last_event += 1;
        let scheduled = Scheduled { at_ms: self.now_ms + wait_ms, number: self.last_event, event };
        self.events.push(Reverse(scheduled));
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            history.push(format!("{:>9} {}", self.now_ms, what()));
        }
    }

    /// How long octets take on a way, which keeps their order.
    fn travel_ms(&mut self, way: (u8, u64)) -> u64 {
        let arrives_ms = self.now_ms + self.random.pick(&[0, 1, 1, 2, 5, 40]);
        let last_ms = self.ways.entry(way).or_default();
        *last_ms = arrives_ms.max(*last_ms);
        *last_ms - self.now_ms
    }

    pub fn connect_client(&mut self, client: usize, connection: u64) {
        self.peers.insert(connection, client);
        if self.process.is_none() {
            return self.hang_up(connection);
        }
        self.session_begins(connection);
    }

    /// A client's connection is not the process's any more.
    fn hang_up(&mut self, session: u64) {
        self.send_to_client(session, None);
    }

    pub fn send_to_server(&mut self, session: u64, input: Option<Vec<u8>>) {
        let wait_ms = self.travel_ms((0, session));
        self.after(wait_ms, Event::ToServer { life: self.life, session, input });
    }

    pub fn send_to_client(&mut self, session: u64, input: Option<Vec<u8>>) {
        let Some(&client) = self.peers.get(&session) else { return };
        let wait_ms = self.travel_ms((1, session));
        self.after(wait_ms, Event::ToClient { client, connection: session, input });
    }

    pub fn send_to_next_hop(&mut self, next_hop: usize, connection: u64, input: Option<Vec<u8>>) {
        let wait_ms = self.travel_ms((2, connection));
        self.after(wait_ms, Event::ToNextHop { next_hop, connection, input });
    }

    /// `None` behind the last octets, or in their place: the connection ends.
    pub fn send_to_worker(
        &mut self,
        life: u64,
        worker: u64,
        connection: u64,
        input: Option<Vec<u8>>,
        taken: Option<Taken>,
    ) {
        let wait_ms = self.travel_ms((3, connection));
        self.after(wait_ms, Event::ToWorker { life, worker, connection, input, taken });
    }

    /// An operation of the disk begins: a crash may come in the middle of it.
    pub fn operation_begins(&mut self, operation: OperationId, is_write: bool) {
        // What must come to the platter takes longer.
        let wait_ms = self.random.pick(if is_write { &[0, 1, 5, 30, 100, 300] } else { &[0, 0, 1, 2, 5, 30] });
        self.after(wait_ms, Event::Disk { life: self.life, operation });
        if countdown(&mut self.operations_left) {
            let wait_ms = self.random.below(wait_ms + 1);
            self.after(wait_ms, Event::Crash { life: self.life });
        }
    }

    /// A next hop has taken a message: a crash may come before that is known.
    pub fn delivery_happened(&mut self) {
        if countdown(&mut self.deliveries_left) {
            let wait_ms = self.random.pick(&[0, 2, 10, 40, 100]);
            self.after(wait_ms, Event::Crash { life: self.life });
        }
    }

    /// Segments are being written again, or go while a batch is written: a crash may come just then.
    pub fn tempt_fate(&mut self) {
        if self.crashes_left > 0 && self.random.percent(30) {
            let wait_ms = self.random.pick(&[0, 1, 2, 10, 40]);
            self.after(wait_ms, Event::Crash { life: self.life });
        }
    }

    /// Decides how this life ends.
    pub fn doom(&mut self) {
        (self.operations_left, self.deliveries_left) = (None, None);
        if self.is_healing || self.crashes_left == 0 {
            return;
        }
        match self.random.below(5) {
            0 => {
                let longest_ms = self.random.pick(&[1_000, 10_000, 100_000]);
                let wait_ms = self.random.below(longest_ms);
                self.after(wait_ms, Event::Crash { life: self.life });
            }
            1 | 2 => self.operations_left = Some(self.random.below(60)),
            _ => self.deliveries_left = Some(self.random.below(20)),
        }
    }

    pub fn crash_somehow(&mut self) {
        if self.is_healing {
            return;
        }
        self.crashes_left = self.crashes_left.saturating_sub(1);
        let power = self.random.percent(60);
        self.crash(power);
    }

    fn crash(&mut self, power: bool) {
        self.note(|| (if power { "the power fails" } else { "the process is killed" }).to_owned());
        let sessions: Vec<u64> =
            self.process.take().map_or_else(Vec::new, |process| process.sessions.into_keys().collect());
        sessions.into_iter().for_each(|session| self.hang_up(session));
        self.judge.crashed();
        if power {
            self.judge.tally.power_cuts += 1;
            self.disk.cut_power();
            // What was on its way is lost, sooner or later.
            self.lose_what_is_on_its_way();
        } else {
            self.judge.tally.kills += 1;
            self.disk.kill();
        }
        self.life += 1;
        for next_hop in 0..self.next_hops.len() {
            let open: Vec<u64> = self.next_hops[next_hop].connections.keys().copied().collect();
            open.into_iter().for_each(|connection| self.send_to_next_hop(next_hop, connection, None));
        }
        self.rot();
        let wait_ms = self.random.between(10, 20_000);
        self.after(wait_ms, Event::Start);
    }

    fn lose_what_is_on_its_way(&mut self) {
        let mut kept = BinaryHeap::new();
        let mut lost = BTreeMap::new();
        let mut in_order: Vec<Scheduled> =
            std::mem::take(&mut self.events).into_iter().map(|Reverse(event)| event).collect();
        in_order.sort_unstable();
        for scheduled in in_order {
            if let Event::ToNextHop { connection, .. } = &scheduled.event {
                let is_lost = lost.entry(*connection).or_insert(false);
                *is_lost |= self.random.percent(40);
                if *is_lost {
                    continue;
                }
            }
            kept.push(Reverse(scheduled));
        }
        self.events = kept;
    }

    /// A bit of what is stored may flip while nobody looks.
    fn rot(&mut self) {
        if self.flips_left == 0 || self.is_healing || !self.random.percent(40) {
            return;
        }
        let files = self.disk.list();
        if files.is_empty() {
            return;
        }
        let (name, length) = files[self.random.below(files.len() as u64) as usize].clone();
        if length > 0 && self.damage(&name) {
            self.flips_left -= 1;
            self.judge.tally.flips += 1;
        }
    }

    fn change_weather(&mut self) {
        if self.is_healing {
            return;
        }
        self.disk.weather = match self.random.below(10) {
            _ if self.settings.is_calm => Weather::default(),
            0 => Weather { failing_percent: 30, full: false },
            1 => Weather { failing_percent: 100, full: false },
            2 => Weather { failing_percent: 0, full: true },
            3 => Weather { failing_percent: 5, full: false },
            _ => Weather::default(),
        };
        let weather = self.disk.weather;
        self.note(|| format!("the disk: {weather:?}"));
        let wait_ms = self.random.between(1_000, 40_000);
        self.after(wait_ms, Event::Weather);
    }

    fn change_mood(&mut self, next_hop: usize) {
        if self.is_healing {
            return;
        }
        let percent = self.random.pick(&[3, 10, 40]);
        let mood = match self.random.below(12) {
            _ if self.settings.is_calm => Mood::Healthy,
            0..5 => Mood::Flaky(percent),
            5 => Mood::Refusing,
            6 => Mood::Silent,
            7 => Mood::Unwelcoming,
            8 => Mood::Narrow,
            _ => Mood::Healthy,
        };
        self.next_hops[next_hop].mood = mood;
        self.note(|| format!("next hop {next_hop} is {mood:?}"));
        if mood == Mood::Refusing && self.random.percent(50) {
            // It has just been stopped.
            let open: Vec<u64> = self.next_hops[next_hop].connections.keys().copied().collect();
            for connection in open {
                if let Some(entry) = self.next_hops[next_hop].connections.remove(&connection) {
                    self.send_to_worker(entry.life, entry.worker, connection, None, None);
                }
            }
        }
        let wait_ms = self.random.between(2_000, 120_000);
        self.after(wait_ms, Event::Mood(next_hop));
    }
}

/// True when it comes to zero.
fn countdown(left: &mut Option<u64>) -> bool {
    match left {
        None => false,
        Some(0) => {
            *left = None;
            true
        }
        Some(count) => {
            *count -= 1;
            false
        }
    }
}

/// Three next hops: one of a domain, one of another, and the rest has a failover.
fn routes() -> Routes {
    let next_hop = |index| NextHopId::from_index(index).expect("small");
    let domain = |name: &str| RoutePattern::Domain(name.parse().expect("a domain"));
    let items = [
        (domain("a.test"), vec![next_hop(0)]),
        (domain("b.test"), vec![next_hop(1)]),
        (RoutePattern::Default, vec![next_hop(2), next_hop(0)]),
    ];
    Routes::new(items).expect("few")
}
