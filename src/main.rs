//! The `gatepost` program: arguments, preflight, threads, exit code.

use clap::Parser;
use gatepost::config::options::{Cli, Command};
use gatepost::config::{self, Config, Sources};
use gatepost::control::admin::{self, AdminSocket};
use gatepost::control::logons;
use gatepost::control::preflight::{self, ExitCode, Failure};
use gatepost::control::reload::{self, Reloader};
use gatepost::control::resources::Resources;
use gatepost::control::supervisor::{self, Supervisor};
use gatepost::control::tls::TlsLoader;
use gatepost::control::watchdog::{Ward, Watchdog};
use gatepost::control::watched::Prepared;
use gatepost::control::{Control, next_hops};
use gatepost::log::{self, Log};
use gatepost::queue::record::Record;
use gatepost::queue::recover::{self, Found};
use gatepost::shard::storage::{Directory, SpoolDirectory, shard_directories};
use gatepost::shard::{self, Doorbell, Lookups, Shared, Start};
use gatepost::{cmd, metrics, stderr, stdout};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use mimalloc::MiMalloc;
use std::env;
use std::fs;
use std::io::{self, BufWriter};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use tokio::sync::Notify;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap prints both kinds where they belong.
            let _ = error.print();
            return if error.use_stderr() {
                process::ExitCode::from(ExitCode::Usage as u8)
            } else {
                process::ExitCode::SUCCESS
            };
        }
    };
    let result = match cli.command {
        Command::Serve(_) => serve(sources()),
        Command::Check(_) => cmd::check::run(&sources(), &mut BufWriter::new(io::stdout().lock())),
        Command::Reload(gateway) => cmd::reload::run(&gateway, &mut BufWriter::new(io::stdout().lock())),
        Command::Block(command) => cmd::block::run(command, &mut BufWriter::new(io::stdout().lock())),
        #[cfg(feature = "fault-injection")]
        Command::Fault(command) => cmd::fault::run(command, &mut BufWriter::new(io::stdout().lock())),
        Command::User(command) => cmd::user::run(command, &mut BufWriter::new(io::stdout().lock())),
        Command::Queue(command) => cmd::queue::run(command, &mut BufWriter::new(io::stdout().lock())),
    };
    let code = match result {
        Ok(()) => process::ExitCode::SUCCESS,
        Err(failure) => {
            // The exit code is told also where nobody reads this.
            for line in failure.message.lines() {
                stderr::say(format_args!("{line}"));
            }
            process::ExitCode::from(failure.code as u8)
        }
    };
    log::flush();
    code
}

/// Where the options of `serve` and `check` come from.
fn sources() -> Sources {
    Sources {
        // Behind the program's name and the subcommand's.
        arguments: env::args_os().skip(2).collect(),
        environment: env::vars_os().collect(),
        machine_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        read_file: |path| fs::read_to_string(path),
    }
}

