//! Everything that can be found wrong before the first connection: rights, limits, ports, spool.
//!
//! Each failure is one line that names the cause and the remedy, with an exit code of sysexits(3).

use crate::config::{Binding, Config};
use crate::limits::{
    DESCRIPTORS_BASE, DESCRIPTORS_PER_SHARD, DNSBL_QUESTIONS_MAX, LISTEN_BACKLOG, MEMLOCK_MIN_OCTETS,
    MEMLOCK_PER_SHARD_OCTETS, NEXT_HOP_WINDOW_DEFAULT,
};
use crate::log::StartError;
use crate::shard::storage::SpoolError;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

/// Exit codes: those of sysexits(3), and one of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
#[allow(missing_docs, reason = "they are named in sysexits(3)")]
pub enum ExitCode {
    /// What a command is to act on is not there: not in sysexits(3).
    NotThere = 1,
    Usage = 64,
    NoInput = 66,
    Unavailable = 69,
    Software = 70,
    OsError = 71,
    CantCreate = 73,
    IoError = 74,
    TempFail = 75,
    NoPermission = 77,
    Config = 78,
}

/// Why the process does not start.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: ExitCode,
    /// Cause and remedy in one line; several where several are told at once.
    pub message: String,
}

impl Failure {
    /// A failure with this code and line.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::Os(_) => ExitCode::OsError,
            StartError::File(_, error) => match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ExitCode::NoPermission,
                _ => ExitCode::CantCreate,
            },
        };
        let remedy = match error {
            StartError::Os(_) => "",
            StartError::File(..) => {
                "; its directory must be there and writable to this user, or name another --log-file"
            }
        };
        Failure::new(code, format!("{error}{remedy}"))
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        let code = match &error {
            SpoolError::Locked(..) => ExitCode::TempFail,
            SpoolError::Format(..) => ExitCode::Config,
            SpoolError::Absent(_) => ExitCode::NoInput,
            SpoolError::Io(_, _, error) => match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ExitCode::NoPermission,
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ExitCode::CantCreate,
                _ => ExitCode::IoError,
            },
        };
        Failure::new(code, error.to_string())
    }
}

/// The cores this process may run on.
pub fn cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Whether this process may use io_uring. glommio panics where it may not.
pub fn check_io_uring() -> Result<(), Failure> {
    // The kernel's struct io_uring_params: 120 octets, all zero asks for the defaults.
    let mut parameters = [0_u64; 15];
    // SAFETY: the pointer is to writable memory of the structure's size, and the call keeps none.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr()) };
    if let Ok(fd) = i32::try_from(result)
        && fd >= 0
    {
        // SAFETY: the call has just returned this descriptor; nobody else knows it.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS) => Failure::new(
            ExitCode::OsError,
            "io_uring is not available: this needs Linux 5.8 or newer, and a container runtime that lets io_uring_setup through",
        ),
        Some(libc::EPERM | libc::EACCES) => Failure::new(
            ExitCode::NoPermission,
            "io_uring is forbidden to this process: set sysctl kernel.io_uring_disabled=0, or allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
        ),
        _ => Failure::new(ExitCode::OsError, format!("io_uring cannot be set up: {error}")),
    })
}

/// The shards of a run, each with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Those that accept mail.
    pub serving: usize,
    /// Those that only deliver what a run with more shards has left.
    pub draining: usize,
}

impl Shards {
    /// As many as the configuration asks for.
    pub fn serving(serving: usize) -> Self {
        Shards { serving, draining: 0 }
    }

    /// All of them.
    pub fn count(self) -> usize {
        self.serving + self.draining
    }
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shards { serving, draining } = self;
        match draining {
            0 => write!(f, "{serving} shards"),
            _ => write!(f, "{serving} shards and {draining} with mail of a run with more"),
        }
    }
}

