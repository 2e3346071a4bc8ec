"""Filesystems of a suite's own: small ones, and such as lie on a disk that fails when it is told to."""

import errno
import os
import subprocess
import time
from pathlib import Path

from harness import PATIENCE, SCRATCH, run, until

PLUGIN = Path(__file__).with_name("faulty_disk.py")


class Filesystem:
    """An ext4 on an image of its own, mounted below our directory until the end of its `with`."""

    number = 0

    def __init__(self, megabytes, *mkfs, mount=""):
        Filesystem.number += 1
        self.directory = SCRATCH / f"filesystem-{Filesystem.number}"
        self.image = self.directory / "image"
        self.mount = self.directory / "mount"
        self.options = ",".join(filter(None, ["loop", mount]))
        self.mount.mkdir(parents=True)
        with self.image.open("wb") as image:
            image.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-m", "0", *mkfs, self.image)

    @property
    def spool(self):
        return self.mount / "spool"

    @property
    def device(self):
        """The file that is mounted."""
        return self.image

    def __enter__(self):
        try:
            self.attach()
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, *_):
        self.detach()

    def attach(self):
        run("mount", "-o", self.options, self.device, self.mount)

    def detach(self):
        """Takes the mount off, and its loop device with it."""
        if self.mount.is_mount():
            self.take_off(self.mount)

    def again(self):
        """Mounts it anew: whatever only memory knew is gone."""
        self.detach()
        # What the journal holds comes first; then what the failures have done to the filesystem's own.
        checked = subprocess.run(["e2fsck", "-fy", self.image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
        assert checked.returncode & ~3 == 0, checked.stdout.decode()
        self.attach()

    def remount(self, options):
        run("mount", "-o", f"remount,{options}", self.mount)

    def is_writable(self):
        """Whether a file can be made on it, and put on stable storage, or at least tried."""
        try:
            with (self.mount / "new").open("wb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            return error.errno != errno.EROFS
        return True

    @staticmethod
    def take_off(path):
        # Whoever had files open there has just ended.
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(["umount", path], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
            assert time.monotonic() < deadline, f"{path} stays in use"
            time.sleep(0.05)


class FaultyDisk(Filesystem):
    """One whose disk fails: nbdkit has the image, nbdfuse shows it as a file, and a loop device makes a disk of that."""

    def __init__(self, *mkfs, mount=""):
        super().__init__(192, *mkfs, mount=mount)
        self.shown = self.directory / "shown"
        self.shown.mkdir()
        self.faults = self.directory / "faults"
        self.server = None

    @property
    def device(self):
        return self.shown / "disk"

    def attach(self):
        with (self.directory / "log").open("ab") as log:
            # nbdkit ends with nbdfuse, and that with the mount.
            self.server = subprocess.Popen(
                ["nbdfuse", self.device, "--command", "nbdkit", "-s", "--exit-with-parent", "python", PLUGIN,
                 f"file={self.image}", f"faults={self.faults}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until("the disk is there", self.is_shown)
        super().attach()

    def is_shown(self):
        assert self.server.poll() is None, (self.directory / "log").read_text()
        return self.shown.is_mount() and self.device.exists()

    def detach(self):
        self.mend()
        super().detach()
        if self.shown.is_mount():
            self.take_off(self.shown)
        if self.server:
            try:
                self.server.wait(PATIENCE)
            finally:
                self.server.kill()
                self.server = None

    def fail(self, error, every, *what):
        """From now on every `every`-th of `what` fails with `error`."""
        new = self.faults.with_suffix(".new")
        new.write_text(f"{error} {every} {' '.join(what)}\n")
        new.rename(self.faults)

    def mend(self):
        """Nothing fails any more."""
        self.faults.unlink(missing_ok=True)

    def injected(self):
        """How many operations were failed."""
        path = Path(f"{self.faults}.injected")
        return len(path.read_text().splitlines()) if path.exists() else 0