fn serve(sources: Sources) -> Result<(), Failure> {
    // An idle session takes 2 KB; a huge page for some of them is resident with all its 2 MB. Where
    // the kernel cannot, it is only memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let loaded = config::load(&sources).map_err(|error| Failure::new(ExitCode::Config, error.to_string()))?;
    let (config, settings) = (Arc::new(loaded.config), loaded.settings);
    let cores = preflight::cores();
    let shards = config.shards.unwrap_or(cores.len());
    let recorder = install_recorder()?;
    // One for each shard, and one for the watchdog.
    let (log, mut senders) = Log::start(&config.log, shards + 1, ::metrics::counter!(metrics::LOG_RECORDS_LOST))?;
    let watchdog_log = senders.pop().expect("as many as were asked for");
    log::install(log);

    for warning in config.warnings() {
        stderr::say(format_args!("{warning}"));
    }
    let security = next_hops::secure(&config.delivery.next_hops)?;
    let shared = Arc::new(Shared::new(config.clone(), security));
    let tls = TlsLoader::new()?;
    let files = reload::read_files(&config, &tls, &shared)?;
    let (watched, loaded): (Vec<_>, Vec<_>) = files.into_iter().map(Prepared::apply).unzip();
    preflight::check_io_uring()?;
    preflight::check_locked_memory(shards)?;
    preflight::check_descriptors(&config, shards)?;
    let spool = SpoolDirectory::open(&config.spool)?;
    let bindings = preflight::bind(&config.bindings, shards)?;
    let (admin_listener, admin_socket) = config.admin_socket.as_deref().map(admin::bind).transpose()?.unzip();
    let metrics_listener = config.metrics_listen.map(preflight::bind_metrics).transpose()?;
    let recovered = recover(&spool, shards, &config)?;

    let in_queue = recovered
        .iter()
        .fold((0, 0), |(messages, octets), (_, found)| (messages + found.messages, octets + found.octets));
    let left_over: u64 = recovered.iter().skip(shards).map(|(_, found)| found.messages).sum();
    let shards_then = recovered.last().map_or(0, |(directory, _)| directory.number() + 1);
    ::metrics::gauge!(metrics::QUEUE_MESSAGES).set(in_queue.0 as f64);
    ::metrics::gauge!(metrics::QUEUE_BYTES).set(in_queue.1 as f64);
    ::metrics::gauge!(metrics::SHARDS).set(shards as f64);
    let metrics_address = metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let addresses: Vec<SocketAddr> = bindings.iter().map(|binding| binding.address).collect();
    let logons = logons::start().map_err(|error| os_failure(&error))?;
    let lookups = Arc::new(Lookups::new().map_err(|error| os_failure(&error))?);
    let doorbells =
        (0..shards).map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>().map_err(|error| os_failure(&error))?;
    let watchdog = Doorbell::new().map_err(|error| os_failure(&error))?;
    let drain = Arc::new(Notify::new());
    start_control(Control {
        shared: shared.clone(),
        doorbells: doorbells.clone(),
        watchdog: watchdog.clone(),
        drain: drain.clone(),
        metrics_listener,
        admin_listener,
        lookups: lookups.clone(),
        resources: Resources::new(spool.path(), shared.clone())?,
        recorder,
        reloader: Reloader::new(sources, settings, shared.clone(), doorbells.clone(), tls, watched),
    })?;

    let (sender, news) = mpsc::channel();
    let mut sockets: Vec<_> = bindings.into_iter().map(|binding| binding.sockets.into_iter()).collect();
    let mut wards = Vec::with_capacity(shards);
    // Directories beyond today's shards are left as they are.
    for (number, (((directory, found), doorbell), log)) in recovered.into_iter().zip(doorbells).zip(senders).enumerate()
    {
        let listeners: Vec<TcpListener> = sockets.iter_mut().filter_map(Iterator::next).collect();
        let duplicates = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
        wards.push(Ward::new(doorbell.clone(), duplicates.map_err(|error| os_failure(&error))?));
        let start = Start {
            number,
            core: cores[number % cores.len()],
            listeners,
            directory,
            found,
            shards,
            key: getrandom::u64()
                .map_err(|error| Failure::new(ExitCode::OsError, format!("no random numbers: {error}")))?,
            shared: shared.clone(),
            doorbell,
            logons: logons.clone(),
            lookups: lookups.clone(),
            log,
        };
        supervisor::start_shard(start, sender.clone(), watchdog.clone()).map_err(|error| os_failure(&error))?;
    }
    let watchdog = Watchdog { shared: shared.clone(), doorbell: watchdog, wards, news: sender };
    supervisor::start_watchdog(watchdog, watchdog_log).map_err(|error| os_failure(&error))?;
    let serving = shared.clone();
    Supervisor { news, shared, shards, drain }.wait(|| {
        serving.set_serving();
        let admin_path = admin_socket.as_ref().map(AdminSocket::path);
        say_what_it_does(&config, shards, spool.path(), in_queue, &addresses, admin_path, metrics_address);
        for line in loaded {
            stdout::say(format_args!("{line}"));
        }
        if left_over > 0 {
            stdout::say(format_args!(
                "holding {left_over} messages of a run with more shards: start with --shards {shards_then} to deliver them"
            ));
        }
    })?;
    stdout::say(format_args!("drained"));
    Ok(())
}

fn os_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::OsError, error.to_string())
}

