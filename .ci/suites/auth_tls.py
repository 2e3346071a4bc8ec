"""The gateway's TLS before those who look for faults in it: cases of auth.py."""

import json
import re
import smtplib
import socket
import ssl
import threading
import xml.etree.ElementTree

from harness import FROM, PATIENCE, SCRATCH, TO, case, queue, run, until
from logons import send, session
from pki import MX, Authority
from secure import SecureGateway

# --- examiners -----------------------------------------------------------------------------------


@case
def sslscan_finds_nothing_weak():
    with SecureGateway(kinds=["starttls", "implicit"]) as gateway:
        for binding in gateway.bindings.values():
            path = SCRATCH / f"sslscan-{binding.way}.xml"
            run("sslscan", f"--xml={path}", "--no-colour", f"--sni-name={MX}", "--show-certificate",
                *(["--starttls-smtp"] if binding.way == "starttls" else []), binding.server)
            found = xml.etree.ElementTree.parse(path).getroot().find("ssltest")
            enabled = {(one.get("type"), one.get("version")) for one in found.iter("protocol") if one.get("enabled") == "1"}
            assert enabled == {("tls", "1.2"), ("tls", "1.3")}, f"{binding.way}: {enabled}"
            ciphers = {(one.get("sslversion"), one.get("cipher")): one.get("strength") for one in found.iter("cipher")}
            assert {version for version, _ in ciphers} == {"TLSv1.2", "TLSv1.3"}, ciphers
            assert set(ciphers.values()) <= {"strong", "acceptable"}, ciphers
            assert all(re.match("TLS_(AES|CHACHA)|ECDHE-", name) for _, name in ciphers), ciphers
            assert {one.get("vulnerable") for one in found.iter("heartbleed")} == {"0"}
            assert {one.get("supported") for one in found.iter("compression")} <= {"0"}
            assert all(one.get("supported") == "0" or one.get("secure") == "1" for one in found.iter("renegotiation"))


# Findings that say nothing of the server, each with its reason. Every other one above LOW is a failure.
BESIDE_THE_POINT = {
    "engine_problem": "of the openssl that testssl uses: it cannot do GOST",
    "service": "no web server is found behind implicit TLS, so nothing of HTTP is tried",
    "sessionresumption_ticket": "its client may end before a ticket has come; resumption has a case of its own",
    "sessionresumption_ID": "the same",
}


def testssl(binding, findings):
    path = SCRATCH / f"testssl-{binding.way}.json"
    path.unlink(missing_ok=True)
    # All but what is of HTTP, what clients of old would make of it, and each cipher by itself, which sslscan looks at.
    checks = ["--protocols", "--std", "--pfs", "--server-preference", "--server-defaults", "--vulnerable"]
    transcript = run("testssl", *checks, "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", binding.host,
                     "--add-ca", binding.authority.file, "--jsonfile", path,
                     *(["--starttls", "smtp"] if binding.way == "starttls" else []), f"{MX}:{binding.port}",
                     code=None, timeout=600, cwd=SCRATCH)
    (SCRATCH / f"testssl-{binding.way}.txt").write_bytes(transcript)
    findings[binding.way] = json.loads(path.read_text())


