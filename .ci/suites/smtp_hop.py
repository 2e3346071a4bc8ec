"""An SMTP server that can be told to misbehave, and that records every octet it gets, and whether it was under TLS."""

import base64
import os
import re
import socket
import ssl
import threading

import spnego

from harness import PATIENCE, SCRATCH


class Message:
    """A message as it came: whether under TLS, and from whom."""

    def __init__(self, sender, recipients, octets, secure, user):
        self.sender, self.recipients, self.octets, self.secure, self.user = sender, recipients, octets, secure, user


class Logon(Exception):
    """A reply that ends an AUTH."""


class Hop:
    """A server on a port of its own, a thread for each connection.

    `certificate` makes it offer STARTTLS, which `starttls` changes: "hidden" is not offered and not
    known, "refused" is offered and refused with 454, "broken" is offered and then no handshake,
    "injected" has replies of an attacker's behind its 220, in the same segment. `mechanisms` are
    offered once `users` are given, and AUTH is then needed; in clear only with `clear_auth`.
    `named` is what stands in the 334 to an AUTH NTLM without a first message.
    """

    host = "127.0.0.5"

    def __init__(self, certificate=None, starttls="offered", users=None, mechanisms=("PLAIN", "LOGIN", "NTLM"),
                 clear_auth=False, named="NTLM supported", context=None):
        self.starttls, self.users, self.mechanisms = starttls, users, mechanisms
        self.clear_auth, self.named = clear_auth, named
        self.certificate = certificate
        self.context = context
        if certificate and not context:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate.file, certificate.key)
        self.clear, self.secret, self.messages, self.logons, self.failures = [], [], [], [], []
        self.connections = 0
        self.listener = socket.create_server((self.host, 0), backlog=100)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def server(self):
        return f"{self.host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.listener.close()
        if failure:
            print(f"--- the next hop on {self.server}: {self.connections} connections, logons {self.logons}")
            print(f"in clear: {self.clear_text()[-1000:]!r}\nunder TLS: {self.secret_text()[-1000:]!r}")
            print("".join(f"{error}\n" for error in self.failures), flush=True)

    def clear_text(self):
        return b"".join(self.clear)

    def secret_text(self):
        return b"".join(self.secret)

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        connection.settimeout(PATIENCE)
        try:
            Session(self, connection).serve()
        except (OSError, EOFError) as error:
            self.failures.append(repr(error))
        finally:
            connection.close()


