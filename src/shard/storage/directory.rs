//! The spool as files: its layout, its lock, and the reading half of the queue's `Disk`.

use crate::limits::SHARDS_MAX;
use crate::queue::disk::Disk;
use crate::queue::record::FORMAT_VERSION;
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";

/// Why a spool cannot be used. Each says what is wrong and what to do.
#[derive(Debug)]
pub enum SpoolError {
    /// Another process has it.
    Locked(PathBuf, String),
    /// It was written by another version.
    Format(PathBuf, String),
    /// There is no spool.
    Absent(PathBuf),
    /// The system refuses.
    Io(PathBuf, &'static str, io::Error),
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Locked(path, owner) => write!(
                f,
                "spool {} is in use by another gatepost (process {owner}); stop it or choose another --spool",
                path.display()
            ),
            SpoolError::Format(path, found) => write!(
                f,
                "{} says {found:?}, this version reads \"gatepost-spool {FORMAT_VERSION}\"; run the version that wrote it until its queue is empty, or choose another --spool",
                path.display()
            ),
            SpoolError::Absent(path) => {
                write!(f, "{} is not a gatepost spool; give the directory that serve uses with --spool", path.display())
            }
            SpoolError::Io(path, what, error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::PermissionDenied => "; give this user write permission or choose another --spool",
                    io::ErrorKind::StorageFull => "; free some space or choose another --spool",
                    io::ErrorKind::ReadOnlyFilesystem => "; remount it writable or choose another --spool",
                    io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "; choose another --spool",
                    _ => "",
                };
                write!(f, "cannot {what} {}: {error}{remedy}", path.display())
            }
        }
    }
}

impl std::error::Error for SpoolError {}

/// A spool directory that this process has to itself until this value drops.
#[derive(Debug)]
pub struct SpoolDirectory {
    path: PathBuf,
    _lock: File,
}

impl SpoolDirectory {
    /// Opens the spool at `path`, making it if need be, and locks it.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        make_directory(path)?;
        let path = fs::canonicalize(path).map_err(|error| SpoolError::Io(path.to_owned(), "find", error))?;
        let lock = lock(&path)?;
        check_format(&path)?;
        Ok(SpoolDirectory { path, _lock: lock })
    }

    /// Finds out whether [`Self::open`] would go well, and changes nothing. (For a moment the lock is
    /// shared: a process that is started within it takes the spool to be in use.)
    pub fn check(path: &Path) -> Result<SpoolState, SpoolError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The first that is there is where the others would be made.
                let found = path.ancestors().skip(1).find_map(|above| {
                    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
                    above.exists().then_some(above)
                });
                let above = found.unwrap_or(Path::new("/"));
                check_access(above, "make a directory in")?;
                return Ok(SpoolState::New { above: above.to_owned() });
            }
            Err(error) => return Err(SpoolError::Io(path.to_owned(), "make the directory", error)),
            Ok(_) => check_access(path, "write to")?,
        }
        let owner = lock_owner(path)?;
        if path.join(FORMAT_FILE).exists() {
            shard_directories(path)?.iter().try_for_each(check_shard)?;
        }
        Ok(owner.map_or(SpoolState::Free, |owner| SpoolState::InUse { owner }))
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory of a shard if need be.
    pub fn make_shard(&self, shard: usize) -> Result<(), SpoolError> {
        make_directory(&self.path.join(shard_name(shard)))
    }
}

/// What a start would find at the place of a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolState {
    /// Nothing: it would make the spool.
    New {
        /// The directory above it that is there.
        above: PathBuf,
    },
    /// A spool, or an empty directory.
    Free,
    /// A spool that another process has.
    InUse {
        /// Its process id.
        owner: String,
    },
}

/// Whether this user may read, enter and change a directory.
fn check_access(directory: &Path, what: &'static str) -> Result<(), SpoolError> {
    let failed = |error| SpoolError::Io(directory.to_owned(), what, error);
    if !directory.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, directory, all, AtFlags::EACCESS).map_err(|error| failed(error.into()))
}