def testssl_faults(gateway):
    """What testssl finds wrong, or has not looked at."""
    findings = {}
    threads = [threading.Thread(target=testssl, args=(binding, findings)) for binding in gateway.bindings.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert findings.keys() == {"starttls", "implicit"}, f"it did not end: see testssl-*.txt in {SCRATCH}"
    faults = []
    for way, found in findings.items():
        by_name = {finding["id"]: finding for finding in found}
        # It has looked at all.
        for name, wanted in (("TLS1_2", "offered"), ("TLS1_3", "offered"), ("TLS1_1", "not offered"), ("TLS1", "not offered"),
                             ("SSLv3", "not offered"), ("SSLv2", "not offered"), ("heartbleed", "not vulnerable"),
                             ("ROBOT", "not vulnerable"), ("CCS", "not vulnerable"),
                             ("secure_renego", "supported"), ("LUCKY13", "not vulnerable"), ("cert_chain_of_trust", "passed")):
            if not by_name.get(name, {"finding": ""})["finding"].startswith(wanted):
                faults.append(f"{way}: {name} is {by_name.get(name)}, not {wanted}")
        for finding in found:
            if finding["severity"] not in ("OK", "INFO", "LOW") and finding["id"] not in BESIDE_THE_POINT:
                faults.append(f"{way}: {finding['severity']} {finding['id']}: {finding['finding']}")
        low = [finding["id"] for finding in found if finding["severity"] == "LOW"]
        print(f"    {way}: {len(found)} findings, rated LOW: {', '.join(low) or 'none'}")
    return faults


@case
def testssl_finds_nothing_above_low():
    with SecureGateway(kinds=["starttls", "implicit"]) as gateway:
        faults = testssl_faults(gateway)
        if faults:
            # Some of its checks give up where a connection takes long: what is wrong is so twice.
            print("    once more:", "; ".join(faults))
            faults = testssl_faults(gateway)
        assert not faults, "\n".join(faults)


# --- commands behind STARTTLS --------------------------------------------------------------------


@case
def the_command_injection_tester_finds_nothing():
    with SecureGateway(kinds=["starttls"]) as gateway:
        host, port = gateway.address
        # It waits this long, again and again, to be sure that nothing comes.
        transcript = run("command-injection-tester", "--smtp", "--smtp-port", port, "--nocolor", "--timeout", "1",
                         "--logdir", SCRATCH / "injection", host).decode()
        assert "Sanity test done" in transcript and "Testing for command injection" in transcript, transcript
        assert "injection here!" not in transcript.replace("Probably no command injection here!", ""), transcript
        assert "Probable command injection" not in transcript and "Probably no command injection here!" in transcript, transcript


@case
def commands_behind_starttls_are_thrown_away():
    injected = f"EHLO injected\r\nMAIL FROM:<{FROM}>\r\nRCPT TO:<{TO}>\r\nDATA\r\nSubject: injected\r\n\r\nx\r\n.\r\n".encode()
    for behind in (injected, b"NOOP\r\n", b"NOOP", b"EHLO " + b"x" * 60_000 + b"\r\n", b"MAIL FROM:<a@b.example>\r\n" * 2000):
        with SecureGateway(kinds=["starttls"]) as gateway, gateway.connect() as plain:
            reader = plain.makefile("rb")
            assert reader.readline().startswith(b"220 ")
            plain.sendall(b"EHLO client.example\r\n")
            while not reader.readline().startswith(b"250 "):
                pass
            plain.sendall(b"STARTTLS\r\n" + behind)
            assert reader.readline() == b"220 2.0.0 SMTP server ready\r\n"
            # Whatever came with it. (What comes in a segment of its own is a part of the handshake, and breaks it.)
            try:
                secure = gateway.bindings["starttls"].context().wrap_socket(plain, server_hostname=MX)
            except (ssl.SSLError, ConnectionError) as failed:
                assert len(behind) > 1000, failed
                continue
            with secure:
                # Its first reply there is to the first command there, which finds nothing of what was before.
                secure.sendall(b"MAIL FROM:<a@b.example>\r\n")
                reader = secure.makefile("rb")
                assert reader.readline() == b"503 5.5.2 Send hello first\r\n"
                secure.sendall(b"EHLO client.example\r\nRCPT TO:<a@b.example>\r\nQUIT\r\n")
                rest = reader.read()
                assert rest.endswith(b"503 5.5.2 Need mail command\r\n221 2.0.0 Service closing transmission channel\r\n"), rest
                assert b"STARTTLS" not in rest, rest
            assert not queue(gateway.spool)
            assert gateway.metric("gatepost_messages_accepted_total") == 0


class Stepwise:
    """A client's end of TLS, whose octets are sent when we say so."""

    def __init__(self, connection, context):
        self.connection, self.incoming, self.outgoing = connection, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=MX)

    def receive(self):
        octets = self.connection.recv(65536)
        assert octets, "the gateway has closed"
        self.incoming.write(octets)

    def shake_hands(self):
        """Up to and with the last message of ours, which is not sent."""
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.connection.sendall(self.outgoing.read())
                self.receive()

    def read_line(self):
        line = b""
        while not line.endswith(b"\n"):
            try:
                line += self.tls.read(1)
            except ssl.SSLWantReadError:
                self.receive()
        return line


