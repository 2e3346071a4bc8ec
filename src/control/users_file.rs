//! The users file where it lies: read by `serve` and `gatepost user`, changed by `gatepost user`.
//!
//! What it holds is as good as passwords, so a file that is open to others is refused. A change is
//! made by one process at a time, to a new file of the same owner that takes the old one's place:
//! who reads it sees the old text or the new one, after a crash too. The lock is on the directory,
//! and leaves nothing behind.

use super::preflight::{ExitCode, Failure};
use super::watched::{Prepared, Watched};
use crate::limits::{USERS_FILE_LOCK_MS, USERS_FILE_LOCK_TICK_MS, USERS_FILE_MAX_OCTETS};
use crate::shard::Shared;
use crate::users::{ParseError, Users};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::mem;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// The mode of a users file: nobody's but its owner's.
const MODE: u32 = 0o600;

/// Reads a users file.
pub fn read_users(path: &Path) -> Result<Users, Failure> {
    let (file, metadata) = open(path)?.ok_or_else(|| absent(path))?;
    let text = read(path, file, &metadata)?;
    Users::parse(&text).map_err(|error| broken(path, &error))
}

/// Reads the users for the shards, and keeps them as the file is.
pub fn prepare(path: &Path, shared: &Arc<Shared>) -> Result<Prepared, Failure> {
    let again = (path.to_owned(), shared.clone());
    // Before it is read for the first time: no change is missed.
    let watched = Watched::new(vec![path.to_owned()], move || {
        let kept = |failure| format!("users: {failure}; the users that were loaded before stay");
        let (users, line) = load(&again.0).map_err(kept)?;
        again.1.set_users(Some(users));
        Ok(line)
    });
    let (users, line) = load(path)?;
    let shared = shared.clone();
    Ok(Prepared::new(watched, line, move || shared.set_users(Some(users))))
}

fn load(path: &Path) -> Result<(Arc<Users>, String), Failure> {
    let users = read_users(path)?;
    let line = format!("users: {} loaded from {}", users.len(), path.display());
    Ok((Arc::new(users), line))
}

/// What is made of a users file's text: the new text, if it is to change; and what is said of it.
pub type Edited<T> = Result<(Option<Zeroizing<String>>, T), ParseError>;

/// Changes a users file; nobody else changes one in its directory meanwhile. Where there is none,
/// `change` gets an empty text if the file may be made, and it is a failure otherwise.
pub fn edit<T>(path: &Path, may_make: bool, change: impl FnOnce(&str) -> Edited<T>) -> Result<T, Failure> {
    let failed = |error: io::Error| failure(path, "change", &error);
    let target = resolve(path)?;
    let directory = target.parent().unwrap_or(Path::new("/"));
    let locked = File::open(directory).map_err(failed)?;
    lock(path, &locked)?;
    let (text, owner) = match open(&target)? {
        Some((file, metadata)) => (read(path, file, &metadata)?, Some((metadata.uid(), metadata.gid()))),
        None if may_make => (Zeroizing::default(), None),
        None => return Err(absent(path)),
    };
    let (edited, result) = change(&text).map_err(|error| broken(path, &error))?;
    if let Some(edited) = edited {
        replace(&target, &edited, owner).and_then(|()| locked.sync_all()).map_err(failed)?;
    }
    Ok(result)
}

/// The file that a path leads to: of a symbolic link, what it points to is changed, not the link.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |error: &io::Error| failure(path, "find", error);
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map_err(|error| failed(&error)),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| failed(&io::ErrorKind::InvalidFilename.into()))?;
    let directory = fs::canonicalize(parent).map_err(|error| failed(&error))?;
    Ok(directory.join(name))
}