class Session:
    """A connection to it."""

    def __init__(self, hop, connection):
        self.hop, self.connection = hop, connection
        self.secure, self.user, self.buffer = False, None, b""
        self.forget()

    def forget(self):
        self.sender, self.recipients, self.octets = None, [], b""

    def fill(self):
        octets = self.connection.recv(65536)
        if not octets:
            raise EOFError("the client has closed")
        (self.hop.secret if self.secure else self.hop.clear).append(octets)
        self.buffer += octets

    def line(self):
        while b"\r\n" not in self.buffer:
            self.fill()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode("latin-1")

    def exactly(self, count):
        while len(self.buffer) < count:
            self.fill()
        octets, self.buffer = self.buffer[:count], self.buffer[count:]
        return octets

    def data(self):
        while not (end := re.search(rb"(?:^|\r\n)\.\r\n", self.buffer)):
            self.fill()
        octets = self.buffer[:end.start()] + (b"\r\n" if end.start() else b"")
        self.buffer = self.buffer[end.end():]
        return re.sub(rb"^\.", b"", octets, flags=re.MULTILINE)

    def reply(self, *lines):
        text = "".join(f"{line}\r\n" for line in lines)
        self.connection.sendall(text.encode())

    def serve(self):
        self.reply("220 hop.example ESMTP")
        while True:
            verb, _, argument = self.line().partition(" ")
            handler = getattr(self, "on_" + verb.lower(), None)
            if verb.upper() == "QUIT":
                return self.on_quit()
            if not handler:
                self.reply("500 5.5.1 What?")
            elif handler(argument) is False:
                return None

    def on_quit(self):
        self.reply("221 2.0.0 Bye")
        if self.secure:
            self.connection.unwrap()

    def on_ehlo(self, _):
        self.forget()
        words = ["hop.example", "PIPELINING", "8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES"]
        if self.hop.context and not self.secure and self.hop.starttls != "hidden":
            words.append("STARTTLS")
        if self.hop.users and (self.secure or self.hop.clear_auth):
            words.append("AUTH " + " ".join(self.hop.mechanisms))
        self.reply(*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}")

    def on_helo(self, _):
        self.forget()
        self.reply("250 hop.example")

    def on_starttls(self, _):
        if not self.hop.context or self.secure or self.hop.starttls == "hidden":
            return self.reply("502 5.5.1 Not implemented")
        if self.hop.starttls == "refused":
            return self.reply("454 4.7.0 TLS not available")
        if self.hop.starttls == "broken":
            self.reply("220 2.0.0 Go ahead")
            self.connection.recv(65536)
            self.connection.sendall(b"This is no handshake, whatever was said before it.\r\n")
            return False
        if self.hop.starttls == "injected":
            self.reply("220 2.0.0 Go ahead", "250-evil.example", "250-AUTH PLAIN", "250 SIZE 1", "235 2.7.0 Injected", "550 5.7.1 Injected")
        else:
            self.reply("220 2.0.0 Go ahead")
        # What stands behind the command is not ours to serve.
        self.buffer = b""
        self.connection = self.hop.context.wrap_socket(self.connection, server_side=True)
        self.secure = True
        return None

    def on_auth(self, argument):
        mechanism, _, first = argument.partition(" ")
        if not self.hop.users or mechanism.upper() not in self.hop.mechanisms or not (self.secure or self.hop.clear_auth):
            return self.reply("504 5.5.4 Unrecognized authentication type")
        try:
            user = getattr(self, "logon_" + mechanism.lower())(first)
        except Logon as refused:
            self.hop.logons.append((mechanism.upper(), None))
            return self.reply(str(refused))
        self.hop.logons.append((mechanism.upper(), user))
        self.user = user
        return self.reply("235 2.7.0 Welcome")

    def ask(self, text):
        self.reply(f"334 {text}")
        return self.decode(self.line())

    def decode(self, line):
        if line == "*":
            raise Logon("501 5.7.0 Cancelled")
        try:
            return base64.b64decode("" if line == "=" else line, validate=True)
        except ValueError:
            raise Logon("501 5.5.2 Not base64") from None

    def verify(self, user, password):
        if self.hop.users.get(user.decode()) != password.decode():
            raise Logon("535 5.7.8 No")
        return user.decode()

    def logon_plain(self, first):
        parts = (self.decode(first) if first else self.ask("")).split(b"\0")
        if len(parts) != 3:
            raise Logon("535 5.7.8 Three parts are asked for")
        return self.verify(*parts[1:])

    def logon_login(self, first):
        user = self.decode(first) if first else self.ask("VXNlcm5hbWU6")
        return self.verify(user, self.ask("UGFzc3dvcmQ6"))

    def logon_ntlm(self, first):
        known = SCRATCH / f"ntlm-users-{self.hop.port}"
        # Of no domain.
        known.write_text("".join(f":{user}:{password}\n" for user, password in self.hop.users.items()))
        os.environ["NTLM_USER_FILE"] = str(known)
        acceptor = spnego.server(protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
        token = self.decode(first) if first else self.ask(self.hop.named)
        try:
            while (answer := acceptor.step(token)) is not None or not acceptor.complete:
                token = self.ask(base64.b64encode(answer or b"").decode())
        except spnego.exceptions.SpnegoError as error:
            self.hop.failures.append(str(error))
            raise Logon("535 5.7.3 No") from None
        return acceptor.client_principal

    def on_mail(self, argument):
        if self.hop.users and not self.user:
            return self.reply("530 5.7.0 Authentication required")
        self.sender = argument
        return self.reply("250 2.1.0 OK")

    def on_rcpt(self, argument):
        if self.sender is None:
            return self.reply("503 5.5.1 MAIL first")
        self.recipients.append(argument)
        return self.reply("250 2.1.5 OK")

    def taken(self, octets):
        self.hop.messages.append(Message(self.sender, self.recipients, octets, self.secure, self.user))
        self.forget()
        self.reply("250 2.0.0 Taken")

    def on_data(self, _):
        if not self.recipients:
            return self.reply("503 5.5.1 RCPT first")
        self.reply("354 Go on")
        return self.taken(self.data())

    def on_bdat(self, argument):
        count, _, last = argument.partition(" ")
        octets = self.exactly(int(count))
        if not self.recipients:
            return self.reply("503 5.5.1 RCPT first")
        self.octets += octets
        return self.taken(self.octets) if last else self.reply("250 2.0.0 Chunk")

    def on_rset(self, _):
        self.forget()
        self.reply("250 2.0.0 OK")

    def on_noop(self, _):
        self.reply("250 2.0.0 OK")