/// Recovers every shard directory of the spool, those beyond today's number of shards too. Returns
/// the directories in the order of their shards, and what each holds.
fn recover(spool: &SpoolDirectory, shards: usize, config: &Config) -> Result<Vec<(Directory, Found)>, Failure> {
    for shard in 0..shards {
        spool.make_shard(shard)?;
    }
    let directories = shard_directories(spool.path())?;
    let lanes = |record: &Record<'_>| {
        let mut lanes = Vec::new();
        if let Some(envelope) = record.stored_envelope() {
            shard::lanes_of(&config.delivery.routes, &envelope, &mut lanes);
        }
        lanes.into()
    };
    let recover_one = |mut directory: Directory| {
        let found = recover::recover(&mut directory, lanes);
        (directory, found)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = directories.into_iter().map(|directory| scope.spawn(|| recover_one(directory))).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut recovered = Vec::new();
    for result in results {
        let (directory, found) =
            result.map_err(|_| Failure::new(ExitCode::Software, "recovery of the spool panicked, see above"))?;
        let path = directory.path().display();
        let found =
            found.map_err(|error| Failure::new(ExitCode::IoError, format!("cannot recover {path}: {error}")))?;
        ::metrics::counter!(metrics::DAMAGE).increment(found.damage.len() as u64);
        for damage in &found.damage {
            match damage.kept_as() {
                Some(name) => stderr::say(format_args!("{path}/{damage}; a copy is kept in {name}")),
                None => stderr::say(format_args!("{path}/{damage}")),
            }
        }
        recovered.push((directory, found));
    }
    Ok(recovered)
}

fn install_recorder() -> Result<PrometheusHandle, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(ExitCode::Software, format!("metrics: {error}"));
    let mut builder = PrometheusBuilder::new();
    for metric in metrics::ALL {
        let metrics::Kind::Histogram(buckets) = metric.kind else { continue };
        let matcher = Matcher::Full(metric.name.to_owned());
        builder = builder.set_buckets_for_metric(matcher, buckets).map_err(|error| failed(&error))?;
    }
    if cfg!(feature = "unobserved") {
        // Every handle is one that does nothing.
        return Ok(builder.build_recorder().handle());
    }
    let handle = builder.install_recorder().map_err(|error| failed(&error))?;
    metrics::describe();
    ::metrics::gauge!(metrics::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
    Ok(handle)
}

fn start_control(control: Control) -> Result<(), Failure> {
    let (ready, started) = mpsc::channel::<()>();
    let run = move || {
        if let Err(error) = control.run(move || drop(ready)) {
            stderr::say(format_args!("the control thread has ended: {error}"));
            log::flush();
            process::exit(i32::from(ExitCode::OsError as u8));
        }
    };
    thread::Builder::new().name("control".to_owned()).spawn(run).map_err(|error| os_failure(&error))?;
    // Ends when the sender is dropped: from then on signals drain.
    let _ = started.recv();
    Ok(())
}

/// The start-up lines: what it listens on, what it accepts, where it spools.
fn say_what_it_does(
    config: &Config,
    shards: usize,
    spool: &Path,
    (messages, octets): (u64, u64),
    addresses: &[SocketAddr],
    admin_path: Option<&Path>,
    metrics_address: Option<SocketAddr>,
) {
    stdout::say(format_args!("gatepost {}: {}, {shards} shards", env!("CARGO_PKG_VERSION"), config.hostname));
    for address in addresses {
        stdout::say(format_args!("listening on {address}"));
    }
    if addresses.is_empty() {
        stdout::say(format_args!("listening nowhere (--listen none)"));
    }
    match config.accepted_domains.len() {
        0 => stdout::say(format_args!("accepting mail for <Postmaster> only: name domains with --accept-domain")),
        1..=5 => {
            let names: Vec<String> = config.accepted_domains.iter().map(|domain| domain.to_string()).collect();
            stdout::say(format_args!("accepting mail for {}", names.join(", ")));
        }
        count => stdout::say(format_args!("accepting mail for {count} domains")),
    }
    stdout::say(format_args!("spooling to {} ({messages} messages, {octets} octets are queued)", spool.display()));
    match config.delivery.next_hops.as_slice() {
        [] => stdout::say(format_args!("holding mail in the queue: say where it goes with --next-hop or --route")),
        next_hops if next_hops.len() <= 5 => {
            let names: Vec<String> = next_hops.iter().map(|next_hop| next_hop.address.to_string()).collect();
            stdout::say(format_args!("delivering to {}", names.join(", ")));
        }
        next_hops => stdout::say(format_args!("delivering to {} next hops", next_hops.len())),
    }
    if let Some(path) = admin_path {
        stdout::say(format_args!("admin socket at {}", path.display()));
    }
    if let Some(address) = metrics_address {
        stdout::say(format_args!("metrics at http://{address}/metrics"));
    }
}
