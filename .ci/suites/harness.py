"""What the suites share: the release binary, commands, comparisons, the list of cases.

A suite is called with the release binary and a directory of its own, and then the names of the
cases to run, or none for all of them. Every wait is bounded; nothing depends on how fast anything
is.
"""

import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from pathlib import Path

GATEPOST = sys.argv[1]
# Without what sets up the suites: a gateway would take it for options.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GATEPOST_")}
SCRATCH = Path(sys.argv[2])
PATIENCE = 120
FROM, TO = "sender@client.example", "rcpt@test.example"

cases = []


def case(function):
    """Registers a test case."""
    cases.append(function)
    return function


class Gateway:
    """`gatepost serve` on a spool, killed at the end of its `with`."""

    started = 0

    def __init__(self, *options, spool=None, as_shipped=False):
        Gateway.started += 1
        self.spool = Path(spool or SCRATCH / f"spool-{Gateway.started}")
        given = " ".join(options)
        # So that no case depends on what the machine has to spare.
        usual = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--min-free-disk=0", "--min-free-memory=0"]
        if not as_shipped:
            # Where refusals are no news, none need be waited for.
            usual += ["--shards=2", "--tarpit=0"]
        defaults = [option for option in usual if option.split("=")[0] + "=" not in given]
        self.process = subprocess.Popen(
            [GATEPOST, "serve", "--hostname=mx.test.example", "--accept-domain=test.example",
             "--spool", self.spool, *defaults, *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        self.errors = []
        self.printed = []
        self.listening = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.reader.start()
        for line in self.process.stdout:
            self.printed.append(line)
            if line.startswith("listening on "):
                host, port = line.split()[-1].rsplit(":", 1)
                self.listening.append((host.strip("[]"), int(port)))
            if line.startswith("metrics at "):
                self.metrics = line.split()[-1]
                break
        else:
            self.reader.join()
            raise AssertionError(f"it did not start: {''.join(self.errors)}")
        self.metric("gatepost_connections")

    @property
    def address(self):
        return self.listening[0]

    @property
    def server(self):
        host, port = self.address
        return f"{host}:{port}"

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure:
            self.tell()
        self.process.kill()
        self.process.wait()

    def scrape(self, timeout=PATIENCE):
        with urllib.request.urlopen(self.metrics, timeout=timeout) as response:
            return response.read().decode().splitlines()

    def metric(self, name):
        return sum(float(line.split()[-1]) for line in self.scrape() if re.match(re.escape(name) + r"[ {]", line))

    def reload(self):
        """Makes it read its files again."""
        self.process.send_signal(signal.SIGHUP)

    def tell(self):
        """Prints all that may explain a failure."""
        print(f"--- the gateway on {self.server}, spool {self.spool}, exit code {self.process.poll()}")
        print("".join(self.errors[-50:]), end="")
        if self.process.poll() is None:
            try:
                # What has a value; how the times are spread explains little.
                print("\n".join(line for line in self.scrape(timeout=10)
                                if not line.startswith("#") and "_bucket{" not in line and line.split()[-1:] > ["0"]))
            except OSError as error:
                print(f"no metrics: {error}")
            for line in connections(self.process.pid):
                print(line)
        listed = subprocess.run([GATEPOST, "queue", "list", "--spool", self.spool], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
        *first, last = listed.stdout.decode(errors="replace").splitlines() or [""]
        print("\n".join([*first[:20], *["..."] * (len(first) > 20), last]), flush=True)

    def stop(self):
        """Ends it with SIGTERM; what it printed on standard error."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        assert code == 0, f"exit code {code}: {''.join(self.errors)}"
        return "".join(self.errors)

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, f"it had ended by itself: {''.join(self.errors)}"

    def until_empty(self):
        until("gatepost_connections is 0", lambda: self.metric("gatepost_connections") == 0)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def connect(self, source=None):
        return socket.create_connection(self.address, PATIENCE, (source, 0) if source else None)


def connections(process):
    """What the kernel says of a process's TCP connections, and what their other ends are, which are on this machine."""
    states = ["", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
              "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"]

    def address(field):
        host, port = field.split(":")
        words = [struct.pack("=I", int(host[at:at + 8], 16)) for at in range(0, len(host), 8)]
        return f"{socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b''.join(words))}:{int(port, 16)}"

    inodes, known = set(), {}
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(link)))
        except OSError:
            pass
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if os.path.exists(table) else []:
            _, local, remote, state, queues, timer, again, _, _, inode, *_ = line.split()
            known[local, remote] = states[int(state, 16)], f"queues {queues}, timer {timer}, {int(again, 16)} times again", inode
    for (local, remote), (state, details, inode) in known.items():
        if inode in inodes and state != "LISTEN":
            other_end, *_ = known.get((remote, local), ("nothing",))
            yield f"{state} {address(local)} -> {address(remote)}, where it is {other_end}; {details}"


def until(what, done):
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)


