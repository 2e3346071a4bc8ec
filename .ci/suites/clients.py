#!/usr/bin/env python3
"""Foreign clients, thousands of sessions and a full disk against the release binary.

usage: clients.py GATEPOST DIRECTORY

Needs swaks, curl, msmtp, smtp-source (Postfix), Exim (GATEPOST_EXIM says where) and, for it and the
full disk, the right to mount. Works in
DIRECTORY alone, on 127.0.0.0/8 and ::1, on ports that the kernel chooses. Every wait is bounded;
nothing depends on how fast anything is. Ends with one line, `N passed, N failed`, and exits 1 when
something failed. A client that is missing is a failure, not a reason to skip.
"""

import contextlib
import os
import re
import smtplib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from exim import Exim
from harness import FROM, PATIENCE, SCRATCH, TO, Gateway, case, main, only, queue, run, same, shapes, smtp_source, until

BANNER = b"220 mx.test.example ESMTP Gatepost ready\r\n"
TOTAL = (b"421 4.3.2 The maximum number of concurrent server connections has exceeded a limit,"
         b" closing transmission channel\r\n")
SHORT = "452 4.3.1 Insufficient system resources"


# --- clients -------------------------------------------------------------------------------------
#
# All of them meet the gateway as it is shipped.


@case
def swaks_sends_every_shape():
    for name, content in shapes():
        with Gateway(as_shipped=True) as gateway:
            path = SCRATCH / "swaks.eml"
            # swaks reads Unix files, and takes a dot at their end for the end of data.
            content += b"end\r\n"
            path.write_bytes(content.replace(b"\r\n", b"\n"))
            run("swaks", "--server", gateway.server, "--from", FROM, "--to", f"{TO},other@test.example",
                "--helo", "swaks.example", "--data", f"@{path}", "--suppress-data")
            envelope, field, got = only(gateway.spool)
            assert envelope == f"from=<{FROM}> to=<{TO}>,<other@test.example>", envelope
            assert field.startswith(b"Received: from swaks.example ([127.0.0.1])\r\n"), field
            # It ends every message with an empty line of its own.
            same(got.rstrip(b"\r\n"), content.rstrip(b"\r\n"))
            assert got.count(b"\n") == got.count(b"\r\n") and b"\r\r" not in got, name


@case
def swaks_pipelines_and_is_refused():
    with Gateway(as_shipped=True) as gateway:
        for options in (["--pipeline"], ["--protocol", "SMTP"], ["--protocol", "ESMTP"], ["--local-interface", "127.9.9.9"]):
            run("swaks", "--server", gateway.server, "--from", FROM, "--to", TO, *options)
        assert len(queue(gateway.spool)) == 4
        # 24: no recipient accepted.
        output = run("swaks", "--server", gateway.server, "--from", FROM, "--to", "a@elsewhere.example", code=24)
        assert b"550 5.7.1 Unable to relay" in output, output
        assert len(queue(gateway.spool)) == 4


@case
def curl_sends_every_shape():
    for _, content in shapes():
        with Gateway(as_shipped=True) as gateway:
            path = SCRATCH / "curl.eml"
            path.write_bytes(content)
            run("curl", "--silent", "--show-error", f"smtp://{gateway.server}/curl.example", "--mail-from", FROM,
                "--mail-rcpt", TO, "--mail-rcpt", "other@test.example", "--upload-file", path)
            envelope, field, got = only(gateway.spool)
            assert envelope == f"from=<{FROM}> to=<{TO}>,<other@test.example>", envelope
            assert b"from curl.example ([127.0.0.1])" in field, field
            same(got, content)