/// Whether this user may use a shard's directory, and the files in it: somebody may have run another
/// command as root.
fn check_shard(directory: &Directory) -> Result<(), SpoolError> {
    check_access(directory.path(), "write to")?;
    let failed = |path: &Path, error| SpoolError::Io(path.to_owned(), "write to", error);
    for name in directory.names().map_err(|error| failed(directory.path(), error))? {
        let path = directory.file(&name);
        match accessat(CWD, &path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
            // A gateway that runs has no use for it any more.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(&path, error.into())),
        }
    }
    Ok(())
}

/// The process that has a spool, if any has.
fn lock_owner(spool: &Path) -> Result<Option<String>, SpoolError> {
    let path = spool.join(LOCK_FILE);
    let failed = |error| SpoolError::Io(path.clone(), "write", error);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(written_owner(&file))),
        Err(error) => Err(failed(error.into())),
    }
}

/// Who has written itself into the lock; only for messages.
fn written_owner(mut lock: &File) -> String {
    let mut owner = String::new();
    let _ = lock.read_to_string(&mut owner);
    owner.trim().to_owned()
}

/// The shard directories of a spool in the order of their numbers. Needs no lock: for reading
/// beside a running gateway too.
pub fn shard_directories(spool: &Path) -> Result<Vec<Directory>, SpoolError> {
    let failed = |error| SpoolError::Io(spool.to_owned(), "read", error);
    if !spool.join(FORMAT_FILE).exists() {
        return Err(SpoolError::Absent(spool.to_owned()));
    }
    read_format(spool)?;
    let mut shards: Vec<Directory> = Vec::new();
    for entry in fs::read_dir(spool).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Other names are not ours: they might have another's number.
        if let Some(number) = path.file_name().and_then(|name| shard_number(name.to_str()?)) {
            shards.push(Directory { path, number });
        }
    }
    shards.sort_by_key(Directory::number);
    Ok(shards)
}

fn shard_name(shard: usize) -> String {
    format!("shard-{shard}")
}

/// The number in the name of a shard's directory.
fn shard_number(name: &str) -> Option<usize> {
    let number = name.strip_prefix("shard-")?.parse().ok()?;
    (number < SHARDS_MAX && shard_name(number) == name).then_some(number)
}

