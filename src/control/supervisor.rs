//! Who waits for the shards, and decides how the process ends.
//!
//! A shard cannot be revived in its process: a dead executor leaks its ring, its sockets and its
//! sessions' permits. So when one has ended by a defect, or was given up by the
//! [watchdog](super::watchdog), the others drain as after SIGTERM, the process ends with
//! EX_SOFTWARE, and whoever starts it again has recovery run. The wait for the others is bounded:
//! shortly after [`Stage::Ending`] it is over, whatever else fails meanwhile.

use super::preflight::{ExitCode, Failure};
use super::watchdog::Watchdog;
use crate::limits::{ENDING_MAX_MS, ENDING_TICK_MS};
use crate::log;
use crate::shard::{self, Doorbell, Life, Shared, Stage, Start};
use crate::stderr::say;
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What is told of shards.
#[derive(Debug)]
pub enum News {
    /// One serves.
    Serving,
    /// The thread of this one has ended.
    Ended(usize, Result<(), String>),
    /// This one has not answered for so long.
    GivenUp(usize, String),
    /// The watchdog has ended: nobody would notice any more.
    Unwatched,
}

/// Starts a shard's thread, which tells `news` how it fares, and rings `watchdog` when it has ended.
/// Once it serves, it calls `give_back_memory`.
pub fn start_shard(start: Start, news: Sender<News>, watchdog: Doorbell, give_back_memory: fn()) -> io::Result<()> {
    let number = start.number();
    let (shared, doorbell) = (start.shared.clone(), start.doorbell.clone());
    let run = move || {
        // The receiver outlives the threads.
        let ready = || {
            give_back_memory();
            let _ = news.send(News::Serving);
        };
        let result = match catch_unwind(AssertUnwindSafe(|| shard::run(start, ready))) {
            Ok(Ok(())) if shared.stage() == Stage::Serving => Err("it returned".to_owned()),
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("it panicked, see above".to_owned()),
        };
        doorbell.enter(if result.is_ok() { Life::Ended } else { Life::Failed });
        watchdog.ring();
        let _ = news.send(News::Ended(number, result));
    };
    thread::Builder::new().name(format!("shard-{number}")).spawn(run).map(drop)
}

/// Starts the watchdog's thread.
pub fn start_watchdog(watchdog: Watchdog, log: log::Sender) -> io::Result<()> {
    let news = watchdog.news.clone();
    let run = move || {
        let _ = catch_unwind(AssertUnwindSafe(|| watchdog.run(log)));
        let _ = news.send(News::Unwatched);
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(run).map(drop)
}

/// Waits for the shards.
#[derive(Debug)]
pub struct Supervisor {
    /// What is told of them.
    pub news: Receiver<News>,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// The numbers of the shards.
    pub shards: BTreeSet<usize>,
    /// Makes the control thread begin to drain.
    pub drain: Arc<Notify>,
}

impl Supervisor {
    /// Calls `serving` when all shards do. Returns when all have drained; or with what failed, when
    /// those that are left have.
    pub fn wait(self, serving: impl FnOnce()) -> Result<(), Failure> {
        let mut serving = Some(serving);
        let mut starting = self.shards.len();
        let mut awaited = self.shards.clone();
        let mut fault: Option<String> = None;
        let mut ending_since = None;
        while !awaited.is_empty() {
            let lost = match self.next(fault.is_some()) {
                Some(News::Serving) => {
                    starting -= 1;
                    if starting == 0
                        && let Some(serving) = serving.take()
                    {
                        serving();
                    }
                    None
                }
                Some(News::Ended(number, result)) => {
                    awaited.remove(&number);
                    result.err().map(|cause| format!("shard {number} has ended: {cause}"))
                }
                Some(News::GivenUp(number, time)) => {
                    awaited.remove(&number);
                    Some(format!("shard {number} is given up: it has not answered for {time}"))
                }
                Some(News::Unwatched) => Some("the watchdog has ended: it panicked, see above".to_owned()),
                None => None,
            };
            if let Some(lost) = lost {
                say(format_args!("{lost}; its new connections are refused, other shards drain"));
                self.drain.notify_one();
                fault.get_or_insert(lost);
            }
            if fault.is_some() && self.shared.stage() == Stage::Ending {
                let since = *ending_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= Duration::from_millis(ENDING_MAX_MS) {
                    break;
                }
            }
        }
        let Some(fault) = fault else { return Ok(()) };
        let message = format!("{fault}; what was acknowledged is in the spool, start again");
        Err(Failure::new(ExitCode::Software, message))
    }

    /// The next news; none yet after a moment, once something has failed.
    fn next(&self, has_failed: bool) -> Option<News> {
        if has_failed {
            self.news.recv_timeout(Duration::from_millis(ENDING_TICK_MS)).ok()
        } else {
            // The watchdog holds a sender for as long as the process lives.
            self.news.recv().ok()
        }
    }
}
