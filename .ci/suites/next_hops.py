"""Next hops that are not ours, each on a port of its own with files of its own, and what arrived there."""

import collections
import grp
import os
import pwd
import re
import socket
import subprocess
from pathlib import Path

from harness import GATEPOST, PATIENCE, SCRATCH, connections, run, same, until

# Postfix reads its configuration as a user of its own.
os.umask(0o022)
LOAD = Path(GATEPOST).with_name("gatepost-load")
# So that no limit of the gateway's and no wait before another attempt is met.
UNLIMITED = ["--message-rate=0", "--max-connections-per-source=0", "--retry-min=1s", "--retry-max=1s"]
ADDED = re.compile(rb"Received: from [^\r\n]*\r\n\tby mx\.test\.example \(Gatepost\) with E?SMTP id ([0-9A-Za-z]+);\r\n"
                   rb"\t[^\r\n]*\r\n")


class Mail:
    """A message as a next hop got it; `sender` and `recipients` are all that was behind the verb."""

    def __init__(self, sender, recipients, octets):
        self.sender, self.recipients = sender, recipients
        field = ADDED.match(octets)
        assert field, f"no Received field of ours: {octets[:300]!r}"
        self.identifier, self.field, self.content = field[1].decode(), field[0], octets[field.end():]


def reserve(host):
    """A socket with a port that is ours until the end, also while the server it is for is away.

    It never listens, so that connections are refused then; and a server may be bound beside it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


class NextHop:
    """A server that can be stopped, and started again where it was."""

    host = "127.0.0.5"
    number = 0

    def __init__(self):
        NextHop.number += 1
        self.reserved = reserve(self.host)
        self.port = self.reserved.getsockname()[1]
        self.directory = SCRATCH / f"{type(self).__name__}-{NextHop.number}"
        self.directory.mkdir()
        self.process = None

    @property
    def server(self):
        return f"{self.host}:{self.port}"

    def command(self):
        raise NotImplementedError

    def start(self):
        log = (self.directory / "log").open("ab")
        with log:
            self.process = subprocess.Popen([str(word) for word in self.command()], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        try:
            until(f"{self.server} answers", self.answers)
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def answers(self):
        assert self.process.poll() is None, f"it ended: {(self.directory / 'log').read_text()}"
        try:
            with socket.create_connection((self.host, self.port), PATIENCE) as session:
                return session.recv(100).startswith(b"220")
        except OSError:
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process = None

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, failure=None, *_):
        if failure:
            self.tell()
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def tell(self):
        """Prints what may explain a failure."""
        state = f"exit code {self.process.poll()}" if self.process else "stopped"
        print(f"--- {type(self).__name__} on {self.server}: {state}")
        log = self.directory / "log"
        print("".join(log.open(errors="replace").readlines()[-30:]) if log.exists() else "no log")
        if self.process and self.process.poll() is None:
            for line in connections(self.process.pid):
                print(line)
        print(flush=True)


class SmtpSink(NextHop):
    """Postfix' smtp-sink. Its files have LF for CRLF, and no other CR."""

    def __init__(self, *options):
        super().__init__()
        self.options = options

    def command(self):
        return ["smtp-sink", *self.options, "-u", "root", "-d", self.directory / "mail" / "m", self.server, "1000"]

    def mails(self):
        if self.process:
            # It does one thing after the other: all that it has answered is in its files.
            assert self.answers()
        found = []
        for path in sorted((self.directory / "mail").glob("m*")):
            head, rest = re.split(rb"^Received: .*\n\t.*\n\t.*\n", path.read_bytes(), maxsplit=1, flags=re.MULTILINE)
            sender, = re.findall(r"^X-Mail-Args: (.*)$", head.decode(), re.MULTILINE)
            recipients = re.findall(r"^X-Rcpt-Args: (.*)$", head.decode(), re.MULTILINE)
            assert rest.endswith(b"\n"), f"{path}: it was written in part"
            found.append(Mail(sender, recipients, rest[:-1].replace(b"\n", b"\r\n")))
        return found


class Recorder(NextHop):
    """`gatepost-load sink`."""

    def __init__(self, *options):
        super().__init__()
        self.options = options

    def command(self):
        return [LOAD, "sink", "--listen", self.server, "--dump", self.directory / "mail", *self.options]

    def count(self):
        return sum(name.endswith(".eml") for name in os.listdir(self.directory / "mail"))

    def mails(self):
        found = []
        for path in sorted((self.directory / "mail").glob("*.eml")):
            lines = path.with_suffix(".envelope").read_text().splitlines()
            sender, = [line[len("MAIL FROM:"):] for line in lines if line.startswith("MAIL FROM:")]
            recipients = [line[len("RCPT TO:"):] for line in lines if line.startswith("RCPT TO:")]
            found.append(Mail(sender, recipients, path.read_bytes()))
            found[-1].verb = lines[-1]
        return found


