//! A shard: one glommio executor on one core, with its own sessions and its own spool directory.
//!
//! The only room with glommio, sockets, a clock and `.await`. It drives the pure machines:
//! `smtp::server` by `inbound`, `queue::spool` by [`storage`]. Nothing is shared between shards
//! but [`Shared`]. On failure: a session that panics ends alone; a full or failing disk refuses
//! mail (see [`storage`]); an error of the ring or the epoll ends the shard; the others drain
//! (see `control::supervisor`), and the process recovers at its next start.

mod current;
mod dnsbl;
mod inbound;
mod listener;
mod logon;
mod message;
mod net;
mod observer;
mod outbound;
mod proxied;
mod records;
mod shared;
pub mod storage;
mod stream;

pub use dnsbl::{Lookup, Lookups};
pub use logon::{PasswordCheck, PasswordChecks};
#[cfg(feature = "fault-injection")]
pub use net::Fault;
pub use net::{Doorbell, Life};
pub use outbound::{ClientTls, Security, lanes_of};
pub use records::{Origin, Records};
pub use shared::{Edition, NextHop, Shared, Stage};

use crate::delivery::Backoff;
use crate::limits::READ_MAX_OCTETS;
use crate::log;
use crate::metrics::ShardMetrics;
use crate::queue::recover::Found;
use crate::queue::spool::Spool;
use current::Current;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use net::{Listener, Net};
use observer::ShardObserver;
use outbound::{Outbound, Recorder};
use std::cell::{Cell, RefCell};
use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use storage::{Directory, Storage};

/// Practically never. When glommio 0.9 finds its preempt timer run out before the first task of a
/// pass has run, it goes to sleep with tasks that could run, and only the next completion in the
/// ring wakes it: under load, a shard stood still for minutes. Nothing here needs the timer: the
/// dispatcher yields by itself and sees to the reactor's turns (see [`net`]).
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// Everything a shard is started with.
#[derive(Debug)]
pub struct Start {
    /// The core it is pinned to.
    pub core: usize,
    /// Its listening sockets, one for each of the configuration's bindings; none where it only delivers.
    pub listeners: Vec<TcpListener>,
    /// Its directory in the spool, whose number is its own.
    pub directory: Directory,
    /// What recovery found there.
    pub found: Found,
    /// How many shards there are, all of which deliver.
    pub shards: usize,
    /// A random number for its records.
    pub key: u64,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// What wakes it.
    pub doorbell: Doorbell,
    /// Where passwords are looked at.
    pub logons: Arc<PasswordChecks>,
    /// Where clients are looked up in DNS block lists.
    pub lookups: Arc<Lookups>,
    /// Where its records go.
    pub log: log::Sender,
}

impl Start {
    /// The shard's number.
    pub fn number(&self) -> usize {
        self.directory.number()
    }
}

/// What a shard's tasks share.
struct Context {
    /// The shard's number.
    number: usize,
    current: RefCell<Rc<Current>>,
    shared: Arc<Shared>,
    net: Net,
    storage: Storage,
    outbound: Outbound,
    metrics: Rc<ShardMetrics>,
    observer: Rc<ShardObserver>,
    records: Records,
    /// The number of the last session.
    session_numbers: Cell<u64>,
    logons: Arc<PasswordChecks>,
    lookups: Arc<Lookups>,
    hostname: Rc<str>,
    /// Every read of the shard goes here; borrowed only between two awaits.
    scratch: RefCell<Box<[u8]>>,
    /// The second and its text, for Received fields.
    date: RefCell<(u64, String)>,
    sessions: Cell<usize>,
    listening: Cell<usize>,
    /// Connections whose refusal is held back.
    late_refusals: Cell<usize>,
}

/// Runs a shard on this thread until the process has drained. `ready` is called once it serves.
pub fn run(start: Start, ready: impl FnOnce()) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Fixed(start.core))
        .name(&format!("gatepost-{}", start.number()))
        // The default pins 10 MB per ring for direct I/O, which this program does not do.
        .io_memory(64 * 1024)
        .preempt_timer(PREEMPT_TIMER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    // Dropped only where it has ended in order. It would drop the tasks that are left, outside of
    // itself: some of glommio's destructors panic there, and in a panic's cleanup that aborts the
    // process, with the drain of the other shards. So a failed shard's memory and sockets stay.
    let executor = ManuallyDrop::new(executor);
    executor.run(serve(start, ready))?;
    drop(ManuallyDrop::into_inner(executor));
    Ok(())
}

