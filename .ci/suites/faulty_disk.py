"""A disk in a file, for nbdkit's Python plugin: it fails writes and flushes as a file of faults says, which may change at
any time.

nbdkit python faulty_disk.py file=IMAGE faults=FAULTS

FAULTS holds one line, `ERROR EVERY WHAT...`: of what it names, `pwrite`, `flush` and `mail` (writes with mail in them, so
that a filesystem's own are spared), every EVERY-th fails with ERROR. Without that file nothing does. What was failed is
appended to FAULTS.injected, a line each.

A write that goes on where the last one ended never fails: it may be a later part of what the loop device was given in
one piece. A piece that was written in part counts as written there, which no disk would say.
"""

import errno
import io
import os

import nbdkit  # pylint: disable=import-error  # it is there where nbdkit runs this

API_VERSION = 2
# In the trace field of every message, a part of which may be at the start of a block.
MAIL = b"(Gatepost) with"
settings = {}
counted = 0
written_to = 0


def config(key, value):
    settings[key] = value


def open(readonly):  # pylint: disable=redefined-builtin  # what nbdkit calls
    return os.open(settings["file"], os.O_RDONLY if readonly else os.O_RDWR)


def close(disk):
    os.close(disk)


def get_size(disk):
    return os.fstat(disk).st_size


def pread(disk, buffer, offset, _flags):
    buffer[:] = os.pread(disk, len(buffer), offset)


def pwrite(disk, buffer, offset, _flags):
    global written_to  # pylint: disable=global-statement
    if offset != written_to:
        fail_if_due("pwrite", "mail" if MAIL in bytes(buffer) else "")
    os.pwrite(disk, buffer, offset)
    written_to = offset + len(buffer)


def flush(_disk, _flags):
    fail_if_due("flush")


def fail_if_due(*names):
    global counted  # pylint: disable=global-statement
    try:
        with io.open(settings["faults"], encoding="ascii") as file:
            error, every, *what = file.read().split()
    except FileNotFoundError:
        return
    if not set(what).intersection(names):
        return
    counted += 1
    if counted % int(every) == 0:
        with io.open(settings["faults"] + ".injected", "a", encoding="ascii") as file:
            file.write(f"{error} {names[0]}\n")
        nbdkit.set_error(getattr(errno, error))
        raise OSError(names[0])
