//! A shard's sockets: one epoll inside the glommio executor.
//!
//! [`Listener`] and [`Connection`] are all that the rest of the shard sees. A task per session
//! waits in [`Connection::ready`]; the dispatcher task reads the epoll, marks what is ready and
//! wakes the tasks. With nothing to do it naps in `epoll_wait` for a moment, then parks on the
//! ring ([`park`]), where file operations and this epoll wake it alike.
//!
//! Rules that keep the ring served, since glommio enters its reactor only when no task can run:
//! - no nap while a file operation waits to be submitted, or while a task was made runnable behind
//!   the dispatcher's back ([`Net::ring_operation`], [`Net::note_runnable`]);
//! - while operations are in the kernel naps are short: a sync takes longer anyway, and parking
//!   costs ten times an `epoll_wait` (57 against 65 us per message, 140 against 160 reconnecting);
//! - under load, with operations in flight, a one-microsecond timer forces a pass of the reactor
//!   every [`REACTOR_PASS_US`];
//! - a task with more to do than its share waits in [`Net::next_turn`], never in a yield to itself;
//! - other threads wake a shard by its [`Doorbell`], which is in the epoll: glommio does not
//!   signal an executor that is not parked. It is also how the watchdog asks for a beat.
//!
//! Readiness is edge-triggered: a slot stays `readable` until a short read or EAGAIN shows that
//! the socket is empty; after a hang-up every read goes through, so that the end is never missed.

mod connection;
mod doorbell;
#[cfg(feature = "fault-injection")]
mod fault;
mod park;
mod wheel;

pub use connection::{Accepted, Alarm, Connection, Listener, Nudge, Ready, RemoteNudge};
pub use doorbell::{Doorbell, Life};
#[cfg(feature = "fault-injection")]
pub use fault::Fault;

use crate::limits::LINGERING_MAX;
use futures_lite::future::yield_now;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, read};
use rustix::net::{RecvFlags, recv};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use wheel::Wheel;

/// Longest nap in `epoll_wait` before parking, with file operations on their way in the kernel.
const SHORT_NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// Longest nap without any.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Longest time without a pass of glommio's reactor while file operations are in flight.
const REACTOR_PASS_US: u64 = 500;
const EVENTS_MAX: usize = 256;
/// Steps of a TLS handshake in one turn of the dispatcher: up to 1 ms each with an RSA key.
const PASSES_PER_TURN: usize = 4;
/// Added to every deadline. Those that begin with a reply are reckoned from a time before it left,
/// and a peer may measure from when it came: it is not to find its timer early.
const CLOCK_LAG_MS: u64 = 20;

/// Epoll data of what is no slot.
const DOORBELL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What the shard knows of one socket.
#[derive(Debug)]
struct Slot {
    generation: u32,
    readable: bool,
    /// EPOLLRDHUP or worse was seen: an end or an error waits behind the input.
    hung_up: bool,
    /// EPOLLHUP or EPOLLERR was seen: both directions have ended.
    is_dead: bool,
    writable: bool,
    expired: bool,
    rung: bool,
    waker: Option<Waker>,
    /// A socket that only waits for its peer's end.
    lingering: Option<OwnedFd>,
}

#[derive(Debug)]
struct Inner {
    epoll: OwnedFd,
    timer: OwnedFd,
    doorbell: Doorbell,
    slots: RefCell<Slab<Slot>>,
    next_generation: Cell<u32>,
    lingering: Cell<usize>,
    wheel: RefCell<Wheel>,
    /// When the timer is set to go off, in the wheel's milliseconds.
    armed_ms: Cell<u64>,
    epoch: Instant,
    now: Cell<Instant>,
    ring_operations: Cell<u32>,
    /// A file operation has begun that glommio submits at its next pass.
    unsubmitted: Cell<bool>,
    /// Tasks became runnable that the dispatcher does not know of.
    runnable: Cell<bool>,
    stopped: Cell<bool>,
    /// The dispatcher waits on the ring.
    parked: Cell<bool>,
    /// Who waits in [`Net::next_turn`].
    deferred: RefCell<Vec<Waker>>,
    /// Who waits in [`Net::pass`], in the order in which they came.
    waiting: RefCell<VecDeque<Waker>>,
    /// How many more may pass in this turn.
    passes: Cell<usize>,
    /// Who waits in [`Net::bell`].
    bell_waker: RefCell<Option<Waker>>,
}

