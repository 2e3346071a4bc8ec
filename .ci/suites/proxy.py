#!/usr/bin/env python3
"""HAProxy in front of the release binary: whose connection it brings, in everything that goes by address.

usage: proxy.py GATEPOST DIRECTORY [CASE...]

Needs haproxy, swaks with libnet-ssleay-perl, curl, openssl and smtp-source (Postfix). Works in DIRECTORY alone, on
127.0.0.0/8, on ports that the kernel chooses. Every wait is bounded; nothing depends on how fast anything
is. Ends with one line, `N passed, N failed`, and exits 1 when something failed. What is missing is a
failure, not a reason to skip.

HAProxy runs with deploy/haproxy/haproxy.cfg, the example for operators, and with configurations that differ in
how the header is sent and the server is looked after.
"""

import contextlib
import csv
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

from harness import FROM, GATEPOST, PATIENCE, SCRATCH, TO, Gateway, case, main, only, queue, run, same, until
from pki import MX, Authority

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
BANNER = "220 mx.test.example ESMTP Gatepost ready"
PER_SOURCE = "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel"
FROM_PROXY = "proxy=127.0.0.1"
CONTENT = b"From: a@b.example\r\nSubject: proxied\r\n\r\nHello.\r\n"

# How HAProxy sends the header.
WAYS = {
    "version 1": "send-proxy",
    "version 2": "send-proxy-v2",
    "version 2 with more": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
}


def bound():
    """A socket that HAProxy is to inherit, so that nobody else gets its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    listener.set_inheritable(True)
    return listener


class HAProxy:
    """HAProxy with a configuration, whose listening sockets are given by environment variables."""

    started = 0

    def __init__(self, configuration, binds, **environment):
        HAProxy.started += 1
        self.listeners = {name: bound() for name in binds}
        self.statistics = SCRATCH / f"haproxy-{HAProxy.started}.sock"
        more = SCRATCH / f"haproxy-{HAProxy.started}.cfg"
        more.write_text(f"global\n    stats socket {self.statistics} mode 600\n")
        environment |= {name: f"fd@{listener.fileno()}" for name, listener in self.listeners.items()}
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", configuration, "-f", more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, pass_fds=[listener.fileno() for listener in self.listeners.values()],
            env=os.environ | {name: str(value) for name, value in environment.items()})

    @classmethod
    def before(cls, gateway, options):
        """One listener before a gateway's first binding, reached with these options of `server`."""
        configuration = SCRATCH / f"haproxy-{HAProxy.started + 1}-own.cfg"
        configuration.write_text(
            "defaults\n    mode tcp\n    timeout connect 30s\n    timeout check 30s\n    timeout client 5m\n    timeout server 5m\n"
            "listen smtp\n    unique-id-format %pid-%rt\n"
            f"    bind \"${{SMTP}}\"\n    {options.pop('above', '')}\n    server mx {gateway.server} {options['server']}\n")
        return cls(configuration, ["SMTP"])

    def __enter__(self):
        until("HAProxy answers", self.answers)
        return self

    def __exit__(self, failure, *_):
        self.process.kill()
        output, _ = self.process.communicate()
        for listener in self.listeners.values():
            listener.close()
        if failure:
            print(f"--- HAProxy:\n{output}", end="")

    def answers(self):
        assert self.process.poll() is None, self.process.communicate()[0]
        try:
            return bool(self.servers())
        except OSError:
            return False

    def servers(self):
        """What HAProxy holds of each server: its lines of `show stat`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.statistics))
            connection.sendall(b"show stat\n")
            text = connection.makefile().read().removeprefix("# ")
        rows = csv.DictReader(io.StringIO(text))
        return {(row["pxname"], row["svname"]): row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")}

    def address(self, name="SMTP"):
        return self.listeners[name].getsockname()

    def server(self, name="SMTP"):
        return "{}:{}".format(*self.address(name))

    def connect(self, source, name="SMTP"):
        """A client's connection, and its lines."""
        connection = socket.create_connection(self.address(name), PATIENCE, (source, 0))
        return connection, connection.makefile("r", newline="\r\n")


def greeting(lines):
    return lines.readline().rstrip("\r\n")


def headers(gateway, result):
    return gateway.metric(f'gatepost_proxy_headers_total{{result="{result}"}}')


def refusals(gateway):
    return gateway.metric("gatepost_refusals_total") + gateway.metric("gatepost_connections_refused_total")


def proxied(*options, **more):
    return Gateway(f"--listen=127.0.0.1:0,{FROM_PROXY}", *options, **more)


def received_from(gateway, client):
    """The one message names this client, and is stored as it was sent."""
    _, field, content = only(gateway.spool)
    assert f"([{client}])".encode() in field, field
    same(content.rstrip(b"\r\n"), CONTENT.rstrip(b"\r\n"))


def message():
    path = SCRATCH / "proxied.eml"
    path.write_bytes(CONTENT)
    return path