class Postfix(NextHop):
    """A Postfix that puts all mail into one maildir, and keeps that of held.example in its queue.

    It takes mail on two ports: with CHUNKING, and without.
    """

    def __init__(self, *settings):
        super().__init__()
        self.plain_reserved = reserve(self.host)
        self.plain_port = self.plain_reserved.getsockname()[1]
        self.config = self.directory / "etc"
        user = pwd.getpwnam("postfix")
        for name in ("etc", "data", "queue", "mail", "logs"):
            (self.directory / name).mkdir()
            if name in ("data", "mail", "logs"):
                os.chown(self.directory / name, user.pw_uid, user.pw_gid)
        self.log = self.directory / "logs" / "log"
        (self.config / "main.cf").write_text(f"""
compatibility_level = 3.6
config_directory = {self.config}
queue_directory = {self.directory}/queue
data_directory = {self.directory}/data
maillog_file = {self.log}
maillog_file_prefixes = {self.directory}
mail_owner = postfix
setgid_group = {grp.getgrnam("postdrop").gr_name}
myhostname = postfix.example
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
alias_database =
virtual_mailbox_domains = static:all
virtual_mailbox_maps = static:all/
virtual_mailbox_base = {self.directory}/mail
virtual_uid_maps = static:{user.pw_uid}
virtual_gid_maps = static:{user.pw_gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
mailbox_size_limit = 0
message_size_limit = 0
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_recipient_access inline:{{held.example=HOLD}}, permit_mynetworks, reject
smtpd_peername_lookup = no
local_header_rewrite_clients =
notify_classes =
in_flow_delay = 0
queue_minfree = 0
""" + "".join(f"{setting}\n" for setting in settings))
        (self.config / "master.cf").write_text(f"""
{self.server} inet n - n - - smtpd
{self.plain_server} inet n - n - - smtpd -o smtpd_discard_ehlo_keywords=chunking
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
tlsmgr unix - - n 1000 1 tlsmgr
""")
        # Makes the directories of the queue. Its complaints go to a terminal, or into that log.
        checked = run("postfix", "-c", self.config, "check", code=None)
        assert (self.directory / "queue" / "active").is_dir(), f"postfix check: {checked} {self.log_text()}"

    def log_text(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def plain_server(self):
        return f"{self.host}:{self.plain_port}"

    def command(self):
        programs = run("postconf", "-c", self.config, "-h", "daemon_directory").decode().strip()
        return [f"{programs}/master", "-c", self.config, "-d"]

    def waiting(self):
        """Files in its queue; those that are held are not counted."""
        return sum(len(files) for name in ("incoming", "active", "deferred", "maildrop")
                   for _, _, files in os.walk(self.directory / "queue" / name))

    def mails(self):
        until(f"Postfix has delivered everything, see {self.log}", lambda: self.waiting() == 0)
        found = []
        for path in sorted((self.directory / "mail" / "all" / "new").iterdir()):
            octets = path.read_bytes()
            sender = re.match(rb"Return-Path: (.*)\n", octets)[1].decode()
            recipient = re.search(rb"^Delivered-To: (.*)\n", octets, re.MULTILINE)[1].decode()
            own = re.search(rb"^Received: from mx\.test\.example .*\n(?:[ \t].*\n)*", octets, re.MULTILINE)
            found.append(Mail(sender, [f"<{recipient}>"], octets[own.end():].replace(b"\n", b"\r\n")))
        return found

    def held(self):
        """The envelopes of the messages that are held, as postcat prints them."""
        paths = sorted((self.directory / "queue" / "hold").iterdir())
        return [run("postcat", "-c", self.config, "-e", path).decode() for path in paths]


def delivered(gateway):
    """Waits until the gateway's queue is empty. However slow that is, something must leave it now and then."""
    left = gateway.metric("gatepost_queue_messages")
    while left > 0:
        fewer = lambda left=left: gateway.metric("gatepost_queue_messages") < left
        until(f"of {left:.0f} messages in the queue one is delivered", fewer)
        left = gateway.metric("gatepost_queue_messages")


def check(mails, expected):
    """Whether these contents, and no others, have arrived, each of them once."""
    identifiers = collections.Counter(mail.identifier for mail in mails)
    twice = [identifier for identifier, times in identifiers.items() if times > 1]
    assert not twice, f"{len(twice)} messages arrived more than once: {twice[:5]}"
    got, wanted = collections.Counter(mail.content for mail in mails), collections.Counter(expected)
    missing, others = list((wanted - got).elements()), list((got - wanted).elements())
    if missing or others:
        print(f"    {len(missing)} are missing, {len(others)} others are there")
        for content in missing:
            label = content.split(b"\r\n")[0]
            for other in others:
                if other.split(b"\r\n")[0] == label:
                    print(f"    {label}")
                    same(other, content)
        raise AssertionError(f"missing: {[content[:60] for content in missing[:5]]}, "
                             f"others: {[content[:60] for content in others[:5]]}")
