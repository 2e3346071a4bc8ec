"""A gateway's life with a bit of everything: mail, refusals of every kind, TLS, AUTH, PROXY headers, next hops that
take, refuse, break and are away, a configuration that is loaded again.

Its clients come from many addresses and go on until they are told to stop. They do not mind what they are told: who
is refused by one limit may meet another. What must have happened in the end is for others to judge.
"""

import base64
import contextlib
import smtplib
import socket
import ssl
import threading

from harness import FROM, GATEPOST, PATIENCE, SCRATCH, TO, Gateway, run
from next_hops import Recorder, reserve
from pki import MX, Authority

# One that may do all, one that may send as somebody else only, one that may not log on at any binding here.
USER, AS_ANOTHER, ELSEWHERE, PASSWORD = "alice", "robert", "stranger", "Sandpiper-77.x"
BLOCKED, BLOCKED_FOR_A_TIME = "127.0.0.66", "127.0.0.67"
DOMAINS = ("test.example", "away.example", "secure.example", "stranger.example", "denied.example")
BINDINGS = {
    "gateway": "",
    "relay": ",role=relay,auth=optional,plaintext-auth,tls=off",
    "implicit": ",tls=implicit",
    "tls-required": ",tls=required",
    "auth-required": ",auth=required,plaintext-auth,tls=off",
    "elsewhere": ",allow=192.0.2.0/24",
    "proxy": ",proxy=127.0.0.80",
}
PROXY, NO_PROXY, GUESSER = "127.0.0.80", "127.0.0.81", "127.0.0.82"


def users_file():
    path = SCRATCH / "users"
    for user, options in ((USER, []), (AS_ANOTHER, ["--sender", "robert@test.example"]), (ELSEWHERE, ["--binding", "1"])):
        run(GATEPOST, "user", "add", "--users", path, *options, user, input=PASSWORD.encode())
    return path


def auth_file(password):
    path = SCRATCH / f"auth-{password}"
    path.write_text(f"{USER}:{password}\n")
    path.chmod(0o600)
    return path