@case
def what_comes_with_the_end_of_the_handshake_is_served():
    # With the inactivity limit away, one that were not would wait for ever.
    with SecureGateway("--inactivity-timeout=0", "--connection-timeout=0", kinds=["starttls", "implicit"]) as gateway:
        for binding in gateway.bindings.values():
            for size in (None, 1, 1000):
                with socket.create_connection((binding.host, binding.port), PATIENCE) as connection:
                    if binding.way == "starttls":
                        reader = connection.makefile("rb")
                        connection.sendall(b"EHLO client.example\r\n")
                        while not reader.readline().startswith(b"250 "):
                            pass
                        connection.sendall(b"STARTTLS\r\n")
                        assert reader.readline().startswith(b"220 2.0.0")
                    client = Stepwise(connection, binding.context(ssl.TLSVersion.TLSv1_3))
                    client.shake_hands()
                    client.tls.write(b"EHLO client.example\r\n")
                    octets = client.outgoing.read()
                    for at in range(0, len(octets), size or len(octets)):
                        connection.sendall(octets[at:at + (size or len(octets))])
                    if binding.way == "implicit":
                        assert client.read_line().startswith(b"220 ")
                    assert client.read_line().startswith(b"250-mx.test.example Hello ")


@case
def where_tls_is_required_nothing_goes_without():
    with SecureGateway(kinds=["tls-required", "bare"]) as gateway:
        with smtplib.SMTP(*gateway.address, timeout=PATIENCE) as client:
            client.ehlo()
            assert "auth" not in client.esmtp_features and "starttls" in client.esmtp_features, client.esmtp_features
            for command in (("MAIL", f"FROM:<{FROM}>"), ("AUTH", "NTLM"), ("AUTH", "PLAIN")):
                assert client.docmd(*command) == (451, b"5.7.3 Must issue a STARTTLS command first"), command
        with session(gateway.bindings["tls-required"]) as client:
            assert client.docmd("STARTTLS") == (503, b"5.5.1 Bad sequence of commands")
            send(client)
        with smtplib.SMTP(*gateway.listening[1], timeout=PATIENCE) as client:
            client.ehlo()
            assert client.docmd("STARTTLS", "now")[0] == 502
            assert client.docmd("STARTTLS") == (502, b"5.5.1 Command not implemented")
        assert len(queue(gateway.spool)) == 1


@case
def a_handshake_that_fails_ends_its_session_alone():
    with SecureGateway(kinds=["starttls", "implicit"]) as gateway:
        for kind, before in (("starttls", b"EHLO x\r\nSTARTTLS\r\n"), ("implicit", b"")):
            address = (gateway.bindings[kind].host, gateway.bindings[kind].port)
            for octets in (b"EHLO x\r\nQUIT\r\n" * 10, b"\x16\x03\x01\xff\xff" + b"\0" * 70_000, b"\x16\x03\x01\0\x05\x01\0\0\0\0", b""):
                with socket.create_connection(address, PATIENCE) as connection:
                    reader = connection.makefile("rb")
                    if before:
                        connection.sendall(before)
                        while not reader.readline().startswith(b"220 2.0.0"):
                            pass
                    try:
                        connection.sendall(octets)
                        connection.shutdown(socket.SHUT_WR)
                        rest = reader.read()
                    except ConnectionError:
                        rest = b""
                    # An alert at most, and nothing in clear.
                    assert not re.search(rb"\d\d\d[ -]", rest), rest
        with session(gateway.bindings["starttls"]) as client:
            send(client)
        gateway.until_empty()


# --- openssl s_client ----------------------------------------------------------------------------


