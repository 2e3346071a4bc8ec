//! What stops a command before or besides its verdict, and the exit code of each (sysexits).

use std::fmt;
use std::io;
use std::path::Path;

/// A fault of the operator's or the machine's; refusals and losses are results, not faults.
#[derive(Debug)]
pub enum Fault {
    /// The command line asks for something that cannot be done.
    Usage(String),
    /// A file or directory could not be read or written.
    File(String, io::Error),
    /// The operating system refused a thread, a socket or a signal handler.
    System(&'static str, io::Error),
}

impl Fault {
    /// A fault of the file at `path`.
    pub fn file(path: &Path, error: io::Error) -> Self {
        Self::File(path.display().to_string(), error)
    }

    /// EX_USAGE, EX_IOERR or EX_OSERR.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::File(..) => 74,
            Self::System(..) => 71,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => write!(f, "{text}"),
            Self::File(path, error) => write!(f, "{path}: {error}"),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}