/// The sockets of a shard; clones are the same.
#[derive(Clone, Debug)]
pub struct Net(Rc<Inner>);

/// Held while a file operation is on its way through the ring.
#[derive(Debug)]
pub struct RingOperation(Net);

impl Drop for RingOperation {
    fn drop(&mut self) {
        let operations = &self.0.0.ring_operations;
        operations.set(operations.get() - 1);
    }
}

impl Net {
    /// The epoll of this thread's shard, woken by `doorbell`.
    pub fn new(doorbell: Doorbell) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &doorbell, EventData::new_u64(DOORBELL), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let now = Instant::now();
        Ok(Net(Rc::new(Inner {
            epoll,
            timer,
            doorbell,
            slots: RefCell::default(),
            next_generation: Cell::new(0),
            lingering: Cell::new(0),
            wheel: RefCell::default(),
            armed_ms: Cell::new(u64::MAX),
            epoch: now,
            now: Cell::new(now),
            ring_operations: Cell::new(0),
            unsubmitted: Cell::new(false),
            runnable: Cell::new(true),
            stopped: Cell::new(false),
            parked: Cell::new(false),
            deferred: RefCell::default(),
            waiting: RefCell::default(),
            passes: Cell::new(PASSES_PER_TURN),
            bell_waker: RefCell::default(),
        })))
    }

    /// The time of the dispatcher's last turn, or of the last read or accept.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Reads the clock: for what runs after a long wait for something other than a socket.
    pub fn refresh_now(&self) -> Instant {
        self.0.now.set(Instant::now());
        self.0.now.get()
    }

    /// Says that a file operation is on its way, until the result is dropped.
    pub fn ring_operation(&self) -> RingOperation {
        let operations = &self.0.ring_operations;
        operations.set(operations.get() + 1);
        self.0.unsubmitted.set(true);
        RingOperation(self.clone())
    }

    /// Waits until no file operation is on its way; for the end, when nobody dispatches any more.
    pub async fn ring_operations_ended(&self) {
        while self.0.ring_operations.get() > 0 {
            glommio::timer::Timer::new(Duration::from_millis(1)).await;
        }
    }

    /// Says that a task was made runnable other than by its socket: no nap before it has run.
    pub fn note_runnable(&self) {
        self.0.runnable.set(true);
    }

    /// Spawns a task on this shard.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.note_runnable();
        glommio::spawn_local(task).detach();
    }

    /// Lets the dispatcher, and so everybody else, have a turn. A task that yielded to itself
    /// instead would keep glommio from its reactor.
    pub async fn next_turn(&self) {
        if self.0.parked.get() {
            // It has no turn before its epoll has events: a pass of the reactor sees to those.
            glommio::timer::Timer::new(Duration::from_micros(1)).await;
            return;
        }
        let mut waits = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waits, true) {
                return Poll::Ready(());
            }
            self.0.deferred.borrow_mut().push(cx.waker().clone());
            self.note_runnable();
            Poll::Pending
        })
        .await;
    }

    /// Waits for a place in the dispatcher's turn: for what takes the core long, a handshake's
    /// signature, so that a crowd of it leaves time for everybody else.
    pub async fn pass(&self) {
        let inner = &*self.0;
        if inner.parked.get() {
            return self.next_turn().await;
        }
        let mut waits = false;
        poll_fn(|cx| {
            let has_place = waits || inner.passes.get() > 0 && inner.waiting.borrow().is_empty();
            if has_place {
                inner.passes.update(|passes| passes.saturating_sub(1));
                return Poll::Ready(());
            }
            waits = true;
            inner.waiting.borrow_mut().push_back(cx.waker().clone());
            self.note_runnable();
            Poll::Pending
        })
        .await;
    }

    /// Waits until the doorbell is rung or told something, without a socket; one task at a time.
    pub async fn bell(&self) {
        let mut waits = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waits, true) {
                return Poll::Ready(());
            }
            self.0.bell_waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Makes [`Self::dispatch`] return.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        self.0.doorbell.ring();
    }

    /// What wakes this shard, and shows that it lives.
    pub fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }

    /// Serves the sockets until [`Self::stop`]. From its begin to its orderly end beats are due. `lag` is told
    /// how long the tasks of each turn took: so long nobody looked at the sockets.
    pub async fn dispatch(&self, lag: impl Fn(Duration)) -> io::Result<()> {
        let inner = &*self.0;
        inner.doorbell.enter(Life::Beating);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut last_pass = self.refresh_now();
        let mut turn_began = last_pass;
        while !inner.stopped.get() {
            let mut deferred = inner.deferred.take();
            inner.let_pass(&mut deferred);
            let runnable = inner.runnable.replace(false) || !deferred.is_empty();
            let in_flight = inner.ring_operations.get() > 0;
            let timeout = match (runnable || inner.unsubmitted.get(), in_flight) {
                (true, _) => &NO_WAIT,
                (false, true) => &SHORT_NAP,
                (false, false) => &NAP,
            };
            lag(turn_began.elapsed());
            match epoll::wait(&inner.epoll, rustix::buffer::spare_capacity(&mut events), Some(timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = self.refresh_now();
            turn_began = now;
            let mut idle = !runnable;
            for event in events.drain(..) {
                idle &= !inner.handle(event);
            }
            deferred.into_iter().for_each(Waker::wake);
            let overdue = now.duration_since(last_pass) > Duration::from_micros(REACTOR_PASS_US);
            if idle {
                inner.unsubmitted.set(false);
                inner.parked.set(true);
                park::until_ready(&inner.epoll).await;
                inner.parked.set(false);
                last_pass = self.refresh_now();
                turn_began = last_pass;
                // Tasks that a completion woke come first.
                self.note_runnable();
            } else if in_flight && overdue {
                inner.unsubmitted.set(false);
                glommio::timer::Timer::new(Duration::from_micros(1)).await;
                last_pass = now;
            } else {
                yield_now().await;
            }
        }
        inner.doorbell.enter(Life::Leaving);
        Ok(())
    }

    /// Registers a socket; it may be ready already.
    fn register(&self, fd: impl AsFd, interest: EventFlags, readable: bool) -> io::Result<Key> {
        let key = self.take_slot(readable);
        let flags = interest | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&self.0.epoll, fd, EventData::new_u64(key.token()), flags) {
            self.0.forget(&mut self.0.slots.borrow_mut(), key.index);
            return Err(error.into());
        }
        Ok(key)
    }

    fn take_slot(&self, readable: bool) -> Key {
        let inner = &*self.0;
        let generation = inner.next_generation.get();
        inner.next_generation.set(generation.wrapping_add(1));
        let index = inner.slots.borrow_mut().insert(Slot {
            generation,
            readable,
            hung_up: false,
            is_dead: false,
            writable: true,
            expired: false,
            rung: false,
            waker: None,
            lingering: None,
        });
        Key { index: index as u32, generation }
    }
}

