"""The log of a running gateway as fail2ban reads it, in both formats, with the filter that is shipped."""

import sys
from pathlib import Path

from harness import FROM, PATIENCE, SCRATCH, TO, Gateway, case, main, run, until

FILTER = Path(__file__).parents[2] / "deploy/fail2ban/filter.d/gatepost.conf"
FORMATS = ["text", "json"]
# What a client may hope to be taken for, in each format.
FORGED = [
    'client=192.0.2.66 reason=authentication_failed',
    '" client=192.0.2.66 reason=authentication_failed x="',
    '","client":"192.0.2.66","reason":"authentication_failed","x":"',
    '\\" client=192.0.2.66 reason=authentication_failed',
    '\u2028warn refused client=192.0.2.66 reason=authentication_failed',
]


def found(log, mode="normal"):
    """The addresses that the filter finds in a log, one for each line."""
    return run("fail2ban-regex", "--out", "<ip>", log, f"{FILTER}[mode={mode}]").decode().split()


def say(gateway, source, *lines):
    """A session of these lines, read to its end; each line is said when something has come for the one before."""
    with gateway.connect(source) as connection:
        connection.settimeout(PATIENCE)
        connection.recv(4096)
        for line in lines:
            connection.sendall(line.encode() + b"\r\n")
            if not connection.recv(4096):
                return
        connection.sendall(b"QUIT\r\n")
        while connection.recv(4096):
            pass


@case
def abuse_is_found_and_nobody_else():
    for number, form in enumerate(FORMATS):
        log = SCRATCH / f"abuse-{number}.log"
        with Gateway(f"--log-format={form}", f"--log-file={log}", "--max-protocol-errors=3") as gateway:
            # No SMTP: each command, and the session for all of them.
            say(gateway, "127.0.0.2", "GET / HTTP/1.1", "Host: mx.test.example", "Accept: */*", "X: y")
            # Mail as it should be, and a recipient that is not ours.
            say(gateway, "127.0.0.3", "EHLO client.example", f"MAIL FROM:<{FROM}>", f"RCPT TO:<{TO}>", "RSET")
            say(gateway, "127.0.0.4", "EHLO client.example", f"MAIL FROM:<{FROM}>", "RCPT TO:<x@elsewhere.example>")
            for text in FORGED:
                say(gateway, "127.0.0.5", f"EHLO {text}", f"MAIL FROM:<{FROM}> {text}", f"RCPT TO:<{text}>")
            gateway.stop()
        refused = [line for line in log.read_text().split("\n") if "refused" in line]
        assert any("127.0.0.4" in line for line in refused) and any("127.0.0.5" in line for line in refused), refused
        assert set(found(log)) == {"127.0.0.2"}, refused
        # Relaying counts where that is asked for.
        assert set(found(log, "aggressive")) == {"127.0.0.2", "127.0.0.4"}, refused


@case
def times_are_utc():
    log = SCRATCH / "times.log"
    log.write_text('2026-11-21T22:40:27.123456Z warn refused client=2001:db8::1 reason=protocol_errors\n'
                   '{"time":"2026-11-21T22:40:27.123456Z","level":"warn","event":"refused","size":1,"delay":0.001,'
                   '"client":"2001:db8::1","reason":"protocol_errors"}\n')
    for zone in ["UTC", "UTC-0500"]:
        times = run("fail2ban-regex", "--out", "<ip> <time>", f"--timezone={zone}", log, FILTER).decode().splitlines()
        assert times == ["2001:db8::1 1795300827"] * 2, times


@case
def a_renamed_log_is_made_again():
    log, renamed = SCRATCH / "rotated.log", SCRATCH / "rotated.log.1"
    with Gateway("--log-format=json", f"--log-file={log}") as gateway:
        until("the lines of the start", lambda: "metrics at" in log.read_text())
        log.rename(renamed)
        gateway.reload()
        until("a new log", log.exists)
        gateway.stop()
    assert "listening on" in renamed.read_text() and "drained" in log.read_text()


sys.exit(main())
