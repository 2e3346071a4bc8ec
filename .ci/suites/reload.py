#!/usr/bin/env python3
"""Configurations that come and go under load: nobody's session is touched, and no mail is lost.

usage: reload.py GATEPOST DIRECTORY [CASE...]

Sessions of our own and smtp-source send without a pause, while the configuration is loaded again
GATEPOST_RELOADS times (20), by SIGHUP and by command, with other options each time, and broken ones
between them. A session knows by the SIZE that it was told which configuration it began under, and goes
by that to its end. Works in DIRECTORY alone, on 127.0.0.0/8. Every wait is bounded; nothing depends on
how fast anything is. Ends with one line, `N passed, N failed`, and exits 1 when something failed.
"""

import contextlib
import os
import re
import signal
import smtplib
import sys
import threading

from harness import FROM, GATEPOST, PATIENCE, SCRATCH, TO, Gateway, case, main, run, smtp_source, until
from next_hops import UNLIMITED, SmtpSink

RELOADS = int(os.environ.get("GATEPOST_RELOADS", "20"))
# Sessions that are open from before the first reload to after the last one, and those that come and go.
LASTING, PASSING = 16, 8
SIZE = 10 << 20
BROKEN = ["max-message-size = 'much'\n", "accept-domains-file = '/nonexistent/domains'\n", "local-name = ['a b']\n", "[[\n",
          "no-such-option = 1\n", "users = '/nonexistent/users'\n"]


class Configuration:
    """What holds for a session by the number of its configuration."""

    def __init__(self, number):
        self.number = number
        self.size = SIZE + number
        self.has_chunking = number % 2 == 0
        self.domain = f"epoch{number % 4}.example"
        self.other_domain = f"epoch{(number + 1) % 4}.example"
        self.recipients = 3 + number % 3

    def text(self, domains):
        disabled = "[]" if self.has_chunking else "['CHUNKING']"
        return (f"max-message-size = {self.size}\ndisable-extension = {disabled}\nmax-recipients = {self.recipients}\n"
                f"accept-domains-file = '{domains}'\nqueue-lifetime = '{1 + self.number % 5}d'\n")