/// Opens a users file that is nobody's but its owner's; `None`: there is none.
fn open(path: &Path) -> Result<Option<(File, Metadata)>, Failure> {
    // Opening a named pipe would wait for its writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| failure(path, "read", &error))?,
    };
    let metadata = file.metadata().map_err(|error| failure(path, "read", &error))?;
    let shown = path.display();
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "no regular file" };
        return Err(Failure::new(ExitCode::NoInput, format!("{shown} is {what}; give a users file")));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let what = if mode & 0o044 != 0 { "read" } else { "changed or run" };
        let message = format!("{shown} can be {what} by others (mode {mode:04o}): chmod 600 {shown}");
        return Err(Failure::new(ExitCode::Config, message));
    }
    if metadata.len() > USERS_FILE_MAX_OCTETS {
        return Err(too_large(path));
    }
    Ok(Some((file, metadata)))
}

fn read(path: &Path, file: File, metadata: &Metadata) -> Result<Zeroizing<String>, Failure> {
    // Room for all of it: a buffer that grows leaves copies behind.
    let octets = usize::try_from(metadata.len()).unwrap_or(0);
    let mut text = Zeroizing::new(Vec::with_capacity(octets + 1));
    file.take(USERS_FILE_MAX_OCTETS + 1).read_to_end(&mut text).map_err(|error| failure(path, "read", &error))?;
    if text.len() as u64 > USERS_FILE_MAX_OCTETS {
        return Err(too_large(path));
    }
    String::from_utf8(mem::take(&mut text)).map(Zeroizing::new).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let octets = Zeroizing::new(error.into_bytes());
        let line = 1 + octets.iter().take(valid).filter(|&&octet| octet == b'\n').count();
        let message = format!("{}: line {line}: it is not UTF-8; save the file as UTF-8", path.display());
        Failure::new(ExitCode::Config, message)
    })
}

/// Waits until no other process changes a users file in this directory.
fn lock(path: &Path, directory: &File) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_millis(USERS_FILE_LOCK_MS);
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(USERS_FILE_LOCK_TICK_MS));
            }
            Err(Errno::WOULDBLOCK) => {
                let message = format!("{}: its directory is locked by another process; try again", path.display());
                return Err(Failure::new(ExitCode::TempFail, message));
            }
            Err(error) => return Err(failure(path, "lock the directory of", &error.into())),
        }
    }
}

/// Puts a new file in the place of `target`, or none: it is on the disk when its directory is.
fn replace(target: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".new");
    let new = target.with_file_name(name);
    // Of a process that was killed: whoever has the lock is the only one to make it.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write(&new, text, owner).and_then(|()| fs::rename(&new, target));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn write(new: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(new)?;
    // Whatever the umask took away.
    file.set_permissions(Permissions::from_mode(MODE))?;
    if let Some((user, group)) = owner {
        let metadata = file.metadata()?;
        if (metadata.uid(), metadata.gid()) != (user, group) {
            fchown(&file, Some(user), Some(group))?;
        }
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn broken(path: &Path, error: &ParseError) -> Failure {
    Failure::new(ExitCode::Config, format!("{}: {error}", path.display()))
}

fn absent(path: &Path) -> Failure {
    let path = path.display();
    let message = format!("{path}: there is no such file; gatepost user add --users {path} NAME makes it");
    Failure::new(ExitCode::NoInput, message)
}

fn too_large(path: &Path) -> Failure {
    let message = format!("{} is larger than {USERS_FILE_MAX_OCTETS} octets; give a users file", path.display());
    Failure::new(ExitCode::NoInput, message)
}

fn failure(path: &Path, what: &str, error: &io::Error) -> Failure {
    let (code, remedy) = match error.kind() {
        io::ErrorKind::PermissionDenied => (ExitCode::NoPermission, "; run this as the file's owner, or as root"),
        io::ErrorKind::ReadOnlyFilesystem => (ExitCode::NoPermission, "; remount it writable"),
        io::ErrorKind::StorageFull => (ExitCode::IoError, "; free some space"),
        io::ErrorKind::NotFound => (ExitCode::CantCreate, "; make its directory first"),
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => (ExitCode::CantCreate, "; give a users file"),
        _ => (ExitCode::IoError, ""),
    };
    Failure::new(code, format!("cannot {what} {}: {error}{remedy}", path.display()))
}
