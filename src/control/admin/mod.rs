//! The admin socket: what operators ask of a running gateway, and what it answers.
//!
//! A Unix socket for the user that the gateway runs as (mode 0600), served on the control thread. A
//! connection carries one line of JSON each way ([`wire`]). On failure: a connection that is
//! slow, says too much or says nothing known ends alone, with a reason where it still reads; the
//! file of a process that was killed is replaced at the next start, that of a live one never.
//!
//! Rejected: HTTP beside `/metrics`, which is often bound to an address that others reach, and has
//! no user to check.

mod place;
pub mod wire;

pub use place::Place;

use crate::control::preflight::{ExitCode, Failure};
use crate::control::reload::{Reloaded, Reloads};
use crate::limits::{
    ADMIN_BACKLOG, ADMIN_CONNECTIONS_MAX, ADMIN_PAUSE_MS, ADMIN_REQUEST_MAX_OCTETS, ADMIN_TRANSFER_MS,
};
use crate::policy::{BlocksFull, DynamicBlocks, parse_range};
use crate::shard::Shared;
#[cfg(feature = "fault-injection")]
use crate::shard::{Doorbell, Fault};
use crate::stderr;
use ipnet::IpNet;
use place::FileId;
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, Socket, Type};
#[cfg(feature = "fault-injection")]
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, absolute};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use wire::{Answer, BlockedRange, Request};

/// The admin socket's file, until this value drops.
#[derive(Debug)]
pub struct AdminSocket {
    place: Place,
    id: FileId,
    /// Keeps the inode from being given to another file.
    _file: OwnedFd,
}

impl AdminSocket {
    /// Its absolute path.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Somebody may have put another there. A file that cannot be removed is replaced later.
        if self.place.file().is_ok_and(|(id, _)| id == self.id) {
            let _ = self.place.remove();
        }
    }
}

/// Makes the admin socket. A file that nobody listens on any more is replaced.
pub fn bind(path: &Path) -> Result<(UnixListener, AdminSocket), Failure> {
    let failed = |error: io::Error| bind_failure(path, &error);
    let place = absolute(path).and_then(|path| Place::open(&path)).map_err(failed)?;
    make_room(&place)?;
    let open = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Linux makes the file with the mode of the socket: there is no moment when others may connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&place.address()?)?;
        socket.listen(ADMIN_BACKLOG)?;
        socket.set_nonblocking(true)?;
        let file = place.hold()?;
        let (id, _) = place.file()?;
        Ok((UnixListener::from(OwnedFd::from(socket)), id, file))
    };
    let (listener, id, file) = open().map_err(failed)?;
    Ok((listener, AdminSocket { place, id, _file: file }))
}

/// Whether [`bind`] would go well; nothing is changed. That somebody listens there is no fault if the
/// gateway of this configuration is running.
pub fn check(path: &Path, is_running: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| bind_failure(path, &error);
    let place = absolute(path).and_then(|path| Place::open(&path)).map_err(failed)?;
    place.address().map_err(failed)?;
    match occupant(&place)? {
        Occupant::Somebody if !is_running => Err(occupied(path)),
        _ => place.check_writable().map_err(failed),
    }
}

/// What is at the place of the socket.
enum Occupant {
    Nothing,
    /// Left by a process that was killed.
    Remains,
    /// It answers, or its queue is full.
    Somebody,
}

fn occupant(place: &Place) -> Result<Occupant, Failure> {
    let path = place.path();
    match place.file() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(bind_failure(path, &error)),
        Ok((_, true)) => {}
        Ok((_, false)) => {
            let message =
                format!("--admin-socket {}: a file that is no socket is there; choose another path", path.display());
            return Err(Failure::new(ExitCode::CantCreate, message));
        }
    }
    match place.connect(None) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Occupant::Remains),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Occupant::Nothing),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(bind_failure(path, &error)),
        Ok(_) | Err(_) => Ok(Occupant::Somebody),
    }
}

/// Removes the socket that a process left which was killed; fails where one answers.
fn make_room(place: &Place) -> Result<(), Failure> {
    match occupant(place)? {
        Occupant::Nothing => Ok(()),
        Occupant::Remains => place.remove().map_err(|error| bind_failure(place.path(), &error)),
        Occupant::Somebody => Err(occupied(place.path())),
    }
}