/// A slot's place and generation.
#[derive(Clone, Copy, Debug)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

impl Inner {
    /// Sees to an event; whether there was more to do than to count a beat.
    fn handle(&self, event: Event) -> bool {
        match event.data.u64() {
            DOORBELL => {
                let rung = self.doorbell.hear();
                let calls = self.doorbell.take_calls();
                calls.iter().for_each(|&token| self.nudge(token));
                let told = self.doorbell.take_told();
                if (rung || told)
                    && let Some(waker) = self.bell_waker.take()
                {
                    waker.wake();
                }
                if !rung {
                    return told || !calls.is_empty();
                }
                for (_, slot) in self.slots.borrow_mut().iter_mut() {
                    slot.rung = true;
                    wake(slot);
                }
            }
            TIMER => self.handle_timer(),
            token => self.handle_socket(token, event.flags),
        }
        true
    }

    /// Gives out the passes of a new turn.
    fn let_pass(&self, runnable: &mut Vec<Waker>) {
        self.passes.set(PASSES_PER_TURN);
        let mut waiting = self.waiting.borrow_mut();
        let passing = waiting.len().min(PASSES_PER_TURN);
        runnable.extend(waiting.drain(..passing));
    }

    fn handle_socket(&self, token: u64, flags: EventFlags) {
        let index = (token & u64::from(u32::MAX)) as usize;
        let mut slots = self.slots.borrow_mut();
        // An event that was read before its slot was given away is none of the new owner's.
        let Some(slot) = slots.get_mut(index).filter(|slot| u64::from(slot.generation) == token >> 32) else { return };
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            slot.hung_up = true;
            slot.readable = true;
        }
        // Not where only the peer has ended: each look at a full buffer would bring the event again.
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            slot.is_dead = true;
            slot.writable = true;
        }
        if flags.contains(EventFlags::IN) {
            slot.readable = true;
        }
        if flags.contains(EventFlags::OUT) {
            slot.writable = true;
        }
        if let Some(fd) = &slot.lingering {
            if !drain(fd) {
                self.forget(&mut slots, index as u32);
            }
        } else {
            wake(slot);
        }
    }

    /// Wakes the task whose slot has this token, now or when it waits next, if it still has it.
    fn nudge(&self, token: u64) {
        let mut slots = self.slots.borrow_mut();
        let index = (token & u64::from(u32::MAX)) as usize;
        if let Some(slot) = slots.get_mut(index).filter(|slot| u64::from(slot.generation) == token >> 32) {
            slot.rung = true;
            wake(slot);
            self.runnable.set(true);
        }
    }

    fn handle_timer(&self) {
        let _ = read(&self.timer, &mut [0; 8]);
        self.armed_ms.set(u64::MAX);
        let now_ms = self.ms(self.now.get());
        let mut slots = self.slots.borrow_mut();
        let mut over = Vec::new();
        self.wheel.borrow_mut().fire(now_ms, |index| {
            if let Some(slot) = slots.get_mut(index as usize) {
                if slot.lingering.is_some() {
                    over.push(index);
                } else {
                    slot.expired = true;
                    wake(slot);
                }
            }
        });
        for index in over {
            self.forget(&mut slots, index);
        }
        drop(slots);
        self.arm();
    }

    /// Frees a slot; a lingering socket is closed with it.
    fn forget(&self, slots: &mut Slab<Slot>, index: u32) {
        self.wheel.borrow_mut().set(index, None);
        if slots.remove(index as usize).lingering.is_some() {
            self.lingering.set(self.lingering.get() - 1);
        }
    }

    fn ms(&self, time: Instant) -> u64 {
        time.duration_since(self.epoch).as_millis() as u64
    }

    fn set_deadline(&self, index: u32, deadline: Option<Instant>) {
        self.wheel.borrow_mut().set(index, deadline.map(|deadline| self.ms(deadline) + CLOCK_LAG_MS));
        self.arm();
    }

    /// Sets the timer when it would go off too late.
    fn arm(&self) {
        let Some(next_ms) = self.wheel.borrow().next_ms() else { return };
        if next_ms >= self.armed_ms.get() {
            return;
        }
        self.armed_ms.set(next_ms);
        // Relative to now: the clock behind Instant is the timer's, but its value is hidden.
        let ahead = Duration::from_millis(next_ms).saturating_sub(self.epoch.elapsed()).max(Duration::from_micros(1));
        let it_value = Timespec { tv_sec: ahead.as_secs() as i64, tv_nsec: i64::from(ahead.subsec_nanos()) };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })
            .expect("a valid time on a timer of our own");
    }

    /// Keeps a half-closed socket until its peer ends it or the deadline passes.
    fn linger(&self, key: Key, fd: OwnedFd, deadline: Instant) {
        let mut slots = self.slots.borrow_mut();
        if self.lingering.get() >= LINGERING_MAX || !drain(&fd) {
            self.forget(&mut slots, key.index);
            return;
        }
        if let Some(slot) = slots.get_mut(key.index as usize) {
            slot.waker = None;
            slot.lingering = Some(fd);
            self.lingering.set(self.lingering.get() + 1);
        }
        drop(slots);
        self.set_deadline(key.index, Some(deadline));
    }
}

fn wake(slot: &mut Slot) {
    if let Some(waker) = slot.waker.take() {
        waker.wake();
    }
}

/// Throws away what the peer still sends; false when it has ended.
fn drain(fd: &OwnedFd) -> bool {
    let mut scratch = [0; 4096];
    // A peer that sends faster than this loop reads waits for the next event.
    for _ in 0..16 {
        match recv(fd, &mut scratch[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok((octets, _)) if octets < scratch.len() => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}