def run(*command, code=0, timeout=300, both=False, **options):
    """Runs a command to its end; its output, with `both` that on standard error behind it."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    ended = subprocess.run([str(word) for word in command],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False, **options)
    assert code is None or ended.returncode == code, \
        f"{command}: exit code {ended.returncode}\n{ended.stdout.decode()}\n{ended.stderr.decode()}"
    return ended.stdout + (ended.stderr if both else b"")


def queue(spool):
    """The queue: (envelope line, Received field, content) by queue id."""
    listed = run(GATEPOST, "queue", "list", "--spool", spool).decode().splitlines()
    found = {}
    # A command line has its limits.
    for start in range(0, len(listed), 1000):
        part = [line.split(" ") for line in listed[start:start + 1000]]
        octets = run(GATEPOST, "queue", "cat", "--spool", spool, *(fields[0] for fields in part))
        for identifier, _, size, sender, recipients, *_ in part:
            message, octets = octets[:int(size)], octets[int(size):]
            field = re.match(rb"Received: from [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", message)
            assert field and b" id %s;" % identifier.encode() in field[0], message[:300]
            found[identifier] = (f"{sender} {recipients}", field[0], message[field.end():])
        assert octets == b"", "cat prints more than list says"
    assert len(found) == len(listed), "an id is listed twice"
    return found


def same(got, expected):
    at = next((at for at, (one, other) in enumerate(zip(got, expected)) if one != other), min(len(got), len(expected)))
    assert got == expected, (f"{len(got)} octets instead of {len(expected)}, they differ at {at}: "
                             f"{got[at:at + 40]!r} instead of {expected[at:at + 40]!r}")


def only(spool):
    """The queue's one message."""
    messages = list(queue(spool).values())
    assert len(messages) == 1, f"{len(messages)} messages"
    return messages[0]


def shapes():
    """Contents that every client can send, with CRLF."""
    header = b"From: a@b.example\r\nSubject: shapes\r\n\r\n"
    yield "plain", header + b"Hello.\r\n"
    yield "dots", header + b".\r\n..\r\n...\r\n.x\r\nx.\r\n\r\n.\r\n"
    yield "8 bit", header + "Grüße, ñandú, 日本\r\n".encode()
    yield "long lines", header + (b"x" * 998 + b"\r\n") * 10 + b"y" * 100_000 + b"\r\n"
    yield "empty lines", header + b"\r\n" * 200
    yield "empty body", header
    yield "large", header + b"".join(b"line %d\r\n" % number for number in range(60_000))


def smtp_source(gateway, *options, code=0):
    return run("smtp-source", *options, "-M", "source.example", "-f", FROM, "-t", TO, f"inet:{gateway.server}", code=code)


def main():
    # So that what was started is ended, and mounts are taken off, also then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    passed = failed = 0
    wanted = sys.argv[3:]
    for function in cases:
        name = function.__name__
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        try:
            function()
        except Exception:  # pylint: disable=broad-except
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print(f"FAILED {name}", flush=True)
        else:
            passed += 1
            print(f"ok     {name} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
