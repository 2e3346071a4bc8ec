"""Mail of all sizes, sent for as long as it is wanted to a gateway that may refuse it for want of resources, and what
must have become of it."""

import collections
import random
import re
import socket
import threading
import time

from harness import FROM, PATIENCE, TO, queue, same

SHORT = "452 4.3.1 Insufficient system resources"
BANNER = "220 mx.test.example ESMTP Gatepost ready"
# The large ones have files of their own.
SIZES = 8 * [1000] + 8 * [4000] + [20_000, 120_000, 300_000, 700_000]


class Refused(Exception):
    """A connection was refused, with SHORT."""


class Session:
    """One session, in lockstep. Whatever a gateway does, it must say."""

    def __init__(self, address, source=None):
        self.socket = socket.create_connection(address, PATIENCE, (source, 0) if source else None)
        self.replies = self.socket.makefile("rb")
        greeting = self.reply()
        if greeting == SHORT:
            end = self.replies.read()
            self.close()
            assert end == b"", f"behind {SHORT}: {end}"
            raise Refused
        assert greeting == BANNER, greeting
        assert self.say("EHLO client.example").startswith("250")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.replies.close()
        self.socket.close()

    def reply(self):
        """The last line of the next reply."""
        line = self.replies.readline()
        while line[3:4] == b"-":
            line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"the session ended: {line}")
        return line[:-2].decode()

    def send(self, octets):
        self.socket.sendall(octets)

    def say(self, line):
        self.send(f"{line}\r\n".encode())
        return self.reply()

    def expect(self, line, start):
        reply = self.say(line)
        assert reply.startswith(start), f"{line}: {reply}"

    def begin(self):
        """A transaction up to its content: the reply to MAIL."""
        reply = self.say(f"MAIL FROM:<{FROM}>")
        if reply != SHORT:
            assert reply.startswith("250 "), reply
            self.expect(f"RCPT TO:<{TO}>", "250 ")
        return reply

    def content(self, octets, in_chunks):
        """The reply to the content."""
        if in_chunks:
            half = len(octets) // 2
            self.send(b"BDAT %d\r\n" % half + octets[:half])
            first = self.reply()
            assert first.startswith("250 ") or first == SHORT, first
            self.send(b"BDAT %d LAST\r\n" % (len(octets) - half) + octets[half:])
            last = self.reply()
            if first != SHORT:
                return last
            # A chunk that could not be kept is a failed one.
            assert last == "503 5.5.1 Bad sequence of commands", last
            return first
        self.expect("DATA", "354 ")
        self.send(octets + b".\r\n")
        return self.reply()

    def quit(self):
        self.expect("QUIT", "221 ")
        self.close()


class Mail:
    """Numbered messages, and what became of each."""

    def __init__(self, sizes=SIZES):
        self.sizes = sizes
        self.lock = threading.Lock()
        self.sent = {}
        # By queue id.
        self.accepted = {}
        # By the number of the message: told to come again, and told nothing since the gateway was killed.
        self.refused, self.unanswered = set(), set()
        self.at = collections.Counter()
        self.wrong = []

    def write(self, size=None):
        """A new message: its number and its octets."""
        with self.lock:
            number = len(self.sent) + 1
            size = size or random.Random(number).choice(self.sizes)
            octets = b"Subject: %d\r\n\r\n" % number + b"%07d\r\n" % number * (size // 9)
            self.sent[number] = octets
            return number, octets

    def send(self, session, size=None, in_chunks=False):
        """Sends one message, if MAIL is taken; true: it was acknowledged."""
        if session.begin() == SHORT:
            self.count("MAIL")
            return False
        return self.finish(session, *self.write(size), in_chunks)

    def finish(self, session, number, octets, in_chunks=False):
        """Sends the content of a transaction that has begun."""
        with self.lock:
            self.unanswered.add(number)
        reply = session.content(octets, in_chunks)
        accepted = re.fullmatch(r"250 2\.\d\.\d (\w+) .*", reply)
        assert accepted or reply == SHORT, reply
        with self.lock:
            self.unanswered.remove(number)
            if accepted:
                self.accepted[accepted[1]] = octets
            else:
                self.refused.add(number)
        self.count("250" if accepted else "content")
        return bool(accepted)

    def count(self, what):
        with self.lock:
            self.at[what] += 1

    def refusals(self):
        return self.at["connect"] + self.at["MAIL"] + self.at["content"]

    def audit(self, spool, sources=0):
        """Whether all that was acknowledged is in the queue, as it was sent, and nothing but what was sent, save for so
        many messages of smtp-source; how many are there that were not acknowledged."""
        stored = queue(spool)
        missing = self.accepted.keys() - stored.keys()
        assert not missing, f"acknowledged and lost: {len(missing)} of {len(self.accepted)}, {sorted(missing)[:5]}"
        for identifier, octets in self.accepted.items():
            envelope, _, content = stored[identifier]
            assert envelope == f"from=<{FROM}> to=<{TO}>", envelope
            same(content, octets)
        others = 0
        for identifier in stored.keys() - self.accepted.keys():
            _, _, content = stored[identifier]
            subject = re.match(rb"Subject: (\d+)\r\n", content)
            if not subject:
                sources -= 1
                continue
            others += 1
            number = int(subject[1])
            assert number in self.refused | self.unanswered, f"{number} is there twice"
            same(content, self.sent[number])
        assert sources == 0, f"{sources} messages of smtp-source are missing"
        return others


class Traffic:
    """Clients that send mail until the end of the `with`, from connections that are short or long.

    They mind no refusal for want of resources, wherever it comes, but any other, and any session that ends by itself,
    but for a gateway that was `killed`.
    """

    def __init__(self, gateway, mail, clients=6):
        self.gateway, self.mail = gateway, mail
        self.stopped = threading.Event()
        self.killed = False
        self.threads = [threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            # Says more than what came of it.
            assert not self.mail.wrong, self.mail.wrong[:5]

    def stop(self):
        """Sends no more; a client that waits for a reply waits on."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client waits for a reply"

    def kill(self):
        """Kills the gateway in the middle of it all."""
        self.killed = True
        self.gateway.kill()

    def client(self, number):
        turn = 0
        while not self.stopped.is_set() and not self.killed:
            turn += 1
            try:
                with Session(self.gateway.address) as session:
                    # The odd ones come for one message, the others stay.
                    for _ in range(1 if number % 2 else 25):
                        if self.stopped.wait(0.005):
                            break
                        if not self.mail.send(session, in_chunks=number % 3 == 0):
                            self.stopped.wait(0.05)
                    session.quit()
            except Refused:
                self.mail.count("connect")
                time.sleep(0.05)
            except Exception as error:  # pylint: disable=broad-except  # told at the end
                if not self.killed:
                    self.mail.wrong.append(f"client {number}, turn {turn}: {error!r}")
                    return
