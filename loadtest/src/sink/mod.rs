//! The sink: an SMTP server that accepts everything, stores nothing unless asked to, can say what is missing, and can
//! go wrong in every way a next hop does.
//!
//! | file | subject |
//! |---|---|
//! | [`lane`] | one thread with its connections |
//! | [`session`] | one session, without a socket |
//! | [`content`], [`data`] | the content of a message; the end-of-data automaton |
//! | [`offer`] | the extensions |
//! | [`faults`] | what goes wrong, if asked for |
//! | [`books`], [`report`] | what is noted, and told at the end |
//! | [`dump`] | messages kept as files, if asked for |
//!
//! The first lines on standard output are `listening on ADDR:PORT`, one per address, then, at the end, the report. It
//! ends at SIGINT or SIGTERM, after `--messages`, or after `--idle-exit` without traffic. At SIGHUP it reads
//! `--faults-file` again and says on standard error `faults: N`, or why it keeps those it has.

mod books;
mod content;
pub mod data;
pub mod dump;
pub mod faults;
mod lane;
pub mod offer;
mod report;
mod session;
#[cfg(test)]
mod session_tests;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::audit::{self, Expected, Tally};
use crate::cli::SinkArgs;
use crate::fault::Fault;
use crate::lanes::{self, Lanes};
use crate::ledger::Ledger;
use books::{Books, Counts, Unanswered};
use dump::Directory;
use faults::Faults;
use lane::{Input, Shared};
use offer::Offer;
use report::SinkReport;

/// How often the conditions for the end are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);
/// What clients get to say QUIT after the last message.
const FAREWELL: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 4096;
/// Longest name of the sink.
const HOSTNAME_OCTETS_MAX: usize = 254;

/// Runs the sink and prints its report.
pub fn run(args: &SinkArgs) -> Result<ExitCode, Fault> {
    let named = (1..=HOSTNAME_OCTETS_MAX).contains(&args.hostname.len())
        && args.hostname.bytes().all(|octet| octet.is_ascii_graphic());
    if !named {
        return Err(Fault::Usage("--hostname is a name without spaces".to_owned()));
    }
    lanes::allow_files(0)?;
    let threads = lanes::count(args.threads, u64::MAX);
    let directory = args.dump.as_deref().map(Directory::open).transpose()?.map(Arc::new);
    let faults = Arc::new(Faults::read(&args.fault, args.faults_file.as_deref(), args.seed)?);
    let offer = Arc::new(Offer::new(&args.hostname, &args.disable_extension, args.max_message_size));
    let unanswered = Arc::new(Unanswered::default());
    let greeting: Arc<[u8]> = format!("220 {} ESMTP gatepost-load\r\n", args.hostname).into_bytes().into();
    let shared = Arc::new(Shared::default());
    let mut addresses = args.listen.clone();
    addresses.iter().try_for_each(|address| refuse_taken(*address))?;
    let mut inputs = Vec::new();
    for _ in 0..threads {
        let listeners = addresses.iter_mut().map(listen).collect::<Result<_, _>>()?;
        let open = |path| Ledger::open(path).map_err(|error| Fault::file(path, error));
        let ledger = args.record.as_deref().map(open).transpose()?;
        inputs.push(Input {
            listeners,
            books: Books::new(offer.clone(), faults.clone(), unanswered.clone(), ledger, directory.clone()),
            greeting: greeting.clone(),
            timeout: args.timeout,
            shared: shared.clone(),
            record: args.record.clone(),
        });
    }
    let runtime = lanes::runtime()?;
    let lanes = runtime.block_on(async {
        // Before the addresses are known to anybody, so that no signal can come too early.
        let listen = |kind| signal(kind).map_err(|error| Fault::System("cannot handle signals", error));
        let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let hangup = args.faults_file.is_some().then(|| listen(SignalKind::hangup())).transpose()?;
        let mut lanes = Lanes::start(inputs, lane::run)?;
        announce(&addresses)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = watch(args, &shared) => {}
            () = change_faults(args, hangup, &shared) => {}
            () = lanes.ended() => {}
        }
        Ok::<_, Fault>(lanes)
    })?;
    shared.stop.store(true, Ordering::Relaxed);
    let (mut sum, mut counts) = (Tally::default(), Counts::default());
    for (tally, others) in lanes.join()? {
        sum.merge(tally);
        counts.merge(&others);
    }
    let audit = sum.report(Expected::read(&args.expect)?.as_ref());
    let report = SinkReport::new(audit, &counts, shared.connections.load(Ordering::Relaxed));
    audit::print(&report, args.json);
    Ok(report.audit.exit_code())
}

/// Reads the faults again at each SIGHUP. Those of a file that cannot be read are not taken: the sink goes on as it was.
async fn change_faults(args: &SinkArgs, hangup: Option<Signal>, shared: &Shared) {
    let Some(mut hangup) = hangup else { return std::future::pending().await };
    while hangup.recv().await.is_some() {
        match Faults::read(&args.fault, args.faults_file.as_deref(), args.seed) {
            Ok(faults) => {
                let len = faults.len();
                shared.change_faults(faults);
                eprintln!("faults: {len}");
            }
            Err(fault) => eprintln!("gatepost-load: {fault}; the faults stay as they are"),
        }
    }
}

/// Ends when enough messages or no traffic have come.
async fn watch(args: &SinkArgs, shared: &Shared) {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    let mut before = (0, 0);
    let mut quiet_since = Instant::now();
    let mut enough_since = None;
    loop {
        ticks.tick().await;
        let traffic = (shared.connections.load(Ordering::Relaxed), shared.octets.load(Ordering::Relaxed));
        if args.messages.is_some_and(|messages| shared.messages.load(Ordering::Relaxed) >= messages) {
            let enough_since = *enough_since.get_or_insert_with(Instant::now);
            if shared.closed.load(Ordering::Relaxed) == traffic.0 || enough_since.elapsed() >= FAREWELL {
                return;
            }
        }
        if traffic != before || traffic.0 == 0 {
            before = traffic;
            quiet_since = Instant::now();
        } else if args.idle_exit.is_some_and(|idle| quiet_since.elapsed() >= idle) {
            return;
        }
    }
}

/// Binds a listener of one lane; the first one of an address replaces port 0 by what it got.
fn listen(address: &mut SocketAddr) -> Result<TcpListener, Fault> {
    let bind = || {
        let socket = socket(*address)?;
        // A socket per lane: the kernel spreads connections over them.
        socket.set_reuse_port(true)?;
        // Inherited by connections: replies never wait for a delayed acknowledgement.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    let (listener, bound) = bind().map_err(|error| Fault::System("cannot listen", error))?;
    *address = bound;
    Ok(listener)
}

/// Fails when somebody listens already: with SO_REUSEPORT a forgotten sink would silently take half of the messages.
fn refuse_taken(address: SocketAddr) -> Result<(), Fault> {
    socket(address)
        .and_then(|socket| socket.bind(&address.into()))
        .map_err(|error| Fault::System("cannot listen", error))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn announce(addresses: &[SocketAddr]) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    let mut print = || {
        for address in addresses {
            writeln!(out, "listening on {address}")?;
        }
        out.flush()
    };
    print().map_err(|error| Fault::File("standard output".to_owned(), error))
}
