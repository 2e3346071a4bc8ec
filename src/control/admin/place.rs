//! Where a Unix socket's file lies: its directory, held open, and its name.
//!
//! An address has room for 107 octets of path (unix(7)), and spools lie deeper. A longer path is
//! spelled through the open directory, `/proc/self/fd/N/NAME`.

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, openat, statat, unlinkat};
use socket2::{Domain, SockAddr, Socket, Type};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The place of a socket's file, whether or not there is one.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
}

/// Which file it is, whatever its name: device and inode.
pub type FileId = (u64, u64);

impl Place {
    /// Opens the directory that `path` names.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, parent, flags, Mode::empty())?;
        Ok(Place { directory, name: name.to_owned(), path: path.to_owned() })
    }

    /// Its path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its address, which holds as long as this place does.
    pub fn address(&self) -> io::Result<SockAddr> {
        SockAddr::unix(&self.path).or_else(|_| {
            let through = Path::new("/proc/self/fd").join(self.directory.as_raw_fd().to_string()).join(&self.name);
            SockAddr::unix(through)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the name of its file is too long"))
        })
    }

    /// Connects to who listens there. Waits for a place in the listener's queue up to `timeout`; not
    /// at all without one.
    pub fn connect(&self, timeout: Option<Duration>) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match timeout {
            // unix(7): connecting waits for as long as sending may.
            Some(_) => socket.set_write_timeout(timeout)?,
            None => socket.set_nonblocking(true)?,
        }
        socket.connect(&self.address()?)?;
        Ok(socket)
    }

    /// The file that is there: which it is, and whether it is a socket.
    pub fn file(&self) -> io::Result<(FileId, bool)> {
        let stat = statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(((stat.st_dev, stat.st_ino), FileType::from_raw_mode(stat.st_mode) == FileType::Socket))
    }

    /// Holds the file that is there: its inode is not used again as long as this lives.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.directory, &self.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Whether this process may make and remove files in its directory.
    pub fn check_writable(&self) -> io::Result<()> {
        Ok(accessat(&self.directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
    }

    /// Removes the file that is there.
    pub fn remove(&self) -> io::Result<()> {
        Ok(unlinkat(&self.directory, &self.name, AtFlags::empty())?)
    }
}
