//! Watermarks of disk and memory: below one, mail is refused with 452 until there is more ([MS-OXSMTP]
//! 3.2.7 OutOfResources).
//!
//! Each is sampled every second on a thread of the runtime's pool, since a sick disk may keep
//! statvfs(2) waiting; one sample at a time, so that this takes one thread at most. A sample that is
//! late or fails counts as short: what cannot be told is not to be relied on, and a disk that does
//! not answer takes no mail either. At the start it is a reason not to start.

use super::memory::FreeMemory;
use super::preflight::{ExitCode, Failure};
use crate::config::{Watermarks, units};
use crate::limits::{RESOURCES_LATE_MS, RESOURCES_SAMPLE_MS};
use crate::metrics::{FREE_DISK, FREE_MEMORY, RESOURCES_SHORT};
use crate::shard::Shared;
use crate::stderr;
use metrics::{Gauge, gauge};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// What is watched, and whether it is short.
pub struct Resources {
    disk: Watermark,
    memory: Watermark,
    shared: Arc<Shared>,
    /// How late a sample may be.
    late: Duration,
}

impl Resources {
    /// Takes the first samples, so that the gateway serves with the right answer from the first
    /// connection on. The metrics recorder is installed.
    pub fn new(spool: &Path, shared: Arc<Shared>) -> Result<Self, Failure> {
        let what = format!("free space on {}", spool.display());
        let spool = spool.to_owned();
        let memory = FreeMemory::new();
        let disk =
            Watermark::new(what, "--min-free-disk", |min| min.free_disk_min, FREE_DISK, move || free_disk(&spool));
        let memory = Watermark::new(
            "free memory".to_owned(),
            "--min-free-memory",
            |min| min.free_memory_min,
            FREE_MEMORY,
            move || memory.sample(),
        );
        let late = Duration::from_millis(RESOURCES_LATE_MS);
        let resources = Resources { disk, memory, shared, late };
        for watermark in [&resources.disk, &resources.memory] {
            let sample = (watermark.sampler)();
            if let (Err(error), 1..) = (&sample, resources.min(watermark)) {
                let (what, option) = (&watermark.what, watermark.option);
                let message = format!("{what} cannot be told: {error}; {option} 0 does without it");
                return Err(Failure::new(ExitCode::OsError, message));
            }
            resources.judge(watermark, sample);
        }
        Ok(resources)
    }

    /// Watches for as long as the process lives.
    pub async fn watch(self) {
        tokio::join!(self.watch_one(&self.disk), self.watch_one(&self.memory));
    }

