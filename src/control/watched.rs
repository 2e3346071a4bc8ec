//! Files that are loaded again when they change, or when SIGHUP asks for it.
//!
//! Files are looked at every [`FILES_LOOK_MS`]: that works on every file system, and sees a file that
//! was replaced, or a symbolic link that was turned, as well as one that was written. What cannot be
//! loaded is told once, and what was loaded before stays, until the files change again: those that
//! belong together (a certificate and its key) may be written one by one.

use crate::limits::FILES_LOOK_MS;
use crate::{log, stderr, stdout};
use rustix::fs::stat;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

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

    /// Loads the files if they have changed, or if that is asked for.
    fn look(&mut self, is_asked: bool) {
        // Before they are read: what changes meanwhile is seen the next time.
        if !self.seen.has_changed(state(&self.paths)) && !is_asked {
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

/// What the files were when they were last looked at.
#[derive(Debug)]
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

/// Keeps what was loaded as the files are, for ever. `asked` has all of them loaded again.
pub async fn watch(mut files: Vec<Watched>, asked: Arc<Notify>) {
    let mut ticks = interval(Duration::from_millis(FILES_LOOK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_asked = tokio::select! {
            _ = ticks.tick() => false,
            () = asked.notified() => true,
        };
        if is_asked && files.is_empty() && !log::is_to_file() {
            stderr::say(format_args!("SIGHUP: no file of this gateway can be loaded again; restart it"));
        }
        // Reading may take a while, and this thread has scrapes and commands to answer.
        let look = move || {
            files.iter_mut().for_each(|watched| watched.look(is_asked));
            files
        };
        match spawn_blocking(look).await {
            Ok(back) => files = back,
            Err(error) => {
                stderr::say(format_args!("changed files are no longer loaded ({error}); restart the gateway"));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn files_are_loaded_when_they_change_or_somebody_asks() {
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
        for (is_asked, expected) in [(false, 0), (true, 1), (false, 1), (true, 2), (false, 2)] {
            watched.look(is_asked);
            assert_eq!(loads.load(Ordering::Relaxed), expected);
        }
        watched.seen = Seen(vec![None, None]);
        for expected in [3, 3] {
            watched.look(false);
            assert_eq!(loads.load(Ordering::Relaxed), expected);
        }
    }
}
