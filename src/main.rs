//! The `gatepost` program: arguments, preflight, threads, exit code.

use clap::Parser;
use gatepost::config::options::{Cli, Command};
use gatepost::config::{self, Config, Sources};
use gatepost::control::admin::{self, AdminSocket};
use gatepost::control::logons;
use gatepost::control::preflight::{self, ExitCode, Failure, Shards};
use gatepost::control::recovery;
use gatepost::control::reload::{self, Reloader};
use gatepost::control::resources::Resources;
use gatepost::control::shards::{self, Launch};
use gatepost::control::tls::TlsLoader;
use gatepost::control::watched::Prepared;
use gatepost::control::{Control, next_hops};
use gatepost::log::{self, Log};
use gatepost::shard::storage::SpoolDirectory;
use gatepost::shard::{Doorbell, Lookups, Shared};
use gatepost::{cmd, metrics, stderr, stdout};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use mimalloc::MiMalloc;
use std::env;
use std::fs;
use std::io::{self, BufWriter};
use std::net::SocketAddr;
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
    let serving = config.shards.unwrap_or(cores.len());
    let recorder = install_recorder()?;
    let log = Log::start(&config.log, ::metrics::counter!(metrics::LOG_RECORDS_LOST))?;
    log::install(log.clone());

    for warning in config.warnings() {
        stderr::say(format_args!("{warning}"));
    }
    let security = next_hops::secure(&config.delivery.next_hops)?;
    let shared = Arc::new(Shared::new(config.clone(), security));
    let tls = TlsLoader::new()?;
    let files = reload::read_files(&config, &tls, &shared)?;
    let (watched, loaded): (Vec<_>, Vec<_>) = files.into_iter().map(Prepared::apply).unzip();
    preflight::check_io_uring()?;
    check_limits(&config, Shards::serving(serving))?;
    let spool = SpoolDirectory::open(&config.spool)?;
    let bindings = preflight::bind(&config.bindings, serving)?;
    let (admin_listener, admin_socket) = config.admin_socket.as_deref().map(admin::bind).transpose()?.unzip();
    let metrics_listener = config.metrics_listen.map(preflight::bind_metrics).transpose()?;
    let recovered = recovery::recover(&spool, serving, &config)?;
    let shards = recovered.shards();
    check_limits(&config, shards)?;

    let in_queue = recovered.in_queue();
    let left_over = recovered.left_over();
    ::metrics::gauge!(metrics::QUEUE_MESSAGES).set(in_queue.0 as f64);
    ::metrics::gauge!(metrics::QUEUE_BYTES).set(in_queue.1 as f64);
    ::metrics::gauge!(metrics::SHARDS).set(shards.count() as f64);
    let metrics_address = metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let addresses: Vec<SocketAddr> = bindings.iter().map(|binding| binding.address).collect();
    let logons = logons::start().map_err(|error| os_failure(&error))?;
    let lookups = Arc::new(Lookups::new().map_err(|error| os_failure(&error))?);
    let doorbells = shards::doorbells(&recovered).map_err(|error| os_failure(&error))?;
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
        reloader: Reloader::new(sources, settings, shared.clone(), shards, doorbells.clone(), tls, watched),
    })?;

    let launch = Launch {
        recovered,
        doorbells,
        watchdog,
        sockets: bindings,
        cores,
        shared: shared.clone(),
        logons,
        lookups,
        log,
        drain,
        give_back_memory,
    };
    launch.start()?.wait(|| {
        shared.set_serving();
        give_back_memory();
        let admin_path = admin_socket.as_ref().map(AdminSocket::path);
        say_what_it_does(&config, serving, spool.path(), in_queue, &addresses, admin_path, metrics_address);
        for line in loaded {
            stdout::say(format_args!("{line}"));
        }
        if let Some(left_over) = left_over {
            let verb = if config.delivery.next_hops.is_empty() { "holding" } else { "draining" };
            stdout::say(format_args!("{verb} {left_over}"));
        }
    })?;
    stdout::say(format_args!("drained"));
    Ok(())
}

/// Gives what this thread took for recovery back to the system: with a long queue twice as much as the
/// queue takes.
fn give_back_memory() {
    // SAFETY: it takes no pointer, and may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

fn os_failure(error: &io::Error) -> Failure {
    Failure::new(ExitCode::OsError, error.to_string())
}

/// Whether there is enough of what is limited for each process.
fn check_limits(config: &Config, shards: Shards) -> Result<(), Failure> {
    preflight::check_locked_memory(shards)?;
    preflight::check_descriptors(config, shards)
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
