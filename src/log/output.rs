//! Where lines go: standard output, or a file that others may rotate.

use crate::limits::LOG_ROTATION_LOOK_MS;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, access};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The mode of a file that is made.
const MODE: u32 = 0o640;

/// Standard output, or a file.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    named: Option<Named>,
}

/// A file that has a name.
#[derive(Debug)]
struct Named {
    path: PathBuf,
    looked: Instant,
}

impl Output {
    /// Standard output.
    pub(super) fn stdout() -> io::Result<Self> {
        Ok(Self::of(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// What is open, and stays so.
    pub(super) fn of(file: File) -> Self {
        Output { file, named: None }
    }

    /// A file, made where there is none; lines are appended.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Ok(Output { file: open(path)?, named: Some(Named { path: path.to_owned(), looked: Instant::now() }) })
    }

    /// Whether the path no longer names the open file, or nobody can tell. Looks once in a while.
    pub(super) fn is_rotated(&mut self, now: Instant) -> bool {
        let Some(named) = &mut self.named else { return false };
        if now.duration_since(named.looked) < Duration::from_millis(LOG_ROTATION_LOOK_MS) {
            return false;
        }
        named.looked = now;
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let named = fs::metadata(&named.path).map(identity).ok();
        named.is_none() || named != self.file.metadata().map(identity).ok()
    }

    /// Opens the file that the path names now, and makes one if there is none. Where that fails, the
    /// open one stays.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(named) = &self.named {
            self.file = open(&named.path)?;
        }
        Ok(())
    }

    /// How it is called.
    pub(super) fn name(&self) -> String {
        self.named.as_ref().map_or_else(|| "standard output".to_owned(), |named| named.path.display().to_string())
    }

    /// Writes all, and waits for as long as it takes; or how many octets were written, and why no more.
    pub(super) fn write(&mut self, octets: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut rest = octets;
        while !rest.is_empty() {
            let error = match self.file.write(rest) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                // Whoever gave it to us uses it without blocking; this thread may wait.
                ErrorKind::WouldBlock if self.wait().is_ok() => {}
                _ => return Err((octets.len() - rest.len(), error)),
            }
        }
        Ok(())
    }

    fn wait(&self) -> rustix::io::Result<usize> {
        poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None)
    }
}

/// Whether a file could be opened, or made, without doing either where that would change something.
pub(super) fn check(path: &Path) -> io::Result<()> {
    match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(access(directory.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        result => result.map(drop),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}
