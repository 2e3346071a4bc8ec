//! One thread of the sink: its listeners, its connections and its books.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::dump::{Directory, Dump};
use super::session::Session;
use crate::audit::Tally;
use crate::fault::Fault;
use crate::id::digits;
use crate::ledger::Ledger;
use crate::message::verify::{Condition, Verdict};
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
}

/// What a lane notes of its messages.
#[derive(Debug)]
pub struct Books {
    tally: Tally,
    ledger: Option<Ledger>,
    directory: Option<Arc<Directory>>,
    ehlo_reply: Vec<u8>,
    helo_reply: Vec<u8>,
    fault: Option<Fault>,
}

impl Books {
    /// Empty books of a sink called `hostname`.
    pub fn new(hostname: &str, ledger: Option<Ledger>, directory: Option<Arc<Directory>>) -> Self {
        let extensions = "250-SIZE 0\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n";
        Self {
            tally: Tally::default(),
            ledger,
            directory,
            ehlo_reply: format!("250-{hostname}\r\n{extensions}").into_bytes(),
            helo_reply: format!("250 {hostname}\r\n").into_bytes(),
            fault: None,
        }
    }

    /// Counts a message and lists its id.
    pub fn note(&mut self, verdict: Verdict<'_>, octets: u64) {
        if let (Some(ledger), Verdict::Ours { run, number, condition }) = (&mut self.ledger, verdict) {
            let remark: &[u8] = if condition == Condition::Intact { b"intact" } else { b"altered" };
            ledger.note_id(run, &digits(number), remark);
        }
        self.tally.note(verdict, octets);
    }

    /// Writes the listed ids: before their replies leave, so that a sink that is killed has listed what it took.
    pub fn flush(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.flush();
        }
    }

    /// Keeps the first failure to store something.
    pub fn note_fault(&mut self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.fault.get_or_insert(fault);
        }
    }

    /// Whether messages are stored.
    pub fn dumps(&self) -> bool {
        self.directory.is_some()
    }

    /// Begins to store a message.
    pub fn begin_dump(&mut self) -> Option<Dump> {
        match self.directory.as_ref()?.begin() {
            Ok(dump) => Some(dump),
            Err(fault) => {
                self.note_fault(Err(fault));
                None
            }
        }
    }

    /// The reply to EHLO.
    pub fn ehlo_reply(&self) -> &[u8] {
        &self.ehlo_reply
    }

    /// The reply to HELO.
    pub fn helo_reply(&self) -> &[u8] {
        &self.helo_reply
    }

    /// What was received, or the first failure to store it.
    pub fn close(self) -> Result<Tally, Fault> {
        self.fault.map_or(Ok(self.tally), Err)
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
    scratch: Box<[u8]>,
    octets: u64,
    connections: u64,
    closed: u64,
    /// Messages, connections, closed connections and octets that have been shown.
    shown: [u64; 4],
}

thread_local! {
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

fn with<R>(visit: impl FnOnce(&mut Lane) -> R) -> R {
    LANE.with_borrow_mut(|lane| visit(lane.as_mut().expect("connections are served on lanes only")))
}

/// Serves until the sink ends and returns what was received.
pub async fn run(input: Input) -> Result<Tally, Fault> {
    let Input { listeners, books, greeting, timeout, shared, record } = input;
    let scratch = vec![0; SCRATCH_OCTETS].into();
    LANE.set(Some(Lane { books, scratch, octets: 0, connections: 0, closed: 0, shown: [0; 4] }));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| Fault::System("cannot listen", error))?;
        tasks.spawn(accept(listener, greeting.clone(), timeout));
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        with(|lane| lane.tick(&shared));
        if let Some(Err(error)) = tasks.try_join_next()
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    tasks.shutdown().await;
    let mut lane = LANE.take().expect("set above");
    lane.tick(&shared);
    if let (Some(ledger), Some(path)) = (lane.books.ledger.take(), record) {
        ledger.close().map_err(|error| Fault::file(&path, error))?;
    }
    lane.books.close()
}

impl Lane {
    fn tick(&mut self, shared: &Shared) {
        let counts = [self.books.tally.messages(), self.connections, self.closed, self.octets];
        let before = std::mem::replace(&mut self.shown, counts);
        let shared = [&shared.messages, &shared.connections, &shared.closed, &shared.octets];
        for ((sum, count), before) in shared.into_iter().zip(counts).zip(before) {
            sum.fetch_add(count - before, Ordering::Relaxed);
        }
    }
}

/// Accepts connections for ever. They are this task's: they end when it is dropped.
async fn accept(listener: tokio::net::TcpListener, greeting: Arc<[u8]>, timeout: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    with(|lane| lane.connections += 1);
                    // The send buffer of a new connection is empty: no need to wait until it is known to be writable.
                    let sent = SockRef::from(&stream).send(&greeting);
                    let greeted = sent.is_ok_and(|len| len == greeting.len());
                    let client = client.ip().to_string();
                    connections.spawn(async move {
                        if greeted {
                            serve(stream, client, timeout).await;
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

/// Serves one connection until either side ends it, or it is silent for too long. Errors of a connection are its own:
/// the audit shows what did not arrive.
async fn serve(mut stream: TcpStream, client: String, timeout: Duration) {
    let mut session = Session::new(client);
    let mut deadline = Deadline::new();
    let mut out = Vec::new();
    while !session.is_closed() {
        deadline.set(Instant::now() + timeout);
        let read = poll_fn(|cx| {
            let read = with(|lane| {
                let mut buffer = ReadBuf::new(&mut lane.scratch);
                let read = Pin::new(&mut stream).poll_read(cx, &mut buffer)?;
                if read.is_ready() {
                    lane.octets += buffer.filled().len() as u64;
                    session.feed(buffer.filled(), &mut lane.books, &mut out);
                    lane.books.flush();
                    return Poll::Ready(Ok::<_, io::Error>(buffer.filled().len()));
                }
                Poll::Pending
            });
            match read {
                Poll::Pending => deadline.poll(cx).map(|()| Ok(0)),
                Poll::Ready(read) => Poll::Ready(read),
            }
        });
        if !matches!(read.await, Ok(1..)) || !write(&mut stream, &mut out, &mut deadline).await {
            return;
        }
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