fn occupied(path: &Path) -> Failure {
    let message =
        format!("--admin-socket {}: another process listens there; stop it or choose another path", path.display());
    Failure::new(ExitCode::Unavailable, message)
}

fn bind_failure(path: &Path, error: &io::Error) -> Failure {
    let (code, remedy) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ExitCode::NoPermission, "give this user write permission to its directory or choose another path")
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (ExitCode::CantCreate, "make its directory or choose another path")
        }
        io::ErrorKind::InvalidInput => (ExitCode::Config, "choose another path"),
        _ => (ExitCode::CantCreate, "choose another path, or none to do without"),
    };
    Failure::new(code, format!("--admin-socket {}: {error}; {remedy}", path.display()))
}

/// Serves requests. Beyond a number of connections new ones wait.
pub async fn serve(listener: UnixListener, commands: Arc<Commands>) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return stderr::say(format_args!("the admin socket is not served: {error}")),
    };
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: accept would fail again at once.
            sleep(Duration::from_millis(ADMIN_PAUSE_MS)).await;
            continue;
        };
        let commands = commands.clone();
        tokio::spawn(async move {
            serve_one(&stream, &commands).await;
            drop(place);
        });
    }
}

async fn serve_one(stream: &UnixStream, commands: &Commands) {
    let patience = Duration::from_millis(ADMIN_TRANSFER_MS);
    let answer = match timeout(patience, read_request(stream)).await {
        Ok(Ok(request)) => commands.carry_out(request).await.unwrap_or_else(Answer::from),
        Ok(Err(failure)) => failure.into(),
        Err(_) => Failure::new(ExitCode::TempFail, "the request did not arrive in time").into(),
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else { return };
    line.push(b'\n');
    // Who does not stay for the answer does without.
    let _ = timeout(patience, write_all(stream, &line)).await;
}

async fn read_request(stream: &UnixStream) -> Result<Request, Failure> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    let line = loop {
        let read = match stream.readable().await {
            Ok(()) => stream.try_read(&mut chunk),
            Err(error) => Err(error),
        };
        match read {
            Ok(octets) => request.extend_from_slice(chunk.get(..octets).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Failure::new(ExitCode::IoError, format!("the request cannot be read: {error}"))),
        }
        if let Some(end) = memchr::memchr(b'\n', &request) {
            break request.get(..end).unwrap_or_default();
        }
        if request.len() > ADMIN_REQUEST_MAX_OCTETS {
            let message = format!("a request has at most {ADMIN_REQUEST_MAX_OCTETS} octets");
            return Err(Failure::new(ExitCode::Usage, message));
        }
        if matches!(read, Ok(0)) {
            return Err(Failure::new(ExitCode::Usage, "the request has no end of line"));
        }
    };
    serde_json::from_slice(line).map_err(|error| {
        let message =
            format!("the gateway does not understand the request ({error}); it is of another version, most likely");
        Failure::new(ExitCode::Usage, message)
    })
}

