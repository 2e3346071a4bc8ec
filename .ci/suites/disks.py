#!/usr/bin/env python3
"""Storage that fails, fills, or may not be written: nobody is acknowledged who should not be, and service resumes.

usage: disks.py GATEPOST DIRECTORY [CASE...]

Needs root, to mount small filesystems; nbdkit with its Python plugin, nbdfuse, e2fsprogs, Postfix' smtp-source; and
gatepost-load beside the binary. In each case clients send mail of all sizes while the storage of a running gateway breaks,
works again, and breaks again. Whatever they were told must be true of the spool afterwards, on a disk that works.
GATEPOST_DISK_FAULTS=all injects faults at every one of many intervals rather than at a few. Works in DIRECTORY alone, on
127.0.0.0/8. Every wait is bounded. Ends with one line, `N passed, N failed`, and exits 1 when something failed.
"""

import collections
import contextlib
import itertools
import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from disk import FaultyDisk, Filesystem
from harness import ENVIRONMENT, FROM, GATEPOST, PATIENCE, TO, Gateway, case, main, run, smtp_source, until
from next_hops import Recorder, UNLIMITED, check, delivered
from traffic import BANNER, SHORT, Mail, Refused, Session, Traffic

ALL = os.environ.get("GATEPOST_DISK_FAULTS") == "all"
EVERY = (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 23, 32, 64) if ALL else (1, 4)
SHARDS = 2
SMALL_MB = 16
JOURNALLED, NOT_JOURNALLED = (), ("-O", "^has_journal")


def serving(filesystem, *options):
    return Gateway(*UNLIMITED, *options, spool=filesystem.spool)


def fails(gateway):
    return gateway.metric("gatepost_spool_unavailable")


