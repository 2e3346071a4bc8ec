//! The sender: a closed loop of sessions over threads.
//!
//! | file | subject |
//! |---|---|
//! | [`plan`] | the options, resolved into prepared commands and the message |
//! | [`run`] | which message is next and when it is over; shared by all threads |
//! | [`lane`] | one thread with its sessions, counts and list of accepted ids |
//! | [`session`] | one session: connections, transactions, failures |
//! | [`wire`] | the socket with its deadlines |
//! | [`reply`] | replies of the server |
//! | [`source`] | addresses to connect from |
//! | [`stats`], [`summary`] | counts and latencies, and their presentation |
//!
//! The path of a message: three static commands, one copy of the prepared message with ten digits written at a dozen
//! places, one write per step, no allocation, no lock. A failure never ends the process: it is counted by place and
//! kind.

mod lane;
pub mod plan;
mod reply;
mod run;
mod session;
pub mod source;
mod stats;
mod summary;
pub mod wire;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::SendArgs;
use crate::fault::Fault;
use crate::lanes::{self, Lanes};
use crate::ledger::Ledger;
use plan::Plan;
use run::{Run, Stop};
use stats::Stats;
use summary::Summary;

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the sender and prints its summary.
pub fn run(args: &SendArgs) -> Result<ExitCode, Fault> {
    let plan = Arc::new(Plan::new(args)?);
    // More sessions than messages would connect for nothing.
    let sessions = args.sessions.min(plan.limits.messages);
    lanes::allow_files(sessions)?;
    let threads = lanes::count(args.threads, sessions).min(sessions);
    let run = Arc::new(Run::new(plan.limits));
    let mut inputs = Vec::new();
    for index in 0..threads {
        let open = |path| Ledger::open(path).map_err(|error| Fault::file(path, error));
        inputs.push(lane::Input {
            plan: plan.clone(),
            run: run.clone(),
            sessions: sessions / threads + u64::from(index < sessions % threads),
            ledger: plan.acked_file.as_deref().map(open).transpose()?,
            stats: Stats::new()?,
        });
    }
    let mut sum = Stats::new()?;
    let mut lanes = Lanes::start(inputs, lane::run)?;
    lanes::runtime()?.block_on(watch(&mut lanes, &run, args.progress))?;
    let elapsed = run.elapsed();
    for stats in lanes.join()? {
        sum.merge(&stats);
    }
    let summary = Summary::new(&plan, &run, &sum, elapsed, threads, sessions);
    match args.json {
        true => println!("{}", serde_json::to_string(&summary).unwrap_or_default()),
        false => println!("{summary}"),
    }
    Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for the lanes' end, shows progress, and stops the run at SIGINT or SIGTERM.
async fn watch(lanes: &mut Lanes<Stats>, run: &Run, progress: bool) -> Result<(), Fault> {
    let listen = |kind| signal(kind).map_err(|error| Fault::System("cannot handle signals", error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    let mut before = 0;
    loop {
        tokio::select! {
            () = lanes.ended() => return Ok(()),
            _ = interrupt.recv() => run.stop(Stop::Signal),
            _ = terminate.recv() => run.stop(Stop::Signal),
            _ = ticks.tick(), if progress => {
                let (accepted, errors) = run.progress();
                let elapsed_s = run.elapsed().as_secs_f64();
                eprintln!("{elapsed_s:.0} s: accepted {accepted} (+{}), errors {errors}", accepted - before);
                before = accepted;
            }
        }
    }
}
