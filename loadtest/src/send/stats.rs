//! What a lane counts, and what went wrong by where and how.

use std::io;
use std::time::Duration;

use ahash::AHashMap;
use hdrhistogram::Histogram;

use crate::fault::Fault;

/// Latencies above ten minutes count as ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;

/// A step of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The TCP connection.
    Connect,
    /// The server's greeting.
    Greeting,
    /// EHLO or HELO.
    Ehlo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// The message up to its last chunk.
    Content,
    /// The last chunk with the final dot, and its reply.
    FinalDot,
    /// RSET.
    Rset,
    /// QUIT.
    Quit,
}

impl Step {
    /// The word for it in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Ehlo => "EHLO",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Content => "content",
            Self::FinalDot => "final dot",
            Self::Rset => "RSET",
            Self::Quit => "QUIT",
        }
    }
}

/// How a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Breakage {
    /// Nobody listens.
    Refused,
    /// No local address or port is left, or the source is not ours.
    NoAddress,
    /// No descriptor or memory is left.
    NoResources,
    /// Reset by the server.
    Reset,
    /// Closed by the server.
    Closed,
    /// No answer in time.
    Timeout,
    /// A reply that no server may send.
    Malformed,
    /// Anything else.
    Other,
}

impl Breakage {
    /// The words for it in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NoAddress => "no local address or port",
            Self::NoResources => "no descriptor or memory",
            Self::Reset => "reset",
            Self::Closed => "closed by server",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed reply",
            Self::Other => "other error",
        }
    }
}

impl From<io::Error> for Breakage {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::NoAddress,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::OutOfMemory => Self::NoResources,
            _ => match error.raw_os_error() {
                // EMFILE, ENFILE, ENOBUFS
                Some(24 | 23 | 105) => Self::NoResources,
                _ => Self::Other,
            },
        }
    }
}

/// Why a step did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A reply that was not the one hoped for.
    Refused(Step, u16),
    /// The connection is of no use any more.
    Broken(Step, Breakage),
}

/// The counts of one lane, and of a run when merged.
#[derive(Debug)]
pub struct Stats {
    /// Messages of which at least MAIL was sent.
    pub sent: u64,
    /// Messages whose final dot got 2yz.
    pub accepted: u64,
    /// Messages refused by a reply.
    pub refused: u64,
    /// Messages whose connection broke before the final dot left.
    pub interrupted: u64,
    /// Messages whose final dot may have arrived and got no reply: their fate is unknown.
    pub unacknowledged: u64,
    /// Sends again of the same message.
    pub retries: u64,
    /// Recipients refused in messages that had others.
    pub recipients_refused: u64,
    /// Sessions opened (greeting and EHLO included).
    pub connections: u64,
    /// Replies that refused something.
    pub refusals: AHashMap<(Step, u16), u64>,
    /// Connections that broke.
    pub breakages: AHashMap<(Step, Breakage), u64>,
    /// From the connection's start to the greeting.
    pub connect: Histogram<u64>,
    /// From MAIL to the reply to the final dot.
    pub transaction: Histogram<u64>,
    /// From handing over the final dot to its reply.
    pub final_dot: Histogram<u64>,
}

impl Stats {
    /// Nothing counted.
    pub fn new() -> Result<Self, Fault> {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
                .map_err(|error| Fault::System("cannot make a histogram", io::Error::other(error)))
        };
        Ok(Self {
            sent: 0,
            accepted: 0,
            refused: 0,
            interrupted: 0,
            unacknowledged: 0,
            retries: 0,
            recipients_refused: 0,
            connections: 0,
            refusals: AHashMap::new(),
            breakages: AHashMap::new(),
            connect: histogram()?,
            transaction: histogram()?,
            final_dot: histogram()?,
        })
    }

    /// Counts a failure by place and kind.
    pub fn note(&mut self, failure: Failure) {
        match failure {
            Failure::Refused(step, code) => *self.refusals.entry((step, code)).or_default() += 1,
            Failure::Broken(step, breakage) => *self.breakages.entry((step, breakage)).or_default() += 1,
        }
    }

    /// Adds the counts of another lane.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.interrupted += other.interrupted;
        self.unacknowledged += other.unacknowledged;
        self.retries += other.retries;
        self.recipients_refused += other.recipients_refused;
        self.connections += other.connections;
        for (key, count) in &other.refusals {
            *self.refusals.entry(*key).or_default() += count;
        }
        for (key, count) in &other.breakages {
            *self.breakages.entry(*key).or_default() += count;
        }
        for (sum, part) in [
            (&mut self.connect, &other.connect),
            (&mut self.transaction, &other.transaction),
            (&mut self.final_dot, &other.final_dot),
        ] {
            // Cannot fail: all have the same bounds.
            let _ = sum.add(part);
        }
    }
}

/// Records a latency in microseconds.
pub fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
}