    async fn watch_one(&self, watermark: &Watermark) {
        let mut ticks = interval(Duration::from_millis(RESOURCES_SAMPLE_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sampler = watermark.sampler.clone();
            let mut sample = spawn_blocking(move || sampler());
            let sample = match timeout(self.late, &mut sample).await {
                Ok(sample) => sample,
                Err(_) => {
                    let error = format!("no answer in {}", units::show(self.late));
                    self.judge(watermark, Err(io::Error::new(io::ErrorKind::TimedOut, error)));
                    sample.await
                }
            };
            self.judge(watermark, sample.unwrap_or_else(|panic| Err(io::Error::other(panic))));
        }
    }

    /// In octets, as the configuration says now; 0: nothing is ever short.
    fn min(&self, watermark: &Watermark) -> u64 {
        (watermark.min)(&self.shared.config().watermarks)
    }

    fn judge(&self, watermark: &Watermark, sample: io::Result<u64>) {
        if let Some(line) = watermark.judge(&sample, self.min(watermark)) {
            stderr::say(format_args!("{line}"));
        }
        let short = self.disk.is_short() || self.memory.is_short();
        self.shared.set_resources_short(short);
        gauge!(RESOURCES_SHORT).set(f64::from(u8::from(short)));
    }
}

/// One of them.
struct Watermark {
    /// As in "free memory".
    what: String,
    option: &'static str,
    /// Which of them it is.
    min: fn(&Watermarks) -> u64,
    gauge: Gauge,
    sampler: Arc<dyn Fn() -> io::Result<u64> + Send + Sync>,
    short: AtomicBool,
}

impl Watermark {
    fn new(
        what: String,
        option: &'static str,
        min: fn(&Watermarks) -> u64,
        metric: &'static str,
        sampler: impl Fn() -> io::Result<u64> + Send + Sync + 'static,
    ) -> Self {
        Watermark {
            what,
            option,
            min,
            gauge: gauge!(metric),
            sampler: Arc::new(sampler),
            short: AtomicBool::new(false),
        }
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Takes a sample; the line to print if that changes anything.
    fn judge(&self, sample: &io::Result<u64>, min: u64) -> Option<String> {
        if let Ok(free) = sample {
            self.gauge.set(*free as f64);
        }
        let short = min > 0 && sample.as_ref().map_or(true, |&free| free < min);
        if self.short.swap(short, Ordering::Relaxed) == short {
            return None;
        }
        let (what, option, min) = (&self.what, self.option, units::show_size(min));
        Some(match sample {
            Ok(free) => {
                let free = units::show_size_roughly(*free);
                if short {
                    format!("{what} is {free}, below {option} {min}: mail is refused with 452 until there is more")
                } else {
                    format!("{what} is {free}, no longer below {option} {min}: mail is not refused for want of it")
                }
            }
            Err(error) => format!(
                "{what} cannot be told ({error}): mail is refused with 452 until it can; {option} 0 does without it"
            ),
        })
    }
}

/// Free space for all but root on the filesystem of `path`.
fn free_disk(path: &Path) -> io::Result<u64> {
    let filesystem = rustix::fs::statvfs(path)?;
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::sync::{Mutex, mpsc};
    use tokio::time::sleep;

    const MB: u64 = 1 << 20;

    fn watermark() -> Watermark {
        let min: fn(&Watermarks) -> u64 = |min| min.free_disk_min;
        Watermark::new("free space on /spool".to_owned(), "--min-free-disk", min, FREE_DISK, || Ok(0))
    }

    #[test]
    fn changes_are_told_once() {
        let watermark = watermark();
        let sick = || Err(io::Error::other("sick"));
        let table: [(io::Result<u64>, bool, Option<&str>); 10] = [
            (Ok(500 * MB), false, None),
            (
                Ok(500 * MB - 1),
                true,
                Some(
                    "free space on /spool is 499 MB, below --min-free-disk 500MB: mail is refused with 452 until there is more",
                ),
            ),
            (Ok(0), true, None),
            (sick(), true, None),
            (
                Ok(500 * MB),
                false,
                Some(
                    "free space on /spool is 500 MB, no longer below --min-free-disk 500MB: mail is not refused for want of it",
                ),
            ),
            (Ok(u64::MAX), false, None),
            (
                sick(),
                true,
                Some(
                    "free space on /spool cannot be told (sick): mail is refused with 452 until it can; --min-free-disk 0 does without it",
                ),
            ),
            (sick(), true, None),
            (Ok(499 * MB), true, None),
            (
                Ok(20_000 * MB),
                false,
                Some(
                    "free space on /spool is 19 GB, no longer below --min-free-disk 500MB: mail is not refused for want of it",
                ),
            ),
        ];
        for (number, (sample, short, line)) in table.into_iter().enumerate() {
            assert_eq!(watermark.judge(&sample, 500 * MB).as_deref(), line, "{number}");
            assert_eq!(watermark.is_short(), short, "{number}");
        }
    }

    #[test]
    fn none_is_never_below() {
        let watermark = watermark();
        for sample in [Ok(0), Err(io::Error::other("sick")), Ok(u64::MAX)] {
            assert_eq!(watermark.judge(&sample, 0), None);
            assert!(!watermark.is_short());
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_is_short() {
        let shared = Arc::new(Shared::new(Arc::new(Config::of(&[])), []));
        let hangs = Arc::new(AtomicBool::new(true));
        let (answer, answers) = mpsc::channel::<u64>();
        let answers = Mutex::new(answers);
        let sampler_hangs = hangs.clone();
        let sampler = move || match sampler_hangs.load(Ordering::SeqCst) {
            true => answers.lock().expect("one at a time").recv().map_err(io::Error::other),
            false => Ok(1),
        };
        let disk = Watermark::new("free space".to_owned(), "--min-free-disk", |_| 1, FREE_DISK, sampler);
        let memory = Watermark::new("free memory".to_owned(), "--min-free-memory", |_| 1, FREE_MEMORY, || Ok(1));
        let resources = Resources { disk, memory, shared: shared.clone(), late: Duration::from_millis(10) };
        let until = async |short: bool| {
            let done = async {
                while shared.resources_short() != short {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(60), done).await.expect("a change");
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let watch = tokio::spawn(resources.watch());
            until(true).await;
            hangs.store(false, Ordering::SeqCst);
            answer.send(1).expect("somebody waits for it");
            until(false).await;
            hangs.store(true, Ordering::SeqCst);
            until(true).await;
            watch.abort();
        });
        // Ends the sample that still waits.
        drop(answer);
    }

    #[test]
    fn this_machine_has_a_disk() {
        assert!(free_disk(&std::env::temp_dir()).expect("a filesystem") > 0);
        assert!(free_disk(Path::new("/nonexistent")).is_err());
    }
}