class Load:
    """What was sent, and what was wrong."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.ends = threading.Event()
        self.lock = threading.Lock()
        self.acknowledged = []
        self.from_source = 0
        self.transactions = 0
        self.faults = []
        self.threads = [threading.Thread(target=self.guard, args=(serve,))
                        for serve in [self.lasting] * LASTING + [self.passing] * PASSING + [self.source]]

    def guard(self, serve):
        try:
            serve()
        except Exception as fault:  # pylint: disable=broad-except
            with self.lock:
                self.faults.append(f"{serve.__name__}: {type(fault).__name__} {fault}")
            self.ends.set()

    def connect(self):
        return smtplib.SMTP(*self.gateway.address, local_hostname="smtplib.example", timeout=PATIENCE)

    def transact(self, client, began):
        """Sees that all is as it was when this session began, and sends a message; its configuration."""
        client.ehlo()
        features = client.esmtp_features
        now = Configuration(int(features["size"]) - SIZE)
        assert began is None or began.number == now.number, f"it began under {began.number}, and is told {now.number}"
        assert ("chunking" in features) == now.has_chunking, (now.number, features)
        assert client.mail(FROM) == (250, b"2.1.0 Sender OK")
        assert client.rcpt(f"a@{now.other_domain}") == (550, b"5.7.1 Unable to relay")
        for number in range(now.recipients):
            assert client.rcpt(f"rcpt{number}@{now.domain}") == (250, b"2.1.5 Recipient OK")
        assert client.rcpt(f"more@{now.domain}") == (452, b"4.5.3 Too many recipients")
        code, text = client.data(b"Subject: reload\r\n\r\n" + b"x" * 70 + b"\r\n")
        assert code == 250, (code, text)
        with self.lock:
            self.acknowledged.append(re.match(rb"2\.6\.0 ([0-9A-Za-z]+) ", text)[1].decode())
            self.transactions += 1
        return now

    def lasting(self):
        with self.connect() as client:
            began = None
            while not self.ends.is_set():
                began = self.transact(client, began)
            # Once more after the last reload.
            self.transact(client, began)
            assert began.number == 0, began.number

    def passing(self):
        while not self.ends.is_set():
            with self.connect() as client:
                began = None
                for _ in range(5):
                    began = self.transact(client, began)

    def source(self):
        while not self.ends.is_set():
            smtp_source(self.gateway, "-s", "8", "-m", "200", "-l", "1000", "-d")
            self.from_source += 200

    @contextlib.contextmanager
    def running(self):
        for thread in self.threads:
            thread.start()
        try:
            until("all have sent something", lambda: self.transactions >= LASTING + PASSING or self.faults)
            yield self
        finally:
            self.ends.set()
            for thread in self.threads:
                thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self.threads), "a session has no end"
        assert not self.faults, self.faults


class Site:
    """A gateway with a configuration file and a list of domains."""

    def __init__(self, directory):
        directory.mkdir()
        self.file, self.domains = directory / "gatepost.toml", directory / "domains"
        self.told = []
        self.reloads = {"applied": 0, "failed": 0}

    def write(self, configuration, broken=""):
        self.put(self.domains, f"{configuration.domain}\n")
        self.put(self.file, configuration.text(self.domains) if not broken else broken)

    @staticmethod
    def put(path, text):
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)

    def start(self, *options):
        self.write(Configuration(0))
        return Gateway(f"--config={self.file}", *UNLIMITED, "--max-connections=1000", *options)

    def reload(self, gateway, result, by_command):
        """Has it loaded, which comes to this result."""
        self.reloads[result] += 1
        command = [GATEPOST, "reload", "--spool", gateway.spool]
        if by_command:
            told = run(*command, code=0 if result == "applied" else 78, both=True).decode()
            assert ("max-message-size: " in told and " -> " in told) == (result == "applied"), told
        else:
            gateway.process.send_signal(signal.SIGHUP)
            until(f"it is {result}", lambda: self.metric(gateway, result) == self.reloads[result])
            if result == "applied":
                # Its answer comes when all shards go by it.
                assert run(*command) == b"nothing has changed\n"
        assert self.metric(gateway, result) == self.reloads[result]

    @staticmethod
    def metric(gateway, result):
        wanted = f'gatepost_config_reloads_total{{result="{result}"}} '
        return sum(float(line[len(wanted):]) for line in gateway.scrape() if line.startswith(wanted))

    def under_load(self, gateway):
        """Loads other configurations again and again; the load."""
        number = 0
        # Nobody else reads what it prints, and a full pipe would hold it up.
        reader = threading.Thread(target=lambda: self.told.extend(gateway.process.stdout), daemon=True)
        reader.start()
        with Load(gateway).running() as load:
            for turn in range(RELOADS):
                if load.faults:
                    break
                is_broken = turn % 3 == 2
                if is_broken:
                    self.write(Configuration(number), broken=BROKEN[turn // 3 % len(BROKEN)])
                else:
                    number += 1
                    self.write(Configuration(number))
                self.reload(gateway, "failed" if is_broken else "applied", by_command=turn % 2 == 0)
                # Who comes now begins under the one that was loaded last.
                for _ in range(4):
                    with load.connect() as client:
                        assert load.transact(client, None).number == number
        print(f"{self.reloads['applied']} applied, {self.reloads['failed']} failed; {load.transactions} transactions of our own, "
              f"{load.from_source} messages of smtp-source")
        return load


def identifiers(spool):
    listed = run(GATEPOST, "queue", "list", "--spool", spool).decode().splitlines()
    return [line.split(" ")[0] for line in listed]


@case
def sessions_and_mail_in_the_queue():
    site = Site(SCRATCH / "held")
    with site.start() as gateway:
        load = site.under_load(gateway)
        gateway.until_empty()
        complaints = [line for line in gateway.errors if not line.startswith("gatepost: reload: ")]
        assert not complaints, complaints
        for panics in ("gatepost_session_panics_total", "gatepost_shard_stalls_total"):
            assert gateway.metric(panics) == 0, panics
        gateway.stop()
        queued = identifiers(gateway.spool)
        assert len(queued) == len(set(queued)) == load.transactions + load.from_source, len(queued)
        lost = set(load.acknowledged) - set(queued)
        assert not lost, f"{len(lost)} messages were acknowledged and are not there: {sorted(lost)[:5]}"


@case
def sessions_and_mail_at_the_next_hop():
    site = Site(SCRATCH / "delivered")
    with SmtpSink() as sink, site.start(f"--next-hop={sink.server}") as gateway:
        load = site.under_load(gateway)
        until("the queue is empty", lambda: gateway.metric("gatepost_queue_messages") == 0)
        gateway.stop()
        arrived = [mail.identifier for mail in sink.mails()]
        assert len(arrived) == len(set(arrived)) == load.transactions + load.from_source, len(arrived)
        lost = set(load.acknowledged) - set(arrived)
        assert not lost, f"{len(lost)} messages were acknowledged and did not arrive: {sorted(lost)[:5]}"


if __name__ == "__main__":
    sys.exit(main())