def readiness(gateway):
    try:
        with urllib.request.urlopen(gateway.metrics.replace("/metrics", "/readyz"), timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def shard_of(line):
    """The shard that a line on standard error is about."""
    found = re.search(r"/shard-(\d+)[:/]", line)
    return int(found[1]) if found else None


def said(gateway, what):
    """The shards that have said so."""
    return {shard_of(line) for line in gateway.errors if what in line} - {None}


@contextlib.contextmanager
def sessions_in_every_state(gateway, mail):
    """Sessions from before an outage; behind the `with` they are told of it, and go on in order."""
    with contextlib.ExitStack() as stack:
        idle, begun, in_data, in_chunks = (stack.enter_context(Session(gateway.address)) for _ in range(4))
        for session in (begun, in_data, in_chunks):
            assert session.begin().startswith("250 ")
        data, (number, chunks) = mail.write(4000), mail.write(700_000)
        in_data.expect("DATA", "354 ")
        in_data.send(data[1][:1000])
        in_chunks.send(b"BDAT 1000\r\n" + chunks[:1000])
        assert in_chunks.reply().startswith("250 ")
        mail.refused |= {data[0], number}
        yield
        idle.expect("NOOP", "250 ")
        assert idle.say(f"MAIL FROM:<{FROM}>") == SHORT
        idle.expect(f"RCPT TO:<{TO}>", "503 ")
        begun.expect("NOOP", "250 ")
        begun.expect(f"RCPT TO:<{TO}>", "250 ")
        assert not mail.finish(begun, *mail.write(1000))
        in_data.send(data[1][1000:] + b".\r\n")
        assert in_data.reply() == SHORT
        # Its file fails in the midst of it.
        in_chunks.send(b"BDAT %d LAST\r\n" % (len(chunks) - 1000) + chunks[1000:])
        assert in_chunks.reply() == SHORT
        for session in (begun, in_data, in_chunks):
            session.expect("RSET", "250 ")
            assert session.say(f"MAIL FROM:<{FROM}>") == SHORT
        for session in (idle, begun, in_data, in_chunks):
            session.expect("NOOP", "250 ")
            session.quit()


def assert_refuses(gateway, error=""):
    """It says that its storage fails, to clients, to balancers and to its operator."""
    until("all storage is found to fail", lambda: fails(gateway) == SHARDS)
    for _ in range(4):
        try:
            with Session(gateway.address):
                raise AssertionError("a connection was taken")
        except Refused:
            pass
    assert readiness(gateway) == (503, "not ready: storage fails\n")
    assert gateway.metric("gatepost_ready") == 0
    lines = [line for line in gateway.errors if "mail is refused with 452 until storage works again" in line]
    assert {shard_of(line) for line in lines} == set(range(SHARDS)), lines
    assert all(f"cannot write to {gateway.spool}/shard-" in line and error in line for line in lines[-SHARDS:]), lines


def until_it_serves(gateway, mail):
    """It finds out by itself, without mail, that storage works again."""
    until("storage is found to work", lambda: fails(gateway) == 0)
    assert said(gateway, "storage works again") == set(range(SHARDS)), gateway.errors
    assert readiness(gateway) == (200, "ready\n")
    for size in (1000, 100_000, 400_000):
        for in_chunks in (False, True):
            with Session(gateway.address) as session:
                assert mail.send(session, size, in_chunks)
                session.quit()


def some(mail, count):
    """Waits until so many more messages are acknowledged."""
    wanted = mail.at["250"] + count
    until(f"{wanted} are acknowledged", lambda: mail.wrong or mail.at["250"] >= wanted)


def refusals(mail, count):
    wanted = mail.refusals() + count
    until(f"{wanted} are refused", lambda: mail.wrong or mail.refusals() >= wanted)


def audited(filesystem, mail, sources=0):
    """Whether the spool holds what its clients were told, on storage that works, and also after a start."""
    filesystem.again()
    mail.audit(filesystem.spool, sources)
    with serving(filesystem) as gateway:
        until("it serves", lambda: readiness(gateway)[0] == 200)
        gateway.stop()
    others = mail.audit(filesystem.spool, sources)
    print(f"    {len(mail.accepted) + sources} acknowledged, 0 lost; {mail.at['connect']} connections, {mail.at['MAIL']} "
          f"MAIL and {mail.at['content']} contents refused, {others} of whose messages are there all the same")


# --- a disk with errors --------------------------------------------------------------------------


ENDS = itertools.cycle(["stop", "kill", "kill in the outage"])


def intermittent(filesystem_options, error, every, *what):
    """Mail while every `every`-th operation fails, and afterwards."""
    end, mail = next(ENDS), Mail()
    with FaultyDisk(*filesystem_options) as disk:
        with serving(disk) as gateway, Traffic(gateway, mail) as traffic:
            some(mail, 50)
            disk.fail(error, every, *what)
            wanted = disk.injected() + (30 if ALL else 6)
            until("enough has failed", lambda: mail.wrong or disk.injected() >= wanted)
            until("somebody is refused", lambda: mail.wrong or mail.refusals() > 0)
            if end == "kill in the outage":
                traffic.kill()
            else:
                disk.mend()
                until("storage is found to work", lambda: fails(gateway) == 0)
                some(mail, 100)
                if end == "kill":
                    traffic.kill()
                else:
                    traffic.stop()
                    gateway.stop()
        print(f"    {error} at every {every}. of {' and '.join(what)}: {disk.injected()} failures, then {end}")
        audited(disk, mail)


def at_every_interval(filesystem_options, *what):
    errors = ("EIO", "ENOSPC")
    for every, error in itertools.product(EVERY, errors) if ALL else zip(EVERY, errors):
        intermittent(filesystem_options, error, every, *what)


@case
def writes_fail_now_and_then():
    at_every_interval(NOT_JOURNALLED, "pwrite")


@case
def flushes_fail_now_and_then():
    at_every_interval(NOT_JOURNALLED, "flush")


@case
def both_fail_now_and_then():
    at_every_interval(NOT_JOURNALLED, "pwrite", "flush")


@case
def writes_of_mail_fail_on_a_journalled_filesystem():
    at_every_interval(JOURNALLED, "mail")


def outages(filesystem, error, breaks, mends, rounds=2):
    """Storage that fails for everybody, then works, and again; and at last a kill while it fails."""
    mail, sources = Mail(), 0
    with serving(filesystem) as gateway:
        for _ in range(rounds):
            with Traffic(gateway, mail):
                some(mail, 50)
            smtp_source(gateway, "-s", "4", "-m", "40", "-l", "3000")
            sources += 40
            with sessions_in_every_state(gateway, mail):
                with Traffic(gateway, mail):
                    breaks()
                    assert_refuses(gateway, error)
                    refusals(mail, 20)
            mends()
            until_it_serves(gateway, mail)
        with Traffic(gateway, mail) as traffic:
            some(mail, 50)
            breaks()
            refusals(mail, 20)
            traffic.kill()
    mends()
    audited(filesystem, mail, sources)


@case
def no_write_succeeds():
    with FaultyDisk(*NOT_JOURNALLED) as disk:
        outages(disk, "Input/output error", lambda: disk.fail("EIO", 1, "pwrite"), disk.mend)


@case
def no_flush_succeeds():
    with FaultyDisk(*NOT_JOURNALLED) as disk:
        outages(disk, "Input/output error", lambda: disk.fail("EIO", 1, "flush"), disk.mend)


@case
def the_disk_has_no_space():
    with FaultyDisk(*NOT_JOURNALLED) as disk:
        outages(disk, "No space left on device", lambda: disk.fail("ENOSPC", 1, "pwrite"), disk.mend)


@case
def a_filesystem_gives_up():
    """A journal that cannot be written is the end of writing until the filesystem is mounted anew."""
    for errors in ("continue", "remount-ro"):
        mail = Mail()
        with FaultyDisk(mount=f"errors={errors}") as disk:
            with serving(disk) as gateway:
                with Traffic(gateway, mail):
                    some(mail, 50)
                with sessions_in_every_state(gateway, mail), Traffic(gateway, mail):
                    disk.fail("EIO", 1, "pwrite", "flush")
                    until("the filesystem has given up", lambda disk=disk: not disk.is_writable())
                    disk.mend()
                    # Good blocks do not help it.
                    until("all storage is found to fail", lambda gateway=gateway: fails(gateway) == SHARDS)
                    refusals(mail, 50)
                    assert_refuses(gateway)
                gateway.kill()
            audited(disk, mail)


# --- one that is full, or may not be written -----------------------------------------------------


def fill(filesystem):
    """Takes all the space there is."""
    with (filesystem.mount / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"b" * 1024)


def free(filesystem):
    (filesystem.mount / "ballast").unlink()


@case
def a_full_filesystem():
    """Filled before there is a segment; mail fills what is left of it afterwards."""
    with Filesystem(SMALL_MB) as filesystem:
        mail = Mail([1000, 4000, 300_000])
        with serving(filesystem) as gateway:
            fill(filesystem)
            with sessions_in_every_state(gateway, mail), Traffic(gateway, mail):
                assert_refuses(gateway, "No space left on device")
                refusals(mail, 20)
            free(filesystem)
            until_it_serves(gateway, mail)
            (filesystem.mount / "ballast").write_bytes(b"b" * (4 << 20))
            with Session(gateway.address) as session, Traffic(gateway, mail):
                assert session.begin().startswith("250 ")
                refusals(mail, 100)
                # In the midst of its content at the latest.
                for in_chunks in (False, True):
                    until("no large message fits", lambda session=session: not mail.finish(session, *mail.write(900_000))
                          or session.begin() == SHORT)
                    session.expect("NOOP", "250 ")
                    session.expect("RSET", "250 ")
                    break
                session.quit()
            free(filesystem)
            until_it_serves(gateway, mail)
            with Traffic(gateway, mail) as traffic:
                refusals(mail, 100)
                traffic.kill()
        audited(filesystem, mail)


@case
def no_inodes():
    with Filesystem(SMALL_MB, "-N", "64") as filesystem:
        mail, taken = Mail([1000, 4000, 300_000]), filesystem.mount / "taken"
        taken.mkdir()

        def take():
            with contextlib.suppress(OSError):
                for number in itertools.count():
                    (taken / str(number)).touch()

        def give():
            for path in taken.iterdir():
                path.unlink()

        with serving(filesystem) as gateway:
            for _ in range(2):
                # At first there is no segment, then only large messages want for one.
                with sessions_in_every_state(gateway, mail) if not mail.accepted else contextlib.nullcontext():
                    take()
                    with Traffic(gateway, mail):
                        assert_refuses(gateway, "No space left on device")
                        refusals(mail, 20)
                give()
                until_it_serves(gateway, mail)
            take()
            with Traffic(gateway, mail) as traffic:
                refusals(mail, 20)
                traffic.kill()
        give()
        audited(filesystem, mail)


@case
def a_read_only_remount():
    """Files that are open stay so: that is a mount's affair, not theirs."""
    with Filesystem(64) as filesystem:
        mail, spool = Mail([1000, 4000, 300_000]), filesystem.spool
        with contextlib.ExitStack() as stack, serving(filesystem) as gateway:
            for _ in range(2):
                with sessions_in_every_state(gateway, mail) if not mail.accepted else contextlib.nullcontext():
                    run("mount", "--bind", spool, spool)
                    mounted = stack.enter_context(contextlib.ExitStack())
                    mounted.callback(filesystem.take_off, spool)
                    run("mount", "-o", "remount,bind,ro", spool)
                    with Traffic(gateway, mail):
                        assert_refuses(gateway, "Read-only file system")
                        refusals(mail, 20)
                mounted.close()
                until_it_serves(gateway, mail)
            with Traffic(gateway, mail) as traffic:
                some(mail, 50)
                traffic.kill()
        audited(filesystem, mail)


# --- out of descriptors --------------------------------------------------------------------------


@case
def no_descriptors():
    with Filesystem(64) as filesystem:
        mail = Mail([1000, 4000, 300_000])
        with serving(filesystem) as gateway, contextlib.ExitStack() as stack:
            with Traffic(gateway, mail):
                some(mail, 50)
            for _ in range(2):
                sessions = [stack.enter_context(Session(gateway.address)) for _ in range(8)]
                _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
                before = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (3, hard))
                # Its segments are open, a large message's file cannot be made.
                for session in sessions:
                    session.expect("NOOP", "250 ")
                    assert mail.send(session, 1000)
                    for in_chunks in (False, True):
                        assert not mail.send(session, 900_000, in_chunks)
                        session.expect("RSET", "250 ")
                    assert mail.send(session, 4000)
                with socket.create_connection(gateway.address, PATIENCE) as waiting:
                    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, before)
                    with waiting.makefile("rb") as replies:
                        assert replies.readline() == f"{BANNER}\r\n".encode()
                assert fails(gateway) == 0
                for session in sessions:
                    assert mail.send(session, 900_000)
                    session.quit()
            assert gateway.metric("gatepost_spool_failures_total") == 32
            gateway.kill()
        audited(filesystem, mail)


