//! One thread of the sink: its listeners, its connections and its books.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::books::{Books, Counts};
use super::faults::Faults;
use super::session::{Pace, Session};
use crate::audit::Tally;
use crate::fault::Fault;
use crate::send::wire::Deadline;

/// Octets read at once, into one buffer for all connections of a lane.
const SCRATCH_OCTETS: usize = 64 * 1024;
/// How long counts may stay out of sight.
const TICK: Duration = Duration::from_millis(5);
/// Pause of a listener that cannot accept, for lack of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all lanes share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Messages so far.
    pub messages: AtomicU64,
    /// Connections so far.
    pub connections: AtomicU64,
    /// Those of them that have ended.
    pub closed: AtomicU64,
    /// Octets read so far.
    pub octets: AtomicU64,
    /// The sink is to end.
    pub stop: AtomicBool,
    /// How often the faults have been changed.
    changes: AtomicU64,
    /// The last of them.
    faults: Mutex<Arc<Faults>>,
}

impl Shared {
    /// Changes what goes wrong, from the next input of each connection on.
    pub fn change_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults);
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// What a lane is started with.
pub struct Input {
    /// Its end of each listening address.
    pub listeners: Vec<TcpListener>,
    /// Its books.
    pub books: Books,
    /// The greeting.
    pub greeting: Arc<[u8]>,
    /// Time a connection may be silent.
    pub timeout: Duration,
    /// What all lanes share.
    pub shared: Arc<Shared>,
    /// The file behind the ledger, for its faults.
    pub record: Option<PathBuf>,
}

struct Lane {
    books: Books,
    /// Changes of the faults that the books know.
    changes: u64,
    shared: Arc<Shared>,
    greeting: Arc<[u8]>,
    scratch: Box<[u8]>,
    octets: u64,
    closed: u64,
    /// Messages, closed connections and octets that have been shown.
    shown: [u64; 3],
}

thread_local! {
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

fn with<R>(visit: impl FnOnce(&mut Lane) -> R) -> R {
    LANE.with_borrow_mut(|lane| visit(lane.as_mut().expect("connections are served on lanes only")))
}

/// Serves until the sink ends and returns what was received.
pub async fn run(input: Input) -> Result<(Tally, Counts), Fault> {
    let Input { listeners, books, greeting, timeout, shared, record } = input;
    let scratch = vec![0; SCRATCH_OCTETS].into();
    let lane =
        Lane { books, changes: 0, shared: shared.clone(), greeting, scratch, octets: 0, closed: 0, shown: [0; 3] };
    LANE.set(Some(lane));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| Fault::System("cannot listen", error))?;
        tasks.spawn(accept(listener, timeout));
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        with(Lane::tick);
        if let Some(Err(error)) = tasks.try_join_next()
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    tasks.shutdown().await;
    let mut lane = LANE.take().expect("set above");
    lane.tick();
    if let Some(path) = record {
        lane.books.close_ledger().map_err(|error| Fault::file(&path, error))?;
    }
    lane.books.close()
}

impl Lane {
    fn tick(&mut self) {
        let counts = [self.books.messages(), self.closed, self.octets];
        let before = std::mem::replace(&mut self.shown, counts);
        let shared = [&self.shared.messages, &self.shared.closed, &self.shared.octets];
        for ((sum, count), before) in shared.into_iter().zip(counts).zip(before) {
            sum.fetch_add(count - before, Ordering::Relaxed);
        }
    }

