//! A disk whose writes are logged, with a filesystem on it: a file, `qemu-storage-daemon` with
//! `blklogwrites` above it, its export over FUSE, a loop device, ext4.
//!
//! All mounts are in a mount namespace of the test's own thread and the processes it starts: they
//! vanish with the last of these, however the test ends.

use crate::harness::{Scratch, until};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Small, so that segments are, and are used again soon.
pub const DISK_OCTETS: u64 = 32 << 20;
/// A block of the filesystem.
pub const BLOCK_OCTETS: u64 = 4096;
/// Where the filesystem's journal lies.
pub const JOURNAL: Range<u64> = 16 << 20..20 << 20;
/// Octets that are looked at together to find out whether a file can have a hole there.
const HOLE_OCTETS: usize = 64 * 1024;

/// Lets this thread, and what it starts from now on, have mounts of their own. Needs root.
pub fn have_own_mounts() {
    // SAFETY: no descriptor is shared or closed by this; other threads keep the mounts they have.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("root's right to have mounts of its own");
    run(Command::new("mount").args(["--make-rprivate", "/"]));
}

/// Runs a command, which must go well; what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A disk with an empty filesystem.
pub fn format(scratch: &Scratch) -> Vec<u8> {
    let path = scratch.join("empty.img");
    File::create(&path).and_then(|file| file.set_len(DISK_OCTETS)).expect("ours");
    let journal = format!("size={},location={}", (JOURNAL.end - JOURNAL.start) >> 20, JOURNAL.start / BLOCK_OCTETS);
    // Nothing is left for the kernel to do later, at moments of its own.
    let at_once = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    let mut mkfs = Command::new("mkfs.ext4");
    run(mkfs.args(["-q", "-F", "-b", &BLOCK_OCTETS.to_string(), "-E", at_once, "-J", &journal]).arg(&path));
    let journal = run(Command::new("debugfs").args(["-R", "blocks <8>"]).arg(&path));
    for block in journal.split_whitespace().map(|block| block.parse::<u64>().expect("a number")) {
        assert!(JOURNAL.contains(&(block * BLOCK_OCTETS)), "block {block} of the journal is elsewhere");
    }
    let disk = fs::read(&path).expect("ours");
    fs::remove_file(&path).expect("ours");
    disk
}

/// Writes a disk to a file, with holes where it can have them.
pub fn write_image(path: &Path, disk: &[u8]) {
    let file = File::create(path).expect("ours");
    file.set_len(disk.len() as u64).expect("ours");
    for (place, octets) in (0..).zip(disk.chunks(HOLE_OCTETS)) {
        if octets.iter().any(|&octet| octet != 0) {
            file.write_all_at(octets, place * HOLE_OCTETS as u64).expect("space for an image");
        }
    }
}

/// A filesystem that is mounted; no more so when dropped.
#[derive(Debug)]
pub struct Mount {
    directory: PathBuf,
    is_mounted: bool,
}

impl Mount {
    /// Mounts the filesystem that is in a file.
    pub fn new(file: &Path, directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("ours");
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(file).arg(directory));
        Mount { directory: directory.to_owned(), is_mounted: true }
    }

    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Unmounts it, once those are gone that were killed and use it.
    pub fn unmount(mut self) {
        until("the filesystem can be unmounted", || {
            self.is_mounted = !unmount(&self.directory, &[]);
            !self.is_mounted
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted && !unmount(&self.directory, &[]) {
            unmount(&self.directory, &["-l"]);
        }
    }
}

fn unmount(path: &Path, options: &[&str]) -> bool {
    let mut umount = Command::new("umount");
    umount.args(options).arg(path).stdin(Stdio::null()).stderr(Stdio::null());
    umount.status().is_ok_and(|status| status.success())
}

/// A disk whose writes are logged; gone when dropped.
#[derive(Debug)]
pub struct Device {
    daemon: Child,
    export: PathBuf,
    image: PathBuf,
    log: PathBuf,
}

impl Device {
    /// A disk that holds this. Its files go to `directory`.
    pub fn start(directory: &Path, disk: &[u8]) -> Self {
        let [image, log, export, ready] =
            ["disk.img", "writes.log", "export.img", "daemon.pid"].map(|name| directory.join(name));
        write_image(&image, disk);
        for file in [&log, &export] {
            File::create(file).expect("ours");
        }
        let _ = fs::remove_file(&ready);
        let mut command = Command::new("qemu-storage-daemon");
        for (option, value) in [
            ("--blockdev", format!("driver=file,node-name=disk,filename={}", image.display())),
            ("--blockdev", format!("driver=file,node-name=log,filename={}", log.display())),
            ("--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log".to_owned()),
            ("--export", format!("type=fuse,id=export,node-name=logged,mountpoint={},writable=on", export.display())),
            ("--pidfile", ready.display().to_string()),
        ] {
            command.args([option, &value]);
        }
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let daemon = command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon");
        let mut device = Device { daemon, export, image, log };
        until("the disk is there", || {
            assert_eq!(device.daemon.try_wait().expect("a child of ours"), None, "qemu-storage-daemon has ended");
            ready.exists()
        });
        device
    }

    pub fn mount(&self, directory: &Path) -> Mount {
        Mount::new(&self.export, directory)
    }

    /// Where its writes are logged.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Takes the disk away, in order: its log is complete then. Returns what it holds.
    pub fn stop(mut self) -> Vec<u8> {
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).expect("it runs");
        until("qemu-storage-daemon ends", || self.daemon.try_wait().expect("a child of ours").is_some());
        fs::read(&self.image).expect("ours")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Where it ended in order there is nothing any more.
        unmount(&self.export, &["-l"]);
    }
}