/// Raises RLIMIT_MEMLOCK to what the shards' rings need.
pub fn check_locked_memory(shards: Shards) -> Result<(), Failure> {
    // The kernel charges rings to this limit for all but root.
    let rings = if geteuid().is_root() { 0 } else { MEMLOCK_PER_SHARD_OCTETS * shards.count() as u64 };
    let needed = rings.max(MEMLOCK_MIN_OCTETS);
    // With fewer shards, more would be left to drain.
    let or = if shards.draining > 0 { "" } else { " or lower --shards" };
    raise(Resource::Memlock, needed).map_err(|limit| {
        Failure::new(
            ExitCode::OsError,
            format!(
                "RLIMIT_MEMLOCK is {limit} octets, {shards} need {needed}: raise it (ulimit -l {}, LimitMEMLOCK= in systemd){or}",
                needed / 1024
            ),
        )
    })
}

/// Raises RLIMIT_NOFILE to what the configured connections need, or to all there is.
pub fn check_descriptors(config: &Config, shards: Shards) -> Result<(), Failure> {
    let connections = u64::from(config.limits.connections_max);
    let rings = shards.count() as u64;
    let next_hops = config.delivery.next_hops.len() as u64;
    // The window bounds those with a transaction; each shard may have as many idle ones.
    let outgoing = next_hops * u64::from(NEXT_HOP_WINDOW_DEFAULT) * rings;
    let resolving = if config.dnsbl.is_empty() { 0 } else { 2 * DNSBL_QUESTIONS_MAX as u64 };
    let needed = connections + outgoing + resolving + DESCRIPTORS_PER_SHARD * rings + DESCRIPTORS_BASE;
    let with_next_hops = if next_hops > 0 { format!(" with {next_hops} next hops") } else { String::new() };
    raise(Resource::Nofile, needed).map_err(|limit| {
        Failure::new(
            ExitCode::OsError,
            format!(
                "RLIMIT_NOFILE is {limit}, --max-connections {connections} on {shards}{with_next_hops} needs {needed}: raise it (ulimit -n {needed}, LimitNOFILE= in systemd) or lower --max-connections"
            ),
        )
    })
}

/// Raises a soft limit to the hard one; fails with the limit where even that is too low.
fn raise(resource: Resource, needed: u64) -> Result<(), u64> {
    let limit = getrlimit(resource);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if limit.current != limit.maximum {
        // The hard limit may be higher than the system allows in fact: what counts is read below.
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let limit = getrlimit(resource).current;
    if enough(limit) { Ok(()) } else { Err(limit.unwrap_or(u64::MAX)) }
}

/// One binding's sockets, one per shard.
#[derive(Debug)]
pub struct Sockets {
    /// The address with its actual port.
    pub address: SocketAddr,
    /// A listening socket for each shard.
    pub sockets: Vec<TcpListener>,
}

/// Opens the listening sockets of all bindings.
pub fn bind(bindings: &[Binding], shards: usize) -> Result<Vec<Sockets>, Failure> {
    bind_all(&addresses(bindings), shards)
}

fn addresses(bindings: &[Binding]) -> Vec<SocketAddr> {
    bindings.iter().map(|binding| binding.address).collect()
}

/// Whether an IPv6 address leaves IPv4 to another binding on the same port.
fn is_ipv6_only(address: SocketAddr, addresses: &[SocketAddr]) -> bool {
    // Two that ask for any port get different ones.
    address.port() != 0 && addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port())
}

/// What keeps these ports from being opened, but a gateway of this user that runs: its sockets are shared
/// as these are, for the moment that they exist. Nobody can connect to them.
pub fn check_ports(bindings: &[Binding], metrics: Option<SocketAddr>) -> Vec<Failure> {
    let addresses = addresses(bindings);
    let listening = addresses.iter().map(|&address| ("--listen", address, is_ipv6_only(address, &addresses)));
    let all = listening.chain(metrics.map(|address| ("--metrics-listen", address, false)));
    // All are held until the last is open: one may be in another's way.
    let (_held, failures): (Vec<_>, Vec<_>) = all
        .map(|(option, address, ipv6_only)| {
            socket(address, ipv6_only, true).map_err(|error| bind_failure(option, address, &error))
        })
        .partition(Result::is_ok);
    failures.into_iter().filter_map(Result::err).collect()
}