# --- whose connection it is ----------------------------------------------------------------------


@case
def received_names_the_client():
    for way, options in WAYS.items():
        for client, command in (
                ("127.5.6.7", lambda server: ["swaks", "--server", server, "--from", FROM, "--to", TO, "--helo", "a.example",
                                              "--local-interface", "127.5.6.7", "--data", f"@{message()}", "--suppress-data"]),
                ("127.5.6.8", lambda server: ["curl", "--silent", "--show-error", "--interface", "127.5.6.8",
                                              f"smtp://{server}/a.example", "--mail-from", FROM, "--mail-rcpt", TO,
                                              "--upload-file", message()])):
            with proxied() as gateway, HAProxy.before(gateway, {"server": options}) as haproxy:
                run(*command(haproxy.server()))
                received_from(gateway, client)
                assert headers(gateway, "accepted") == 1, way
                assert refusals(gateway) == 0


@case
def limits_hold_for_each_client():
    for way, options in WAYS.items():
        with proxied() as gateway, HAProxy.before(gateway, {"server": options}) as haproxy, contextlib.ExitStack() as stack:
            def greeted(source):
                connection, lines = haproxy.connect(source)
                stack.enter_context(connection)
                return greeting(lines)

            # As many as may come from one address, all through one proxy.
            for number in range(20):
                assert greeted("127.30.0.1") == BANNER, (way, number)
            assert greeted("127.30.0.1") == PER_SOURCE, way
            for number in range(20):
                assert greeted("127.30.0.2") == BANNER, (way, number)
            assert greeted("127.30.0.2") == PER_SOURCE, way
            assert greeted("127.30.0.3") == BANNER, way
            assert gateway.metric('gatepost_connections_refused_total{reason="connections_per_source"}') == 2


@case
def block_lists_name_the_client():
    permissions = "550 5.7.1 External client with IP address {} does not have permissions to submit to this server"
    kb = ". Visit http://support.microsoft.com/kb/928123 for more information"
    for way, options in WAYS.items():
        # The proxy's own address is blocked too: who comes through it does not come from it.
        with proxied("--block=127.31.0.1", "--block=127.0.0.1") as gateway, \
                HAProxy.before(gateway, {"server": options}) as haproxy:
            run(GATEPOST, "block", "add", "127.31.1.0/24", "--spool", gateway.spool)
            for source, expected in (("127.31.0.1", permissions.format("127.31.0.1") + kb),
                                     ("127.31.0.2", BANNER), ("127.31.1.9", permissions.format("127.31.1.9"))):
                connection, lines = haproxy.connect(source)
                with connection:
                    assert greeting(lines) == expected, (way, source)


@case
def allowed_ranges_name_the_client():
    with Gateway(f"--listen=127.0.0.1:0,{FROM_PROXY},allow=127.32.0.0/24") as gateway, \
            HAProxy.before(gateway, {"server": "send-proxy"}) as haproxy:
        for source, expected in (("127.32.0.1", BANNER), ("127.32.1.1", "421 4.3.2 Service not available")):
            connection, lines = haproxy.connect(source)
            with connection:
                assert greeting(lines) == expected, source


@case
def nobody_else_may_say_whose_connection_it_is():
    with proxied() as gateway, HAProxy.before(gateway, {"server": "send-proxy-v2"}) as haproxy:
        header = b"PROXY TCP4 192.0.2.7 192.0.2.25 56324 25\r\nEHLO a.example\r\n"
        # Past the proxy, and through it.
        for connect in (lambda: gateway.connect("127.33.0.1"), lambda: haproxy.connect("127.33.0.1")[0]):
            with connect() as connection:
                connection.sendall(header)
                lines = connection.makefile("r", newline="\r\n").read().splitlines()
                assert lines == [BANNER, "421 4.3.2 Service not available"], lines
        with gateway.connect("127.33.0.1") as connection:
            connection.sendall(b"EHLO a.example\r\nQUIT\r\n")
            assert "Hello [127.33.0.1]" in connection.makefile("r").read()
        assert headers(gateway, "not_allowed") == 2


@case
def many_messages():
    for options in WAYS.values():
        with proxied("--message-rate=0") as gateway, HAProxy.before(gateway, {"server": options}) as haproxy:
            for more in (["-d"], []):
                run("smtp-source", *more, "-s", "20", "-m", "300", "-l", "4096", "-M", "source.example", "-f", FROM, "-t", TO,
                    f"inet:{haproxy.server()}")
            assert len(queue(gateway.spool)) == 600
            assert refusals(gateway) == 0
            gateway.until_empty()