    /// The books, with the faults of now.
    fn books(&mut self) -> &mut Books {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if changes != self.changes {
            self.changes = changes;
            self.books.set_faults(self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
        &mut self.books
    }

    /// Begins a session: itself, its greeting, and how it goes on.
    fn greet(&mut self, client: String) -> (Session, Vec<u8>, Pace) {
        let number = self.shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (mut session, mut out) = (Session::new(client, number), Vec::new());
        let greeting = self.greeting.clone();
        let pace = session.greet(&greeting, self.books(), &mut out);
        (session, out, pace)
    }
}

/// Accepts connections for ever. They are this task's: they end when it is dropped.
async fn accept(listener: tokio::net::TcpListener, timeout: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    let (session, mut out, pace) = with(|lane| lane.greet(client.ip().to_string()));
                    // The send buffer of a new connection is empty: no need to wait until it is known to be writable.
                    let sent = SockRef::from(&stream).send(&out);
                    let greeted = sent.is_ok_and(|len| len == out.len());
                    out.clear();
                    connections.spawn(async move {
                        if greeted {
                            Connection { stream, session, out, deadline: Deadline::new(), timeout }.serve(pace).await;
                        }
                        with(|lane| lane.closed += 1);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended && error.is_panic() {
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

/// A connection with its session. Its errors are its own: the audit shows what did not arrive.
struct Connection {
    stream: TcpStream,
    session: Session,
    out: Vec<u8>,
    deadline: Deadline,
    timeout: Duration,
}

impl Connection {
    /// Serves until either side ends it, or it is silent for too long.
    async fn serve(mut self, mut pace: Pace) {
        // Input that was read and has to wait.
        let mut held = Vec::new();
        loop {
            match pace {
                Pace::Go => {}
                Pace::Wait(time) => {
                    if !self.is_still_there_after(time).await {
                        return self.give_up();
                    }
                    self.session.resume(&mut self.out);
                    self.deadline.set(Instant::now() + self.timeout);
                    if !self.write().await {
                        return;
                    }
                }
                Pace::Hang { reads } => return self.hang(reads).await,
                Pace::Reset => {
                    // Dropped with this, the socket resets the connection; when that fails the client is gone.
                    let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                    return;
                }
                Pace::Close => {
                    let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
                    return self.hang(true).await;
                }
            }
            if self.session.is_closed() {
                return;
            }
            let Some(next) = self.feed(&mut held).await else { return };
            pace = next;
            if !self.write().await {
                return;
            }
        }
    }

    /// Gives the session what was held back, or else what comes next. None when nothing comes any more.
    async fn feed(&mut self, held: &mut Vec<u8>) -> Option<Pace> {
        let Self { stream, session, out, deadline, timeout } = self;
        if !held.is_empty() {
            return Some(with(|lane| {
                let (taken, pace) = session.feed(held, lane.books(), out);
                lane.books.flush();
                held.drain(..taken);
                pace
            }));
        }
        deadline.set(Instant::now() + *timeout);
        let read = poll_fn(|cx| {
            let read = with(|lane| {
                // Taken out for the while, so that the books can be lent too.
                let mut scratch = std::mem::take(&mut lane.scratch);
                let mut buffer = ReadBuf::new(&mut scratch);
                let read = match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(None),
                    Poll::Ready(Ok(())) => {
                        let input = buffer.filled();
                        lane.octets += input.len() as u64;
                        let (taken, pace) = session.feed(input, lane.books(), out);
                        lane.books.flush();
                        held.extend_from_slice(&input[taken..]);
                        Poll::Ready(Some(pace))
                    }
                    Poll::Ready(Err(_)) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                };
                lane.scratch = scratch;
                read
            });
            match read {
                Poll::Pending => deadline.poll(cx).map(|()| None),
                ready => ready,
            }
        });
        read.await
    }

    /// Writes what was said. False when that cannot be done.
    async fn write(&mut self) -> bool {
        with(|lane| self.session.writing(&lane.books));
        let written = write(&mut self.stream, &mut self.out, &mut self.deadline).await;
        match written {
            true => self.session.written(),
            false => self.give_up(),
        }
        written
    }

    /// Nothing that was said can be written any more.
    fn give_up(&mut self) {
        with(|lane| {
            self.session.unwritten(&mut lane.books);
            lane.books.flush();
        });
    }

    /// Waits. False when the client leaves meanwhile, as far as that can be seen behind what it may have sent.
    async fn is_still_there_after(&self, time: Duration) -> bool {
        let left = async {
            if let Ok(1..) = self.stream.peek(&mut [0]).await {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = left => false,
        }
    }

    /// Says nothing any more, until the client leaves or the connection has been silent for too long.
    async fn hang(&self, reads: bool) {
        let left = async {
            if !reads {
                // Without reading only a reset can be seen.
                let _ = self.stream.ready(Interest::ERROR).await;
                return;
            }
            while self.stream.readable().await.is_ok() {
                match with(|lane| self.stream.try_read(&mut lane.scratch)) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return,
                }
            }
        };
        // Not a matter of one deadline: what is read here is thrown away, and proves nothing.
        let _ = tokio::time::timeout(self.timeout, left).await;
    }
}

async fn write(stream: &mut TcpStream, out: &mut Vec<u8>, deadline: &mut Deadline) -> bool {
    let mut at = 0;
    let written = poll_fn(|cx| {
        while at < out.len() {
            match Pin::new(&mut *stream).poll_write(cx, &out[at..]) {
                Poll::Ready(Ok(len)) => at += len,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return deadline.poll(cx).map(|()| false),
            }
        }
        Poll::Ready(true)
    })
    .await;
    out.clear();
    written
}