async fn write_all(stream: &UnixStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        stream.writable().await?;
        match stream.try_write(octets) {
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the requests act on.
pub struct Commands {
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// Who loads the configuration again.
    pub reloads: Reloads,
    /// The shards' doorbells, by their numbers.
    #[cfg(feature = "fault-injection")]
    pub doorbells: BTreeMap<usize, Doorbell>,
}

impl Commands {
    /// Does what was asked. What takes long must not be awaited in the control thread's own time.
    async fn carry_out(&self, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::BlockAdd { cidr, for_ms } => self.block_add(&cidr, for_ms),
            Request::BlockList => Ok(self.block_list()),
            Request::BlockRemove { cidr } => self.block_remove(&cidr),
            Request::Reload => {
                let Reloaded { lines, late } = self.reloads.ask().await?;
                Ok(Answer::Reloaded { lines, late })
            }
            #[cfg(feature = "fault-injection")]
            Request::FaultStall { shard, for_ms } => self.inject(shard, Fault::Stall(Duration::from_millis(for_ms))),
            #[cfg(feature = "fault-injection")]
            Request::FaultKill { shard } => self.inject(shard, Fault::Kill),
        }
    }

    #[cfg(feature = "fault-injection")]
    fn inject(&self, shard: usize, fault: Fault) -> Result<Answer, Failure> {
        let Some(doorbell) = self.doorbells.get(&shard) else {
            let last = self.doorbells.keys().next_back().copied().unwrap_or_default();
            let message = format!("there is no shard {shard}, the last one is {last}");
            return Err(Failure::new(ExitCode::Usage, message));
        };
        if fault == Fault::Kill {
            let doorbell = doorbell.clone();
            // The answer first: the process may end with the shard.
            tokio::spawn(async move {
                sleep(Duration::from_millis(ADMIN_PAUSE_MS)).await;
                doorbell.inject(fault);
            });
        } else {
            doorbell.inject(fault);
        }
        Ok(Answer::Done)
    }

    fn now_ms(&self) -> u64 {
        self.shared.ms(Instant::now())
    }

    fn block_add(&self, cidr: &str, for_ms: u64) -> Result<Answer, Failure> {
        let range = range(cidr)?;
        let until_ms = self.now_ms().saturating_add(for_ms);
        self.change_blocks(|blocks| blocks.add(range, until_ms)).map_err(|BlocksFull| {
            let message = format!("the list is full: {range} is not blocked; block larger ranges, or use --block-file");
            Failure::new(ExitCode::TempFail, message)
        })?;
        Ok(Answer::Done)
    }

    fn block_remove(&self, cidr: &str) -> Result<Answer, Failure> {
        let range = range(cidr)?;
        if self.change_blocks(|blocks| blocks.remove(range)) {
            return Ok(Answer::Done);
        }
        let message = format!("{range} is not on the list; gatepost block list shows what is");
        Err(Failure::new(ExitCode::NotThere, message))
    }

    fn block_list(&self) -> Answer {
        let now_ms = self.now_ms();
        let blocks = self.shared.blocks();
        let mut ranges: Vec<(IpNet, u64)> = blocks.iter().filter(|(_, until_ms)| now_ms < *until_ms).collect();
        ranges.sort_unstable();
        let show =
            |(range, until_ms): (IpNet, u64)| BlockedRange { cidr: range.to_string(), left_ms: until_ms - now_ms };
        Answer::Blocks(ranges.into_iter().map(show).collect())
    }

    /// Changes a copy of the list and puts it in the place of the list: every connection that comes
    /// after is judged by it. This thread is the only one that does.
    fn change_blocks<T>(&self, change: impl FnOnce(&mut DynamicBlocks) -> T) -> T {
        let mut blocks = DynamicBlocks::clone(&self.shared.blocks());
        blocks.drop_expired(self.now_ms());
        let result = change(&mut blocks);
        self.shared.set_blocks(blocks);
        result
    }

    /// Drops what has expired, if anything has.
    pub fn sweep_blocks(&self) {
        let now_ms = self.now_ms();
        if self.shared.blocks().iter().any(|(_, until_ms)| until_ms <= now_ms) {
            self.change_blocks(|_| ());
        }
    }
}

fn range(cidr: &str) -> Result<IpNet, Failure> {
    parse_range(cidr).map_err(|error| Failure::new(ExitCode::Usage, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::limits::{ADMIN_ANSWER_MAX_OCTETS, BLOCKS_MAX};
    use std::fs;
    use std::net::{IpAddr, Ipv6Addr};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gatepost-admin-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a temporary directory");
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn is_made_for_its_user_and_removed() {
        let scratch = Scratch::new("made");
        let path = scratch.0.join("admin.sock");
        let (listener, socket) = bind(&path).expect("a socket");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{mode:o}");
        assert_eq!(socket.path(), path);
        let place = Place::open(&path).expect("a directory");
        place.connect(None).expect("it listens");
        // One that answers, and one that answers nobody more, is left alone.
        let failure = bind(&path).expect_err("taken");
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains(&path.display().to_string()), "{failure}");
        let waiting: Vec<_> = std::iter::from_fn(|| place.connect(None).ok()).take(10_000).collect();
        assert!(waiting.len() < 10_000, "the queue has an end");
        assert_eq!(bind(&path).expect_err("taken").code, ExitCode::Unavailable);
        drop((listener, socket, waiting));
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("admin.sock");
        let (listener, socket) = bind(&path).expect("a socket");
        drop(listener);
        let (_listener, again) = bind(&path).expect("nobody listens");
        // Its file is not the first one's to remove.
        drop(socket);
        assert!(path.exists());
        drop(again);
        assert!(!path.exists());
    }

    #[test]
    fn only_sockets_are_replaced() {
        let scratch = Scratch::new("file");
        let path = scratch.0.join("file");
        fs::write(&path, "precious").expect("a file");
        std::os::unix::fs::symlink(&path, scratch.0.join("link")).expect("a link");
        for name in ["file", "link"] {
            let failure = bind(&scratch.0.join(name)).expect_err("a file");
            assert_eq!(failure.code, ExitCode::CantCreate, "{failure}");
        }
        assert_eq!(fs::read_to_string(&path).expect("a file"), "precious");
    }

    #[test]
    fn deep_directories() {
        let scratch = Scratch::new("deep");
        let directory = scratch.0.join("d".repeat(100)).join("e".repeat(200));
        fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("admin.sock");
        let (_listener, socket) = bind(&path).expect("a socket");
        assert!(path.exists());
        Place::open(&path).expect("a directory").connect(None).expect("it listens");
        drop(socket);
        assert!(!path.exists());
        let failure = bind(&directory.join("n".repeat(100))).expect_err("too long a name");
        assert_eq!(failure.code, ExitCode::Config);
        assert!(failure.message.contains("--admin-socket") && failure.message.contains("too long"), "{failure}");
    }

    fn commands() -> Commands {
        Commands {
            shared: Arc::new(Shared::new(Arc::new(Config::of(&[])), [])),
            reloads: Reloads::new().0,
            #[cfg(feature = "fault-injection")]
            doorbells: BTreeMap::new(),
        }
    }

    fn full(until_ms: u64) -> DynamicBlocks {
        let mut blocks = DynamicBlocks::default();
        for number in 0..BLOCKS_MAX as u32 {
            blocks.add(IpNet::from(IpAddr::from(number.to_be_bytes())), until_ms).expect("room");
        }
        blocks
    }

    #[test]
    fn a_full_list_says_so_and_keeps_what_it_has() {
        let commands = commands();
        commands.shared.set_blocks(full(u64::MAX));
        let failure = commands.block_add("2001:db8::/32", 1000).expect_err("full");
        assert_eq!(failure.code, ExitCode::TempFail);
        assert!(failure.message.contains("2001:db8::/32 is not blocked"), "{failure}");
        assert_eq!(commands.shared.blocks().iter().count(), BLOCKS_MAX);
        // What has expired gives room.
        commands.shared.set_blocks(full(0));
        commands.block_add("2001:db8::/32", 1_000_000).expect("room");
        let listed = commands.block_list();
        assert!(matches!(&listed, Answer::Blocks(blocks) if blocks.len() == 1), "{listed:?}");
    }

    #[test]
    fn the_longest_answer_is_within_its_limit() {
        let longest = BlockedRange { cidr: format!("{}/128", Ipv6Addr::from_bits(u128::MAX)), left_ms: u64::MAX };
        let line = serde_json::to_vec(&longest).expect("a line");
        assert!((line.len() + 1) * BLOCKS_MAX + 100 <= ADMIN_ANSWER_MAX_OCTETS, "{}", line.len());
    }

    #[test]
    fn sweeping_drops_what_has_expired() {
        let commands = commands();
        let mut blocks = DynamicBlocks::default();
        blocks.add(range("192.0.2.1").expect("a range"), 0).expect("room");
        blocks.add(range("192.0.2.2").expect("a range"), u64::MAX).expect("room");
        commands.shared.set_blocks(blocks);
        assert_eq!(commands.shared.blocks().iter().count(), 2);
        commands.sweep_blocks();
        let swept = commands.shared.blocks();
        assert_eq!(swept.iter().collect::<Vec<_>>(), [(range("192.0.2.2").expect("a range"), u64::MAX)]);
        // The list is copied only when there is something to drop.
        commands.sweep_blocks();
        assert!(Arc::ptr_eq(&swept, &commands.shared.blocks()));
    }

    #[test]
    fn errors_name_the_path() {
        for (path, code) in [("/nonexistent/admin.sock", ExitCode::CantCreate), ("/", ExitCode::Config)] {
            let failure = bind(Path::new(path)).expect_err(path);
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.message.starts_with(&format!("--admin-socket {path}: ")), "{failure}");
        }
    }
}