# --- with a next hop -----------------------------------------------------------------------------


@case
def outcomes_cannot_be_written():
    """Deliveries stop rather than be done again and again, and go on when what became of them can be written."""
    with FaultyDisk(*NOT_JOURNALLED) as disk:
        mail, hop = Mail([1000, 4000, 300_000]), Recorder("--fault=end=slow:1s")
        with hop:
            with serving(disk, f"--next-hop={hop.server}") as gateway:
                for _ in range(2):
                    with Traffic(gateway, mail):
                        some(mail, 80)
                        disk.fail("EIO", 1, "pwrite")
                        until("all storage is found to fail", lambda: fails(gateway) == SHARDS)
                    # What was on its way arrives.
                    time.sleep(2)
                    before = hop.count()
                    assert gateway.metric("gatepost_queue_messages") > 0, "there is nothing to be delivered"
                    time.sleep(3)
                    assert hop.count() == before, f"{hop.count() - before} were delivered though storage fails"
                    disk.mend()
                    delivered(gateway)
                    expected = list(mail.accepted.values())
                    check(hop.mails(), expected)
                print(f"    {len(expected)} delivered, each once")
                with Traffic(gateway, mail) as traffic:
                    some(mail, 40)
                    disk.fail("EIO", 1, "pwrite")
                    until("all storage is found to fail", lambda: fails(gateway) == SHARDS)
                    traffic.kill()
            disk.again()
            with serving(disk, f"--next-hop={hop.server}") as gateway:
                delivered(gateway)
                gateway.stop()
            arrived = collections.Counter(mail.content for mail in hop.mails())
            missing = [content for content in mail.accepted.values() if content not in arrived]
            assert not missing, f"{len(missing)} acknowledged and not delivered"
            assert arrived.keys() <= set(mail.sent.values()), "something arrived that nobody sent"
            twice = arrived.total() - len(arrived)
            assert max(arrived.values()) <= 2, arrived.most_common(3)
            print(f"    after a kill {len(mail.accepted)} delivered, {twice} of them twice")