async fn serve(start: Start, ready: impl FnOnce()) -> io::Result<()> {
    let number = start.number();
    let net = Net::new(start.doorbell)?;
    let metrics = Rc::new(ShardMetrics::new(number));
    let spool = Spool::new(u32::try_from(number).unwrap_or(u32::MAX), start.found.resume, start.key);
    let spares = start.found.spares.clone();
    let storage = Storage::new(net.clone(), start.directory, spool, spares, start.shared.clone(), metrics.clone());
    let addresses = start.listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let current = Current::new(&start.shared.edition(), addresses);
    let config = &current.config;
    let next_hops = config.delivery.next_hops.len();
    let routes = config.delivery.routes.clone();
    let outbound = Outbound::new(&net, routes, next_hops, start.shards, start.found, start.key);
    let records = Records::new(start.log);
    let context = Rc::new(Context {
        number,
        hostname: config.hostname.as_str().into(),
        outbound,
        current: RefCell::new(Rc::new(current)),
        shared: start.shared,
        logons: start.logons,
        lookups: start.lookups,
        net: net.clone(),
        storage: storage.clone(),
        observer: Rc::new(ShardObserver::new(metrics.clone(), records.clone())),
        records,
        session_numbers: Cell::new(records::first_session_number(number)),
        metrics,
        scratch: RefCell::new(vec![0; READ_MAX_OCTETS].into()),
        date: RefCell::default(),
        sessions: Cell::new(0),
        listening: Cell::new(start.listeners.len()),
        late_refusals: Cell::new(0),
    });
    for (number, listener) in start.listeners.into_iter().enumerate() {
        let listener = Listener::new(&net, listener.into())?;
        let context = context.clone();
        net.clone().spawn(async move {
            listener::listen(context.clone(), number, listener).await;
            context.listening.set(context.listening.get() - 1);
            if context.listening.get() == 0 {
                context.net.doorbell().close();
            }
            context.stop_if_drained();
        });
    }
    storage.set_watcher(Rc::new(Recorder(Rc::downgrade(&context))));
    let committer = glommio::spawn_local(storage.clone().run());
    net.spawn(storage.clone().probe());
    net.spawn(outbound::keep(context.clone()));
    let watched = context.clone();
    net.spawn(async move {
        // Without listeners and sessions nothing else would notice that the process drains, or that
        // there is another configuration.
        loop {
            watched.stop_if_drained();
            watched.take_edition();
            watched.net.bell().await;
        }
    });
    ready();
    let result = net.dispatch(|lag| context.metrics.loop_lag_seconds.record(lag.as_secs_f64())).await;
    outbound::write_lost(&context);
    storage.stop();
    committer.await;
    // glommio panics where an executor ends with work in its blocking pool.
    net.ring_operations_ended().await;
    result
}

impl Context {
    /// A number that no other session of this process has.
    fn next_session_number(&self) -> u64 {
        let number = self.session_numbers.get() + 1;
        self.session_numbers.set(number);
        number
    }

    /// What this shard goes by now.
    fn current(&self) -> Rc<Current> {
        self.current.borrow().clone()
    }

    /// The waits between tries of a delivery.
    fn backoff(&self) -> Backoff {
        self.current.borrow().config.delivery.backoff()
    }

    /// Goes by the newest configuration from now on, and says so.
    fn take_edition(&self) {
        let edition = self.shared.edition();
        let current = self.current();
        if edition.number > current.edition {
            self.current.replace(Rc::new(current.succeeded_by(&edition)));
        }
        self.net.doorbell().took(edition.number);
    }

    fn session_began(&self) {
        self.sessions.set(self.sessions.get() + 1);
    }

    fn session_ended(&self) {
        self.sessions.set(self.sessions.get() - 1);
        self.stop_if_drained();
    }

    fn stop_if_drained(&self) {
        let is_idle = self.listening.get() == 0 && self.sessions.get() == 0 && !self.outbound.is_busy();
        if is_idle && self.shared.stage() != Stage::Serving {
            self.net.stop();
        }
    }

    /// Whether mail cannot be taken now (E8, C6): memory or disk is below its watermark, or this shard's
    /// storage fails. Other shards' may work.
    fn is_short(&self) -> bool {
        self.shared.resources_short() || self.storage.is_failing()
    }

    /// The time of the dispatcher's last turn, in milliseconds since the start of the process.
    fn now_ms(&self) -> u64 {
        self.shared.ms(self.net.now())
    }

    /// The time of day, in milliseconds since the Unix epoch.
    fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
    }

    /// Shows `act` the RFC 5322 date-time of `time`.
    fn with_date(&self, time: SystemTime, act: impl FnOnce(&str)) {
        let second = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut date = self.date.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            // RFC 5322 section 3.3: "GMT" is the obsolete spelling of +0000.
            *date = (second, httpdate::fmt_http_date(time).replace("GMT", "+0000"));
        }
        act(&date.1);
    }
}