def s_client(binding, *options, code=0, name=MX, host=None):
    """A session of openssl's, in which it asks for a certificate of this name and takes that of `host`; what it prints."""
    starttls = ["-starttls", "smtp"] if binding.way == "starttls" else []
    # Its own commands are in upper case.
    return run("openssl", "s_client", "-connect", binding.server, *starttls, "-CAfile", binding.authority.file, "-ign_eof",
               "-verify_return_error", *(["-servername", name, "-verify_hostname", host or name] if name else ["-noservername"]), *options,
               input=b"ehlo s-client.example\r\nquit\r\n", code=code, both=True).decode()


@case
def sessions_are_resumed_on_every_shard():
    with SecureGateway("--shards=2", kinds=["starttls", "implicit"]) as gateway:
        for binding in gateway.bindings.values():
            for version in ("-tls1_2", "-tls1_3"):
                path = SCRATCH / f"session{version}-{binding.way}"
                first = s_client(binding, version, "-sess_out", path)
                assert "New, TLSv1." in first and "221 2.0.0 " in first, first
                # Each goes to one of two shards: that all of 30 meet the first one's has a chance of one in a thousand million.
                for number in range(30):
                    again = s_client(binding, version, "-sess_in", path, "-sess_out", path)
                    assert "Reused, TLSv1." in again and "221 2.0.0 " in again, f"{number}: {again}"


@case
def the_certificate_is_the_one_that_is_asked_for():
    authority = Authority()
    first, second = authority.issue(MX), authority.issue("mail.other.example", "*.wild.example")
    with SecureGateway(kinds=["starttls", "implicit"], authority=authority, certificates=[first, second]) as gateway:
        for binding in gateway.bindings.values():
            for name, wanted in ((MX, MX), ("mail.other.example", "mail.other.example"), ("MX.test.Example", MX),
                                 ("a.wild.example", "mail.other.example")):
                assert f"CN = {wanted}" in s_client(binding, name=name), (binding.way, name)
            # The first one is for all else.
            assert f"CN = {MX}" in s_client(binding, name=None)
            assert f"CN = {MX}" in s_client(binding, name="unknown.example", host=MX)


@case
def only_smtp_is_spoken_behind_tls():
    with SecureGateway(kinds=["starttls", "implicit"]) as gateway:
        for binding in gateway.bindings.values():
            assert "No ALPN negotiated" in s_client(binding)
            for protocols in ("smtp", "h2,smtp"):
                output = s_client(binding, "-alpn", protocols)
                assert "ALPN protocol: smtp" in output and "221 2.0.0 " in output, output
            for version in ("-tls1_2", "-tls1_3"):
                output = s_client(binding, "-alpn", "h2", version, code=1)
                assert "alert no application protocol" in output and "221 2.0.0 " not in output, output


def common_name(binding):
    return re.search(r"subject=CN = (\S+)", s_client(binding, "-verify", "1", name=None))[1]


@case
def a_certificate_is_replaced_while_it_runs():
    authority = Authority()
    used, other = authority.issue(MX), authority.issue("renewed.example")
    with SecureGateway(kinds=["starttls", "implicit"], authority=authority, certificates=[used]) as gateway:
        bindings = gateway.bindings.values()
        assert [common_name(binding) for binding in bindings] == [MX, MX]
        path = SCRATCH / "session-before"
        s_client(gateway.bindings["implicit"], "-sess_out", path)
        with session(gateway.bindings["starttls"]) as one, session(gateway.bindings["implicit"]) as two, \
                smtplib.SMTP(*gateway.address, timeout=PATIENCE) as waiting:
            waiting.ehlo()
            # One that does not fit: what was goes on, and it says why.
            used.file.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
            gateway.reload()
            until("it has said so", lambda: any(str(used.file) in line for line in gateway.errors))
            assert [common_name(binding) for binding in bindings] == [MX, MX]
            used.replace(other)
            gateway.reload()
            for binding in bindings:
                until("it has the new one", lambda binding=binding: common_name(binding) == "renewed.example")
            for client in (one, two):
                send(client)
            # It began before, its handshake comes after.
            waiting._host = "renewed.example"  # pylint: disable=protected-access
            waiting.starttls(context=gateway.bindings["starttls"].context())
            waiting.ehlo()
            send(waiting)
            assert len(queue(gateway.spool)) == 3