fn bind_all(addresses: &[SocketAddr], shards: usize) -> Result<Vec<Sockets>, Failure> {
    addresses
        .iter()
        .map(|&address| {
            let ipv6_only = is_ipv6_only(address, addresses);
            let failed = |error| bind_failure("--listen", address, &error);
            refuse_to_share(address, ipv6_only).map_err(failed)?;
            let mut actual = address;
            let mut sockets = Vec::with_capacity(shards);
            for _ in 0..shards {
                let socket = socket(actual, ipv6_only, true).map_err(failed)?;
                socket.listen(LISTEN_BACKLOG).map_err(failed)?;
                let listener = TcpListener::from(socket);
                actual = listener.local_addr().map_err(failed)?;
                sockets.push(listener);
            }
            Ok(Sockets { address: actual, sockets })
        })
        .collect()
}

/// Opens the metrics endpoint's socket.
pub fn bind_metrics(address: SocketAddr) -> Result<TcpListener, Failure> {
    let open = || {
        refuse_to_share(address, false)?;
        // So that `check` can tell this user's gateway from other programs.
        let socket = socket(address, false, true)?;
        socket.listen(128)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|error| bind_failure("--metrics-listen", address, &error))
}

/// With SO_REUSEPORT a second process of the same user would share the port silently.
fn refuse_to_share(address: SocketAddr, ipv6_only: bool) -> io::Result<()> {
    if address.port() == 0 { Ok(()) } else { socket(address, ipv6_only, false).map(drop) }
}

fn socket(address: SocketAddr, ipv6_only: bool, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(ipv6_only)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it: each turn's replies leave in one write, there is nothing to gather.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_failure(option: &str, address: SocketAddr, error: &io::Error) -> Failure {
    let (code, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let culprit = match address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() => " (an IPv4 listener on the same port counts too)",
                _ => "",
            };
            (ExitCode::Unavailable, format!("another process listens there{culprit}; stop it or choose another port (ss -ltnp shows it)"))
        }
        io::ErrorKind::PermissionDenied => (
            ExitCode::NoPermission,
            "ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in systemd, setcap cap_net_bind_service=+ep on the program)".to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (ExitCode::Config, "no interface of this machine has that address; ip addr lists them".to_owned()),
        io::ErrorKind::Unsupported => (ExitCode::Config, "this machine has that address family switched off".to_owned()),
        _ => (ExitCode::OsError, "see the error".to_owned()),
    };
    Failure::new(code, format!("{option} {address}: {error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_noticed() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let bindings = bind_all(&[any], 3).expect("a free port");
        assert_eq!(bindings[0].sockets.len(), 3);
        let address = bindings[0].address;
        assert!(bindings[0].sockets.iter().all(|socket| socket.local_addr().expect("bound") == address));
        let failure = bind_all(&[address], 1).expect_err("taken");
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains(&address.to_string()));
        assert_eq!(bind_metrics(address).expect_err("taken").code, ExitCode::Unavailable);
        drop(bindings);
        bind_all(&[address], 1).expect("free again");
    }

    #[test]
    fn a_look_at_ports_passes_over_those_that_are_shared() {
        let shared = bind_metrics("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let foreign = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let [ours, theirs] = [&shared, &foreign].map(|listener| listener.local_addr().expect("bound"));
        assert_eq!(check_ports(&[], Some(ours)).len(), 0);
        let failures = check_ports(&[], Some(theirs));
        let messages: Vec<String> = failures.iter().map(ToString::to_string).collect();
        assert!(
            messages.len() == 1 && messages[0].starts_with(&format!("--metrics-listen {theirs}: ")),
            "{messages:?}"
        );
        assert_eq!(bind_metrics(ours).expect_err("it would be shared").code, ExitCode::Unavailable);
    }

    #[test]
    fn foreign_addresses_are_named() {
        let failure = bind_all(&["192.0.2.1:2525".parse().expect("an address")], 1).expect_err("not ours");
        assert!(failure.message.starts_with("--listen 192.0.2.1:2525: "), "{failure}");
    }
}