# --- TLS -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def example(*options):
    """A gateway with the bindings that the example is for, and HAProxy with it. The second server does not run."""
    authority = Authority()
    certificate = authority.issue(MX)
    listen = [f"--listen=127.0.0.1:0,{FROM_PROXY}{attributes}" for attributes in ("", ",tls=required", ",tls=implicit")]
    with Gateway(*listen, *certificate.options(), *options) as gateway:
        servers = {f"MX1_{name}": f"127.0.0.1:{port}"
                   for name, (_, port) in zip(("SMTP", "SUBMISSION", "SUBMISSIONS"), gateway.listening)}
        nobody = {f"MX2_{name}": "127.255.255.254:1" for name in ("SMTP", "SUBMISSION", "SUBMISSIONS")}
        with HAProxy(EXAMPLE, ["SMTP", "SUBMISSION", "SUBMISSIONS"], **servers, **nobody) as haproxy:
            until("the server that does not run is found out",
                  lambda: all(row["status"].startswith("DOWN") for (_, name), row in haproxy.servers().items() if name == "mx2"))
            yield gateway, haproxy, authority


@case
def the_example_with_tls():
    with example() as (gateway, haproxy, authority):
        smtp, submission, submissions = (haproxy.server(name) for name in ("SMTP", "SUBMISSION", "SUBMISSIONS"))
        by_curl = ["curl", "--silent", "--show-error", "--cacert", authority.file, "--mail-from", FROM, "--mail-rcpt", TO,
                   "--upload-file", message()]
        by_swaks = ["swaks", "--from", FROM, "--to", TO, "--helo", "a.example", "--data", f"@{message()}", "--suppress-data",
                    "--tls-verify", "--tls-ca-path", authority.file, "--tls-sni", MX]
        connect_to = ["--connect-to", f"{MX}::{{}}"]

        def curl(scheme, server, client, *options):
            host, port = server.split(":")
            to = [word.format(f"{host}:{port}") for word in connect_to]
            run(*by_curl, "--interface", client, *to, *options, f"{scheme}://{MX}:{port}/a.example")

        curl("smtp", smtp, "127.34.0.1")
        curl("smtp", smtp, "127.34.0.2", "--ssl-reqd")
        curl("smtp", submission, "127.34.0.3", "--ssl-reqd")
        curl("smtps", submissions, "127.34.0.4")
        run(*by_swaks, "--server", smtp, "--local-interface", "127.34.0.5", "-tls")
        run(*by_swaks, "--server", submission, "--local-interface", "127.34.0.6", "-tls")
        run(*by_swaks, "--server", submissions, "--local-interface", "127.34.0.7", "-tlsc")
        fields = [field.decode() for _, field, _ in queue(gateway.spool).values()]
        for number in range(1, 8):
            field, = [field for field in fields if f"([127.34.0.{number}])" in field]
            assert ("with ESMTPS" in field) == (number != 1), field
        assert len(fields) == 7
        assert refusals(gateway) == 0


# --- health checks -------------------------------------------------------------------------------


@case
def health_checks_leave_no_refusals():
    # With a header as for connections, and without one; to the end of TCP's handshake, and of a greeting.
    smtp = "option smtpchk EHLO haproxy.example.org"
    for options, above, result in (
            # Version 1 has the proxy's own address in it.
            ("send-proxy check", "", "accepted"),
            ("send-proxy-v2 check", "", "local"),
            # One that names its port has no header unless it is asked for. Without one, HAProxy resets the connection
            # before TCP has handed it over.
            ("send-proxy check port {port}", "", None),
            ("send-proxy-v2 check port {port} check-send-proxy", "", "local"),
            ("check", "", None),
            ("send-proxy check", smtp, "accepted"),
            ("send-proxy-v2 check", smtp, "local")):
        with proxied() as gateway, contextlib.ExitStack() as stack:
            options = f"{options} inter 100ms".format(port=gateway.address[1])
            haproxy = stack.enter_context(HAProxy.before(gateway, {"server": options, "above": above}))
            if result:
                until(f"checks: {options}", lambda: headers(gateway, result) >= 10)  # pylint: disable=cell-var-from-loop
            # Of TCP or of SMTP.
            until(f"a check: {options}",
                  lambda: haproxy.servers()["smtp", "mx"]["check_status"] in ("L4OK", "L7OK"))  # pylint: disable=cell-var-from-loop
            server = haproxy.servers()["smtp", "mx"]
            assert server["status"] == "UP" and server["chkfail"] == "0", (options, above, server)
            assert refusals(gateway) == 0, (options, above)
            for other in ("malformed", "timeout", "not_allowed"):
                assert headers(gateway, other) == 0, (options, above, other)


@case
def a_server_that_refuses_gets_no_connections():
    with example("--min-free-disk=900TB") as (_, haproxy, __):
        until("it is found out", lambda: haproxy.servers()["smtp", "mx1"]["status"].startswith("DOWN"))
        for backend in ("submission", "submissions"):
            assert haproxy.servers()[backend, "mx1"]["status"].startswith("DOWN")
        connection, lines = haproxy.connect("127.35.0.1")
        with connection:
            assert greeting(lines) == ""


if __name__ == "__main__":
    sys.exit(main())