/// Makes a directory for this user alone, its entry on stable storage.
fn make_directory(path: &Path) -> Result<(), SpoolError> {
    let failed = |error| SpoolError::Io(path.to_owned(), "make the directory", error);
    let existed = path.is_dir();
    if !existed {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Also where it existed: the start that made it may have ended before this. Then a parent that
    // this user may not read is no reason to stop.
    sync_directory(parent).or_else(|error| if existed { Ok(()) } else { Err(failed(error)) })
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn lock(spool: &Path) -> Result<File, SpoolError> {
    let path = spool.join(LOCK_FILE);
    let failed = |error| SpoolError::Io(path.clone(), "write", error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(SpoolError::Locked(spool.to_owned(), written_owner(&file))),
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Writes the format on a new spool, and refuses another version's.
fn check_format(spool: &Path) -> Result<(), SpoolError> {
    let path = spool.join(FORMAT_FILE);
    if path.exists() {
        return read_format(spool);
    }
    let failed = |error| SpoolError::Io(path.clone(), "write", error);
    let temporary = spool.join("format.new");
    let mut file = File::create(&temporary).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    writeln!(file, "gatepost-spool {FORMAT_VERSION}").and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, &path).and_then(|()| sync_directory(spool)).map_err(failed)
}

fn read_format(spool: &Path) -> Result<(), SpoolError> {
    let path = spool.join(FORMAT_FILE);
    let found = fs::read_to_string(&path).map_err(|error| SpoolError::Io(path.clone(), "read", error))?;
    if found.trim() == format!("gatepost-spool {FORMAT_VERSION}") {
        Ok(())
    } else {
        Err(SpoolError::Format(path, found.trim().to_owned()))
    }
}

/// A shard's directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    number: usize,
}

impl Directory {
    /// The number of its shard.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its name in the spool.
    pub fn name(&self) -> String {
        shard_name(self.number)
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        File::open(self.file(name))?.read_to_end(out).map(drop)
    }

    fn read_beginning(&self, name: &str, octets: usize, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        File::open(self.file(name))?.take(octets as u64).read_to_end(out).map(drop)
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.file(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.file(name))?;
        file.write_all(octets)?;
        file.sync_all()?;
        sync_directory(&self.path)
    }

    fn write_end(&mut self, name: &str, offset: u64, octets: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.file(name))?;
        file.write_all_at(octets, offset)?;
        file.set_len(offset + octets.len() as u64)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.file(from), self.file(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.file(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_changes_nothing() {
        let root = std::env::temp_dir().join(format!("gatepost-spool-look-{}", std::process::id()));
        fs::create_dir(&root).expect("a temporary directory");
        let path = root.join("a/spool");
        assert_eq!(SpoolDirectory::check(&path).expect("it can be made"), SpoolState::New { above: root.clone() });
        assert_eq!(fs::read_dir(&root).expect("a directory").count(), 0);
        let spool = SpoolDirectory::open(&path).expect("a new spool");
        let owner = std::process::id().to_string();
        assert_eq!(SpoolDirectory::check(&path).expect("a spool"), SpoolState::InUse { owner });
        spool.make_shard(0).expect("a shard");
        drop(spool);
        assert_eq!(SpoolDirectory::check(&path).expect("a spool"), SpoolState::Free);
        fs::write(path.join(FORMAT_FILE), "gatepost-spool 999\n").expect("a writable file");
        assert!(matches!(SpoolDirectory::check(&path), Err(SpoolError::Format(..))));
        for file in [path.join(FORMAT_FILE), path.join(FORMAT_FILE).join("below")] {
            assert!(matches!(SpoolDirectory::check(&file), Err(SpoolError::Io(..))), "{}", file.display());
        }
        fs::remove_dir_all(root).expect("tidying up");
    }

    #[test]
    fn only_names_of_ours_have_a_number() {
        for number in [0, 7, 10, SHARDS_MAX - 1] {
            assert_eq!(shard_number(&shard_name(number)), Some(number));
        }
        for name in ["shard-", "shard-07", "shard-+7", "shard-7 ", "shard-1024", "shard--1", "shards-7", "7"] {
            assert_eq!(shard_number(name), None, "{name}");
        }
    }

    #[test]
    fn is_made_locked_and_checked() {
        let root = std::env::temp_dir().join(format!("gatepost-directory-{}", std::process::id()));
        let path = root.join("a/spool");
        let spool = SpoolDirectory::open(&path).expect("a new spool");
        assert!(matches!(SpoolDirectory::open(&path), Err(SpoolError::Locked(..))));
        spool.make_shard(1).expect("a shard");
        spool.make_shard(0).expect("a shard");
        drop(spool);
        let spool = SpoolDirectory::open(&path).expect("the lock went with its owner");
        let shards = shard_directories(spool.path()).expect("a spool");
        assert_eq!(
            shards.iter().map(|shard| shard.path().file_name().expect("a name")).collect::<Vec<_>>(),
            ["shard-0", "shard-1"]
        );
        fs::write(path.join(FORMAT_FILE), "gatepost-spool 999\n").expect("a writable file");
        drop(spool);
        assert!(matches!(SpoolDirectory::open(&path), Err(SpoolError::Format(..))));
        assert!(matches!(shard_directories(&root), Err(SpoolError::Absent(_))));
        fs::remove_dir_all(root).expect("tidying up");
    }
}