class Life:
    """The gateway, its next hops and its clients; all ended at the end of its `with`."""

    def __init__(self):
        self.authority, self.users = Authority(), users_file()
        self.stack = contextlib.ExitStack()
        self.stop = threading.Event()
        self.number = 0
        self.lock = threading.Lock()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.stack = stack
            self._begin()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure):
        self.stack.__exit__(*failure)

    def _begin(self):
        faults = ["rcpt[fail]=550 5.1.1 no such user", "rcpt[defer]=451 4.2.0 later", "end=reset,%8"]
        self.hop = self.stack.enter_context(Recorder(*(f"--fault={fault}" for fault in faults)))
        self.away = reserve("127.0.0.5")
        certificate = self.authority.issue(MX)
        options = [*certificate.options(), f"--users={self.users}", "--tarpit=200ms"]
        # A gateway as a next hop, for TLS and AUTH; one is trusted, one is not, one does not let us in.
        self.other = self.stack.enter_context(Gateway(*3 * ["--listen=127.0.0.1:0"], *options))
        trusted, stranger, denied = (f"{host}:{port},tls=required,tls-name={MX}" for host, port in self.other.listening)
        self.gateway = self.stack.enter_context(Gateway(
            *(f"--listen=127.0.0.1:0{attributes}" for attributes in BINDINGS.values()), *options,
            *(f"--accept-domain={domain}" for domain in DOMAINS[1:]),
            f"--next-hop={self.hop.server}", f"--route=away.example=127.0.0.5:{self.away.getsockname()[1]}",
            f"--route=secure.example={trusted},ca={self.authority.file},auth-file={auth_file(PASSWORD)}",
            f"--route=stranger.example={stranger},ca={Authority().file}",
            f"--route=denied.example={denied},ca={self.authority.file},auth-file={auth_file('wrong')}",
            f"--block={BLOCKED}", f"--log-file={SCRATCH / 'log'}",
            "--max-connections=60", "--max-connections-per-source=8", "--message-rate=20", "--max-recipients=3",
            "--logon-failure-rate=10",
            "--max-message-size=100KB", "--inactivity-timeout=2s", "--connection-timeout=6s", "--ack-delay=1s",
            "--retry-min=1s", "--retry-max=1s", "--queue-lifetime=5s"))
        self.addresses = dict(zip(BINDINGS, self.gateway.listening))
        run(GATEPOST, "block", "add", BLOCKED_FOR_A_TIME, "--spool", self.gateway.spool)
        clients = [self.mailer, self.tls, self.logons, self.proxied, self.refused, self.silent, self.crowd, self.reloader]
        threads = [threading.Thread(target=self._live, args=(client,), daemon=True) for client in clients]
        self.stack.callback(lambda: [thread.join(PATIENCE) for thread in threads])
        self.stack.callback(self.stop.set)
        for thread in threads:
            thread.start()

    def _live(self, client):
        while not self.stop.wait(0.2):
            # A refusal where none was awaited, a connection that was ended, no connection at all.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                client()

    def source(self):
        """An address that has not come yet."""
        with self.lock:
            self.number += 1
            return f"127.3.{self.number // 250 % 250}.{1 + self.number % 250}"

    # --- what clients say ------------------------------------------------------------------------

    def connect(self, binding="gateway", source=None):
        return socket.create_connection(self.addresses[binding], PATIENCE, (source or self.source(), 0))

    def say(self, *lines, binding="gateway", source=None, first=b""):
        """A dialogue in lockstep, to its last reply or its end; the last reply line."""
        with self.connect(binding, source) as connection, connection.makefile("rb") as replies:
            connection.sendall(first)
            reply = _reply(replies)
            for line in lines:
                if not reply:
                    break
                connection.sendall(line if isinstance(line, bytes) else f"{line}\r\n".encode())
                reply = _reply(replies)
            return reply

    def session(self, binding="gateway"):
        return smtplib.SMTP(*self.addresses[binding], "client.example", PATIENCE, (self.source(), 0))

    def mailer(self):
        with self.session() as client:
            for sender in (FROM, f"other-{FROM}"):
                client.sendmail(sender, TO, b"Subject: x\r\n\r\n" + b"x" * 3000)
            for domain in DOMAINS[1:]:
                client.sendmail(FROM, f"rcpt@{domain}", b"Subject: x\r\n\r\nx\r\n")
        for wanted in (["fail@test.example"], ["defer@test.example"], [TO, "fail@test.example"]):
            with self.session() as client, contextlib.suppress(smtplib.SMTPException):
                client.sendmail(FROM, wanted, b"Subject: x\r\n\r\nx\r\n")

    def tls(self):
        context = ssl.create_default_context(cafile=self.authority.file)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.maximum_version = version
            session = None
            for _ in range(2):
                with self.connect("implicit") as plain, \
                        context.wrap_socket(plain, server_hostname=MX, session=session) as secure, \
                        secure.makefile("rb") as replies:
                    _reply(replies)
                    secure.sendall(b"EHLO tls.example\r\n")
                    _reply(replies)
                    # Tickets have come with what was read.
                    session = secure.session
                    secure.sendall(b"QUIT\r\n")
                    _reply(replies)
        with self.session() as client:
            client._host = MX  # pylint: disable=protected-access
            client.starttls(context=context)
            client.sendmail(FROM, TO, b"Subject: x\r\n\r\nx\r\n")
        self.say(b"no TLS at all\r\n", binding="implicit", first=b"EHLO x\r\n")
        with self.connect("implicit") as gone:
            gone.sendall(b"\x16\x03\x01")

    def logons(self):
        def plain(user, password):
            return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode()

        def login(user, password):
            return ["AUTH LOGIN", *(base64.b64encode(word.encode()).decode() for word in (user, password))]

        self.say("EHLO x", plain(USER, PASSWORD), "QUIT", binding="relay")
        self.say("EHLO x", *login(USER, PASSWORD), f"MAIL FROM:<{FROM}>", "QUIT", binding="relay")
        self.say("EHLO x", plain(USER, "wrong"), *login(USER, "wrong"), plain("nobody", "x"), plain("nobody", "x"), "QUIT",
                 binding="relay")
        self.say("EHLO x", plain(ELSEWHERE, PASSWORD), "QUIT", binding="relay")
        self.say("EHLO x", plain(AS_ANOTHER, PASSWORD), f"MAIL FROM:<{FROM}>", "QUIT", binding="relay")
        for _ in range(4):
            self.say("EHLO x", *3 * [plain(USER, "wrong")], "QUIT", binding="relay", source=GUESSER)
        self.say("EHLO x", "AUTH GSSAPI", "AUTH LOGIN", "*", "AUTH PLAIN ====", "QUIT", binding="relay")
        self.say("EHLO x", f"MAIL FROM:<{FROM}>", "QUIT", binding="auth-required")
        self.say("EHLO x", f"MAIL FROM:<{FROM}>", "QUIT", binding="tls-required")

    def proxied(self):
        header = f"PROXY TCP4 {self.source()} 192.0.2.1 4711 25\r\n".encode()
        self.say("EHLO x", "QUIT", binding="proxy", source=PROXY, first=header)
        self.say("EHLO x", "QUIT", binding="proxy", source=PROXY, first=b"PROXY UNKNOWN\r\n")
        self.say(binding="proxy", source=PROXY, first=b"EHLO x\r\n")
        self.say(binding="proxy", source=NO_PROXY, first=header)
        self.connect("proxy", PROXY).close()

    def refused(self):
        header = b"Subject: x\r\n\r\n"
        begin = ["EHLO x", f"MAIL FROM:<{FROM}>", f"RCPT TO:<{TO}>"]
        for content in (
            header + b"x" * 120_000,
            b"Subject: x\r\n" + b"X-Header: x\r\n" * 6000 + b"\r\nx",
            b"Received: from a by b; x\r\n" * 70 + header,
            b"Received: from a by mx.test.example; x\r\n" * 20 + header,
        ):
            self.say(*begin, "DATA", content + b"\r\n.\r\n", "QUIT")
        self.say(*begin, *(f"RCPT TO:<{number}@test.example>" for number in range(3)), "QUIT")
        self.say(*begin[:2], "RCPT TO:<somebody@elsewhere.example>", "RCPT TO:<@>", "QUIT")
        self.say("EHLO x", "MAIL FROM:<a b>", "MAIL FROM:<unqualified>", f"MAIL FROM:<{FROM}> SIZE=999999999", "MAIL x", "QUIT")
        self.say("NO", "RCPT", "EHLO x", "DATA", "EXPN x", "NO", "NO")
        self.say("EHLO", "EHLO x", *2 * [f"MAIL FROM:<{FROM}>"], "DATA", "NOOP\rNOOP", "NOOP " + "x" * 5000)
        self.say(*begin, b"BDAT 3\r\nabc", f"MAIL FROM:<{FROM}>", "QUIT")
        self.say("HELO x", "HELP", "NOOP", "VRFY x", "RSET", "RSET x", "QUIT")
        for source in (BLOCKED, BLOCKED_FOR_A_TIME):
            self.say(source=source)
        self.say(binding="elsewhere")
        one = self.source()
        self.say("EHLO x", *22 * [f"MAIL FROM:<{FROM}>", f"RCPT TO:<{TO}>", "DATA", header + b".\r\n"], source=one)

    def silent(self):
        self.say("EHLO x", b"NOO")
        with self.connect() as slow, slow.makefile("rb") as replies:
            while _reply(replies) and not self.stop.wait(0.5):
                slow.sendall(b"NOOP\r\n")

    def crowd(self):
        """More connections than one source, and than all together, may have."""
        one = self.source()
        for sources in ([one] * 12, [self.source() for _ in range(70)]):
            with contextlib.ExitStack() as stack:
                connections = [stack.enter_context(self.connect(source=source)) for source in sources]
                for connection in connections:
                    # The banner, or what comes in its place.
                    connection.recv(100)
        self.stop.wait(2)

    # --- the configuration -----------------------------------------------------------------------

    def reloader(self):
        """One that fails, and one that does not."""
        text = self.users.read_bytes()
        self.users.write_bytes(b"no user\n")
        try:
            self._reload()
        finally:
            self.users.write_bytes(text)
        self._reload()
        self.stop.wait(1)

    def _reload(self):
        run(GATEPOST, "reload", "--spool", self.gateway.spool, code=None)


def _reply(replies):
    """The last line of the next reply; empty at the end."""
    line = replies.readline()
    while line[3:4] == b"-":
        line = replies.readline()
    return line