@case
def curl_is_told_why_it_is_refused():
    with Gateway(as_shipped=True) as gateway:
        path = SCRATCH / "large.eml"
        path.write_bytes(b"Subject: x\r\n\r\n" + (b"x" * 78 + b"\r\n") * ((11 << 20) // 80))
        url = f"smtp://{gateway.server}"
        # 55: failed sending; 56: failed receiving; curl says SIZE= at MAIL.
        run("curl", "--silent", url, "--mail-from", FROM, "--mail-rcpt", TO, "--upload-file", path, code=55)
        run("curl", "--silent", url, "--mail-from", FROM, "--mail-rcpt", "a@elsewhere.example", "--upload-file", path, code=55)
        assert not queue(gateway.spool)
        # VRFY.
        assert b"252 2.1.5 Cannot VRFY user" in run("curl", "--silent", url, "--mail-rcpt", "someone")


@case
def smtplib_sends_every_shape_in_one_session():
    with Gateway(as_shipped=True) as gateway:
        expected = {}
        with smtplib.SMTP(*gateway.address, local_hostname="smtplib.example", timeout=PATIENCE) as client:
            client.ehlo()
            assert client.esmtp_features["size"] == str(10 << 20), client.esmtp_features
            assert "enhancedstatuscodes" in client.esmtp_features
            for name, content in shapes():
                assert client.mail(FROM)[0] == 250
                assert client.rcpt(TO) == (250, b"2.1.5 Recipient OK")
                code, text = client.data(content)
                assert code == 250, (name, code, text)
                expected[text.split()[1].decode()] = content
            # With SIZE= and options, as its sendmail() sends.
            assert client.sendmail(FROM, [TO, "bad@elsewhere.example"], b"Subject: x\r\n\r\nx\r\n").keys() == {"bad@elsewhere.example"}
            try:
                client.sendmail(FROM, [TO], b"x" * (11 << 20))
                raise AssertionError("more than the limit was taken")
            except smtplib.SMTPSenderRefused as refused:
                assert (refused.smtp_code, refused.smtp_error) == (552, b"5.3.4 Message size exceeds fixed maximum message size")
        messages = queue(gateway.spool)
        assert len(messages) == len(expected) + 1
        for identifier, content in expected.items():
            same(messages[identifier][2], content)


@case
def smtp_source_in_every_mode():
    modes = [
        (["-m", "50"], 50),
        (["-m", "300", "-s", "20"], 300),
        (["-m", "300", "-s", "20", "-d"], 300),
        (["-m", "100", "-s", "10", "-d", "-c"], 100),
        (["-m", "60", "-s", "5", "-r", "7", "-d"], 60),
        (["-m", "60", "-s", "5", "-r", "3", "-N"], 60),
        (["-m", "60", "-s", "5", "-A", "-S", "a subject"], 60),
        (["-m", "40", "-s", "20", "-R", "1"], 40),
        (["-m", "20", "-s", "20", "-w", "1"], 20),
        (["-m", "40", "-s", "4", "-T", "1024", "-l", "20000"], 40),
        (["-m", "60", "-s", "4", "-l", "1"], 60),
        (["-m", "40", "-s", "10", "-l", "100000", "-d"], 40),
        (["-m", "40", "-s", "10", "-l", "300000", "-d"], 40),
        (["-m", "12", "-s", "4", "-l", "2000000"], 12),
        (["-4", "-m", "20", "-C", "3"], 20),
    ]
    for options, count in modes:
        with Gateway(as_shipped=True) as gateway:
            smtp_source(gateway, *options)
            messages = queue(gateway.spool)
            assert len(messages) == count, f"{options}: {len(messages)} of {count}"
            recipients = int(options[options.index("-r") + 1]) if "-r" in options else 1
            length = int(options[options.index("-l") + 1]) if "-l" in options else None
            for envelope, field, content in messages.values():
                assert envelope.startswith(f"from=<{FROM}> to=<") and envelope.count("@test.example>") == recipients, envelope
                assert b"from source.example ([127.0.0.1])" in field, field
                header, body = content.split(b"\r\n\r\n", 1)
                assert header.startswith(b"From: <sender@client.example>\r\n"), header
                if length is not None:
                    # Lines of X that begin with their number; the line ends count.
                    assert len(body) in range(length, length + 3) and set(body) <= set(b"X0123456789 \r\n"), (options, len(body))
                assert "-S" not in options or b"\r\nSubject: a subject" in header


@case
def smtp_source_sends_a_file():
    content = b"".join(b"%s\n" % line for line in (b"Subject: file", b"", b".", b"..", b".x", b"text", b"", b"y" * 5000)) * 40
    path = SCRATCH / "source.eml"
    path.write_bytes(content)
    with Gateway(as_shipped=True) as gateway:
        smtp_source(gateway, "-m", "100", "-s", "10", "-d", "-F", path)
        messages = queue(gateway.spool)
        assert len(messages) == 100
        for _, _, got in messages.values():
            # It ends every file with an empty line of its own.
            same(got, content.replace(b"\n", b"\r\n") + b"\r\n")


@case
def smtp_source_over_ipv6():
    with Gateway("--listen=[::]:0", as_shipped=True) as gateway:
        run("smtp-source", "-6", "-m", "20", "-s", "4", "-f", FROM, "-t", TO, f"inet:[::1]:{gateway.address[1]}")
        run("smtp-source", "-4", "-m", "20", "-s", "4", "-f", FROM, "-t", TO, f"inet:127.0.0.1:{gateway.address[1]}")
        fields = [field for _, field, _ in queue(gateway.spool).values()]
        assert sum(b"([IPv6:::1])" in field for field in fields) == 20
        assert sum(b"([127.0.0.1])" in field for field in fields) == 20


@case
def smtp_source_without_hello_is_refused():
    with Gateway(as_shipped=True) as gateway:
        run("smtp-source", "-o", "-m", "1", "-f", FROM, "-t", TO, f"inet:{gateway.server}", code=1)
        assert not queue(gateway.spool)


@case
def msmtp_sends_every_shape():
    with Gateway(as_shipped=True) as gateway:
        host, port = gateway.address
        expected = []
        for _, content in shapes():
            run("msmtp", f"--host={host}", f"--port={port}", "--domain=msmtp.example", f"--from={FROM}",
                "--add-missing-from-header=off", "--add-missing-date-header=off", "--set-msgid-header=off", TO, "other@test.example",
                input=content.replace(b"\r\n", b"\n"))
            expected.append(content)
        messages = sorted(queue(gateway.spool).items())
        assert len(messages) == len(expected)
        for content in expected:
            assert any(got == content for _, (_, _, got) in messages), content[:100]
        for _, (envelope, field, _) in messages:
            assert envelope == f"from=<{FROM}> to=<{TO}>,<other@test.example>", envelope
            assert b"from msmtp.example ([127.0.0.1])" in field, field
        # 65: no recipient accepted.
        run("msmtp", f"--host={host}", f"--port={port}", f"--from={FROM}", "bad@elsewhere.example",
            input=b"Subject: x\n\nx\n", code=65)


class EximClient(Exim):
    """One that sends to the gateway, and nowhere else."""

    def __init__(self, gateway, name):
        host, port = gateway.address
        super().__init__(name, f"""
begin routers
gateway:
  driver = manualroute
  route_list = * {host}::{port}
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  message_linelength_limit = 1G
""")

    def send(self, content, *recipients, when="-odf"):
        self.run("-oi", when, "-f", FROM, *recipients, message=content.replace(b"\r\n", b"\n"))


def exim_sends_every_shape(gateway, name):
    """Each message on a connection, then all on as few as it likes; the flags it logged of each."""
    exim = EximClient(gateway, name)
    contents = [content for _, content in shapes()]
    for content in contents:
        exim.send(content, TO, "other@test.example")
    for content in contents:
        exim.send(content, TO, "other@test.example", when="-odq")
    exim.run("-qq")
    delivered = re.findall(r' => \S+ R=gateway T=smtp H=\S+ \[127.0.0.1\](.*) C="250 2.6.0 (\w+) Queued', exim.log().replace("<" + TO + ">", ""))
    assert len(delivered) == 2 * len(contents), exim.log()
    messages = queue(gateway.spool)
    assert messages.keys() == {identifier for _, identifier in delivered}
    found = []
    for envelope, field, got in messages.values():
        assert envelope == f"from=<{FROM}> to=<{TO}>,<other@test.example>", envelope
        assert b"from exim.example ([127.0.0.1])" in field, field
        header, body = got.split(b"\r\n\r\n", 1)
        assert b"\r\nSubject: shapes\r\n" in header + b"\r\n"
        found.append(body)
    assert sorted(found) == sorted(2 * [content.split(b"\r\n\r\n", 1)[1] for content in contents]), "a message was altered"
    return [flags.split() for flags, _ in delivered]


@case
def exim_sends_in_chunks():
    with Gateway(as_shipped=True) as gateway:
        for flags in exim_sends_every_shape(gateway, "exim-chunks"):
            assert "K" in flags, flags


@case
def exim_sends_without_chunks():
    with Gateway("--disable-extension=CHUNKING", as_shipped=True) as gateway:
        for flags in exim_sends_every_shape(gateway, "exim-data"):
            assert "K" not in flags, flags


@case
def exim_is_refused_some_and_all_recipients():
    content = b"Subject: x\r\n\r\n" + b"x\r\n" * 10_000
    for option in ((), ("--tarpit=500ms", "--disable-extension=CHUNKING"), ("--tarpit=500ms", "--disable-extension=PIPELINING")):
        with Gateway(*option, as_shipped=True) as gateway:
            exim = EximClient(gateway, f"exim-refused-{Gateway.started}")
            # As if from a mailer: no report of what is refused.
            exim.run("-oi", "-odf", "-f", "<>", TO, "bad@elsewhere.example", message=content.replace(b"\r\n", b"\n"))
            exim.run("-oi", "-odf", "-f", "<>", "worse@elsewhere.example", message=content.replace(b"\r\n", b"\n"))
            log = exim.log()
            assert re.search(rf" => {TO} .*250 2.6.0 ", log), log
            for refused in ("bad", "worse"):
                assert re.search(rf" \*\* {refused}@elsewhere.example .*550 5.7.1 Unable to relay", log), log
            envelope, _, got = only(gateway.spool)
            assert envelope == f"from=<> to=<{TO}>", envelope
            assert got.endswith(content.split(b"\r\n", 1)[1])


# --- many sessions -------------------------------------------------------------------------------


def lines(connection, count):
    """Reads this many lines, CRLF and all."""
    octets = b""
    while octets.count(b"\n") < count:
        piece = connection.recv(4096)
        assert piece, f"the end after {octets!r}"
        octets += piece
    return octets


def to_the_end(connection):
    octets = b""
    while piece := connection.recv(4096):
        octets += piece
    return octets


@case
def five_thousand_sessions_and_not_one_more():
    def source(number):
        return f"127.{10 + number // 10_000}.{number // 100 % 100}.{1 + number % 100}"

    with Gateway() as gateway, contextlib.ExitStack() as stack:
        before = gateway.resident()
        sessions = [stack.enter_context(gateway.connect(source(number))) for number in range(5000)]
        for session in sessions:
            assert lines(session, 1) == BANNER
        for session in sessions:
            session.sendall(b"EHLO many.example\r\n")
        for session in sessions:
            reply = b""
            while not re.search(rb"^250 [^\r\n]*\r\n", reply, re.MULTILINE):
                reply += lines(session, 1)
        print(f"    {(gateway.resident() - before) / 5000:.0f} octets of memory per session")
        for number in range(5000, 5020):
            with gateway.connect(source(number)) as refused:
                same(to_the_end(refused), TOTAL)
        assert gateway.metric("gatepost_connections") == 5000
        # All of them are served, all at the same time.
        for session in sessions:
            session.sendall(b"MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (FROM.encode(), TO.encode()))
        for session in sessions:
            assert lines(session, 3).endswith(b"354 Start mail input; end with <CRLF>.<CRLF>\r\n")
        for number, session in enumerate(sessions):
            session.sendall(b"Subject: %d\r\n\r\n..%s\r\n.\r\n" % (number, b"x" * (number % 3000)))
        expected = {}
        for number, session in enumerate(sessions):
            reply = lines(session, 1).decode()
            assert reply.startswith("250 2.6.0 "), reply
            expected[reply.split()[2]] = b"Subject: %d\r\n\r\n.%s\r\n" % (number, b"x" * (number % 3000))
        messages = queue(gateway.spool)
        assert messages.keys() == expected.keys(), f"{len(messages)} messages"
        for number, (identifier, content) in enumerate(expected.items()):
            same(messages[identifier][2], content)
            assert b"([%s])" % source(number).encode() in messages[identifier][1]
        # A place that becomes free is given again.
        sessions[7].sendall(b"QUIT\r\n")
        assert to_the_end(sessions[7]) == b"221 2.0.0 Service closing transmission channel\r\n"

        def served():
            with gateway.connect(source(6000)) as session:
                return lines(session, 1) == BANNER
        until("a place", served)
        stack.close()
        gateway.until_empty()
        assert gateway.stop() == ""


@case
def ten_thousand_sessions_leave_nothing():
    states = [b"", b"EHLO x\r\n", b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n", b"NO",
              b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<rcpt@test.example>\r\nDATA\r\nabc\r\n"]
    failures = []

    def by_quit(session, in_data):
        session.sendall(b"\r\n.\r\nQUIT\r\n" if in_data else b"\r\nQUIT\r\n")
        assert to_the_end(session).endswith(b"221 2.0.0 Service closing transmission channel\r\n")

    def by_reset(session, _):
        session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def by_half_close(session, _):
        session.shutdown(socket.SHUT_WR)
        to_the_end(session)

    def by_end(session, _):
        lines(session, 1)

    def some(gateway, thread):
        endings = [by_quit, by_reset, by_half_close, by_end]
        try:
            for number in range(2500):
                state = states[number % 5]
                with gateway.connect(f"127.20.{thread}.{1 + number % 200}") as session:
                    session.sendall(state)
                    endings[(number // 5) % 4](session, b"DATA" in state)
        except Exception:  # pylint: disable=broad-except
            failures.append(traceback.format_exc())

    with Gateway("--message-rate=0", "--max-protocol-errors=0") as gateway:
        # Rings and segments are opened by the first sessions and messages.
        for _ in range(50):
            with smtplib.SMTP(*gateway.address, timeout=PATIENCE) as client:
                client.sendmail(FROM, TO, b"x\r\n")
        gateway.until_empty()
        descriptors = len(os.listdir(f"/proc/{gateway.process.pid}/fd"))
        threads = [threading.Thread(target=some, args=(gateway, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        gateway.until_empty()
        served = gateway.metric("gatepost_connections_accepted_total")
        assert served >= 10_000 - gateway.metric("gatepost_connections_refused_total"), served
        assert gateway.metric("gatepost_session_panics_total") == 0
        # A shard has one more while it sleeps, and may have prepared its next segment.
        until("descriptors are given back",
              lambda: len(os.listdir(f"/proc/{gateway.process.pid}/fd")) <= descriptors + 4)
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(gateway.connect("127.20.0.1")) for _ in range(20)]
            for session in sessions:
                assert lines(session, 1) == BANNER
        assert gateway.stop() == ""


# --- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_filesystem(kind):
    """A filesystem of 40 MB."""
    directory = Path(tempfile.mkdtemp(prefix=kind, dir=SCRATCH))
    if kind == "ext4":
        image = SCRATCH / "image"
        with image.open("wb") as file:
            file.truncate(40 << 20)
        run("mkfs.ext4", "-q", "-m", "0", image)
        run("mount", "-o", "loop", image, directory)
    else:
        run("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", directory)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=False, stdin=subprocess.DEVNULL)


class Sender:
    """Sends numbered messages and knows what was acknowledged."""

    def __init__(self, spool):
        self.spool = spool
        self.accepted = {}
        self.number = 0

    def send(self, session, octets):
        """Sends one message: the reply that decided."""
        self.number += 1
        content = b"Subject: %d\r\n\r\n" % self.number + b"%07d\r\n" % self.number * (octets // 9)
        code, text = session.mail(FROM)
        if code == 250:
            code, text = session.rcpt(TO)
            assert code == 250, text
            code, text = session.data(content)
        reply = f"{code} {text.decode()}"
        assert code == 250 or reply == SHORT, reply
        if code == 250:
            self.accepted[text.split()[1].decode()] = content
        return code == 250

    def fill(self, session):
        """Sends until nothing fits any more, of no size; how many were refused."""
        refused = 0
        for octets in (400_000, 100_000, 10_000, 1000):
            row = 0
            for _ in range(3000):
                if self.send(session, octets):
                    row = 0
                    continue
                row += 1
                refused += 1
                if row == 10:
                    break
                # After a failure nothing is taken for a second: that says nothing of the space.
                time.sleep(0.25)
            assert row == 10, f"messages of {octets} octets still fit: it is not full"
        return refused

    def check(self):
        """Whether all that was acknowledged is there; what else is."""
        messages = queue(self.spool)
        missing = self.accepted.keys() - messages.keys()
        assert not missing, f"acknowledged and lost: {missing}"
        for identifier, content in self.accepted.items():
            same(messages[identifier][2], content)
        return messages.keys() - self.accepted.keys()


def full_disk(directory):
    ballasts = [directory / "ballast-1", directory / "ballast-2"]
    for ballast in ballasts:
        ballast.write_bytes(b"b" * (10 << 20))
    spool = directory / "spool"
    sender = Sender(spool)
    options = ["--shards=1", "--message-rate=0", "--max-connections-per-source=0"]
    gateway = Gateway(*options, spool=spool)
    with gateway, smtplib.SMTP(*gateway.address, timeout=PATIENCE) as session:
        session.ehlo()
        refused = sender.fill(session)
        assert gateway.metric("gatepost_spool_failures_total") > 0
        assert any("cannot write" in line and "452" in line for line in gateway.errors), gateway.errors
        print(f"    {len(sender.accepted)} messages accepted, then {refused} refused")
        sender.check()
        # It tries again each second, and must not leave a file each time.
        empty = [path for path in spool.glob("shard-*/segment-*") if path.stat().st_size == 0]
        assert len(empty) <= 3, f"{len(empty)} empty segments"
        # Space again: mail of all sizes is taken.
        ballasts[0].unlink()
        for octets in (1000, 100_000, 400_000):
            until(f"service resumes for {octets} octets", lambda octets=octets: sender.send(session, octets))
        assert any("works again" in line for line in gateway.errors), gateway.errors
        sender.check()
        # Full again, and killed so.
        sender.fill(session)
        gateway.kill()
    sender.check()
    # The next start copes with a full disk, and serves once there is space.
    gateway = Gateway(*options, spool=spool)
    with gateway, smtplib.SMTP(*gateway.address, timeout=PATIENCE) as session:
        session.ehlo()
        sender.fill(session)
        sender.check()
        ballasts[1].unlink()
        for octets in (1000, 100_000, 400_000):
            until(f"service resumes for {octets} octets", lambda octets=octets: sender.send(session, octets))
        sender.check()
        session.quit()
        gateway.stop()
    # Batches that failed may have been written whole: their messages are there though their
    # senders were told to come again. None of them may be a part of a message.
    extra = sender.check()
    print(f"    {len(sender.accepted)} messages acknowledged, 0 lost; {len(extra)} more are in the queue")


@case
def a_full_disk_ext4():
    with small_filesystem("ext4") as directory:
        full_disk(directory)


@case
def a_full_disk_tmpfs():
    with small_filesystem("tmpfs") as directory:
        full_disk(directory)


@case
def below_the_watermark_of_free_space():
    with small_filesystem("tmpfs") as directory:
        ballast = directory / "ballast"
        with Gateway("--shards=1", "--min-free-disk=2MB", spool=directory / "spool") as gateway, \
                smtplib.SMTP(*gateway.address, timeout=PATIENCE) as session:
            session.ehlo()
            sender = Sender(gateway.spool)
            assert sender.send(session, 1000)
            for _ in range(2):
                space = os.statvfs(directory)
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (1 << 20))
                until("it is short", lambda: gateway.metric("gatepost_resources_short") == 1)
                # There is room for this message: it is the watermark that refuses it.
                assert not sender.send(session, 1000)
                with gateway.connect() as connection:
                    assert lines(connection, 1) == SHORT.encode() + b"\r\n"
                    assert connection.recv(1) == b""
                ballast.unlink()
                until("there is room", lambda: gateway.metric("gatepost_resources_short") == 0)
                assert sender.send(session, 1000)
                with gateway.connect() as connection:
                    assert lines(connection, 1) == BANNER
            session.quit()
            sender.check()
            said = gateway.stop().splitlines()
            begin = f"gatepost: free space on {gateway.spool.resolve()} is "
            assert len(said) == 4 and all(line.startswith(begin) for line in said), said
            assert all(", below --min-free-disk 2MB: mail is refused with 452" in line for line in said[::2]), said
            assert all(", no longer below --min-free-disk 2MB" in line for line in said[1::2]), said


if __name__ == "__main__":
    sys.exit(main())
