//! Files that are loaded again when they change.
//!
//! They are looked at every `FILES_LOOK_MS`: that works on every file system, and sees a file that
//! was replaced, or a symbolic link that was turned, as well as one that was written. What cannot be
//! loaded is told once, and what was loaded before stays, until the files change again: those that
//! belong together (a certificate and its key) may be written one by one.

use crate::{stderr, stdout};
use rustix::fs::stat;
use std::fmt;
use std::path::{Path, PathBuf};

/// Loads files: the line for the operator that says what was loaded, or why nothing was and what
/// holds instead.
type Reload = Box<dyn FnMut() -> Result<String, String> + Send>;

/// Files that are loaded together.
pub struct Watched {
    paths: Vec<PathBuf>,
    seen: Seen,
    reload: Reload,
}

impl Watched {
    /// Notes what the files are now; make it before they are loaded for the first time. `reload` may
    /// take its time, and reads all of them.
    pub fn new(paths: Vec<PathBuf>, reload: impl FnMut() -> Result<String, String> + Send + 'static) -> Self {
        let seen = Seen(state(&paths));
        Watched { paths, seen, reload: Box::new(reload) }
    }

    /// Whether these are the same files in the same state.
    pub fn is_like(&self, other: &Watched) -> bool {
        self.paths == other.paths && self.seen == other.seen
    }

    /// Loads the files if they have changed.
    pub fn look(&mut self) {
        // Before they are read: what changes meanwhile is seen the next time.
        if !self.seen.has_changed(state(&self.paths)) {
            return;
        }
        match (self.reload)() {
            Ok(line) => stdout::say(format_args!("{line}")),
            Err(line) => stderr::say(format_args!("{line}")),
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// Files that were read and are in order, before anybody goes by them.
pub struct Prepared {
    /// What watches them.
    pub watched: Watched,
    apply: Box<dyn FnOnce() + Send>,
    /// What is to be told of them.
    line: String,
}

impl Prepared {
    /// Files that `apply` has everybody go by, and what is told of them then.
    pub fn new(watched: Watched, line: String, apply: impl FnOnce() + Send + 'static) -> Self {
        Prepared { watched, apply: Box::new(apply), line }
    }

    /// Has everybody go by them. The line says what was loaded.
    pub fn apply(self) -> (Watched, String) {
        (self.apply)();
        (self.watched, self.line)
    }
}

/// What the files were when they were last looked at.
#[derive(Debug, PartialEq, Eq)]
struct Seen(Vec<Option<FileState>>);

impl Seen {
    /// Whether they are others now.
    fn has_changed(&mut self, now: Vec<Option<FileState>>) -> bool {
        let has_changed = self.0 != now;
        self.0 = now;
        has_changed
    }
}

/// What tells a file from one that was written or put in its place since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    octets: i64,
    /// Seconds and nanoseconds.
    modified: (i64, u64),
    changed: (i64, u64),
}

/// `None` where a file cannot be looked at.
fn state(paths: &[PathBuf]) -> Vec<Option<FileState>> {
    let state_of = |path: &PathBuf| {
        let stat = stat(Path::new(path)).ok()?;
        Some(FileState {
            device: stat.st_dev,
            inode: stat.st_ino,
            octets: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    };
    paths.iter().map(state_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn file(inode: u64, octets: i64, modified: i64) -> Option<FileState> {
        Some(FileState { device: 1, inode, octets, modified: (modified, 0), changed: (modified, 0) })
    }

    #[test]
    fn every_change_is_seen_once() {
        let mut seen = Seen(vec![file(1, 10, 100), file(2, 10, 100)]);
        for (now, has_changed) in [
            ([file(1, 10, 100), file(2, 10, 100)], false),
            // The first is written, and the second not yet.
            ([file(1, 10, 101), file(2, 10, 100)], true),
            ([file(1, 10, 101), file(2, 10, 100)], false),
            ([file(1, 10, 101), file(2, 11, 100)], true),
            // Replaced by one of the same size and age.
            ([file(3, 10, 101), file(2, 11, 100)], true),
            // Gone, and back.
            ([None, file(2, 11, 100)], true),
            ([None, file(2, 11, 100)], false),
            ([file(3, 10, 101), file(2, 11, 100)], true),
            ([file(3, 10, 101), file(2, 11, 100)], false),
        ] {
            assert_eq!(seen.has_changed(now.to_vec()), has_changed, "{now:?}");
        }
    }

    #[test]
    fn files_are_loaded_when_they_change() {
        let loads = Arc::new(AtomicU32::new(0));
        let count = loads.clone();
        // Itself: there is one, and nobody writes it.
        let own = std::env::current_exe().expect("a program");
        let mut watched = Watched::new(vec![own, "/nonexistent/file".into()], move || {
            // Whatever comes of it, it is not tried again before something changes.
            if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                Err("no".to_owned())
            } else {
                Ok("yes".to_owned())
            }
        });
        for (has_changed, expected) in [(false, 0), (true, 1), (false, 1), (true, 2), (false, 2)] {
            if has_changed {
                watched.seen = Seen(vec![None, None]);
            }
            watched.look();
            assert_eq!(loads.load(Ordering::Relaxed), expected);
        }
    }
}
