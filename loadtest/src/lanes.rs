//! Threads with a runtime each ("lanes"): sessions never move between them, so that nothing is locked on their path.
//!
//! What a lane keeps for its sessions (figures, lists, scratch buffers) is thread-local there; the runtime has one
//! thread, so a borrow between two awaits can never meet another. Lanes tell the main thread that they have ended by
//! their result; a panic in a lane is the process's.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::fault::Fault;

/// File descriptors besides the sessions': files, listeners, epoll and signal pipes.
const SPARE_FILES: u64 = 128;

/// A runtime for one thread.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::System("cannot start a runtime", error))
}

/// Number of lanes: what was asked for, else one per core, never more than there is work for.
pub fn count(asked: Option<u64>, work: u64) -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    asked.unwrap_or(cores).clamp(1, work.max(1))
}

/// Threads that each run one future to its end.
pub struct Lanes<T> {
    threads: Vec<JoinHandle<Result<T, Fault>>>,
    ended: mpsc::Receiver<()>,
}

impl<T: Send + 'static> Lanes<T> {
    /// Starts one thread per element; `work` makes its future there.
    pub fn start<I, F, W>(inputs: Vec<I>, work: W) -> Result<Self, Fault>
    where
        I: Send + 'static,
        F: Future<Output = Result<T, Fault>>,
        W: Fn(I) -> F + Clone + Send + 'static,
    {
        let (sender, ended) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.into_iter().enumerate() {
            let (work, sender) = (work.clone(), sender.clone());
            let thread = std::thread::Builder::new()
                .name(format!("lane-{index}"))
                .spawn(move || {
                    let result = runtime().and_then(|runtime| runtime.block_on(work(input)));
                    drop(sender);
                    result
                })
                .map_err(|error| Fault::System("cannot start a thread", error))?;
            threads.push(thread);
        }
        Ok(Self { threads, ended })
    }

    /// Waits until every lane has ended. Can be dropped and called again.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the channel closes when the last lane has dropped its end.
        while self.ended.recv().await.is_some() {}
    }

    /// The results of all lanes; the first fault wins.
    pub fn join(self) -> Result<Vec<T>, Fault> {
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    }
}

/// Raises the limit of open files as far as allowed and refuses what would not fit.
pub fn allow_files(sessions: u64) -> Result<(), Fault> {
    let fault = |errno| Fault::System("cannot raise the limit of open files", io::Error::from(errno));
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fault)?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(fault)?;
    if files < sessions + SPARE_FILES {
        let needed = sessions + SPARE_FILES;
        return Err(Fault::Usage(format!("{sessions} sessions need {needed} open files, the hard limit is {files}")));
    }
    Ok(())
}