# --- at the start --------------------------------------------------------------------------------


def assert_no_start(filesystem, code, *words):
    ended = subprocess.run(
        [GATEPOST, "serve", "--hostname=mx.test.example", "--accept-domain=test.example", "--listen=127.0.0.1:0",
         "--metrics-listen=none", "--min-free-disk=0", "--min-free-memory=0", "--spool", filesystem.spool],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        timeout=PATIENCE, check=False)
    print(f"    {ended.returncode}: {ended.stderr.strip()}")
    assert ended.returncode == code, ended
    line, = ended.stderr.splitlines()
    assert str(filesystem.spool) in line and all(word in line for word in words), line


@case
def a_start_without_storage():
    """It says what is wrong and what to do, and never begins to serve."""
    with Filesystem(SMALL_MB) as filesystem:
        filesystem.remount("ro")
        assert_no_start(filesystem, 77, "Read-only file system", "remount it writable or choose another --spool")
        filesystem.remount("rw")
        fill(filesystem)
        assert_no_start(filesystem, 74, "No space left on device", "free some space or choose another --spool")
        free(filesystem)
        mail = Mail([1000])
        with serving(filesystem) as gateway, Traffic(gateway, mail):
            some(mail, 20)
        filesystem.remount("ro")
        assert_no_start(filesystem, 77, "Read-only file system", "remount it writable or choose another --spool")
        filesystem.remount("rw")
        audited(filesystem, mail)
    with FaultyDisk(*NOT_JOURNALLED) as disk:
        disk.fail("EIO", 1, "pwrite", "flush")
        assert_no_start(disk, 74, "Input/output error")


if __name__ == "__main__":
    sys.exit(main())
