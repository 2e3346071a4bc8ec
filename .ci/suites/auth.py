#!/usr/bin/env python3
"""Foreign clients that log in, and the examiners of TLS, against the release binary.

usage: auth.py GATEPOST DIRECTORY [CASE...]

Needs curl, swaks with libauthen-ntlm-perl, msmtp, openssl, sslscan, testssl, from PyPI pyspnego and
impacket for the Python that runs it, and command-injection-tester in PATH. Works in DIRECTORY alone,
on 127.0.0.0/8, on ports that the kernel chooses (and 587 of one address). Every wait is bounded;
nothing depends on how fast anything is. Ends with one line, `N passed, N failed`, and exits 1 when
something failed. A client that is missing is a failure, not a reason to skip.

What is checked everywhere: no password, in no form, stands in what the gateway prints, tells or
stores.
"""

import base64
import contextlib
import random
import re
import smtplib
import ssl
import subprocess
import sys
import time

import auth_tls  # noqa: F401 pylint: disable=unused-import # its cases
from harness import ENVIRONMENT, FROM, GATEPOST, PATIENCE, SCRATCH, TO, case, main, only, queue, run, until
from logons import (HASH_USER, MESSAGE, NOT_OFFERED, NTLM_CLIENTS, NTLM_USER, PASSWORD_CLIENTS, PASSWORDS, REFUSED,
                    V1_CLIENTS, WRONG, by_curl, by_pyspnego, by_smtplib, by_swaks, offered, send, session, smtplib_logon,
                    users_file)
from pki import MX
from secure import SecureGateway

UNRECOGNIZED = "504 5.7.4 Unrecognized authentication type"


def log_in(client, user=NTLM_USER):
    code, text = smtplib_logon(client, "PLAIN", user, PASSWORDS[user])
    assert code == 235, text


def plain(user, password):
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def outcomes(clients, binding, mechanism, expected):
    """Lets every client try every logon; all that came out otherwise."""
    wrong = []
    for name, client in clients.items():
        for (user, password), wanted in expected.items():
            came = client(binding, mechanism, user, password)
            if came != wanted:
                wrong.append(f"{name} by {mechanism} over {binding.way} as {user}: {came}, not {wanted}")
    return wrong


# --- passwords -----------------------------------------------------------------------------------


PASSWORD_LOGONS = {(user, password): None for user, password in PASSWORDS.items() if password.isascii()} | {
    (NTLM_USER, WRONG): REFUSED, (HASH_USER, PASSWORDS[NTLM_USER]): REFUSED, ("nobody", WRONG): REFUSED}


def passwords(kind):
    with SecureGateway(kinds=[kind]) as gateway:
        for count, mechanism in enumerate(("PLAIN", "LOGIN"), 1):
            wrong = outcomes(PASSWORD_CLIENTS, gateway.bindings[kind], mechanism, PASSWORD_LOGONS)
            assert not wrong, "\n".join(wrong)
            sent = 2 * len(PASSWORD_CLIENTS) * count
            assert len(queue(gateway.spool)) == sent, f"{len(queue(gateway.spool))} messages, {sent} were acknowledged"


@case
def passwords_over_starttls():
    passwords("starttls")


@case
def passwords_over_implicit_tls():
    passwords("implicit")


@case
def passwords_in_clear_where_that_is_allowed():
    passwords("clear")


@case
def passwords_beyond_ascii():
    logons = {("ulrike", PASSWORDS["ulrike"]): None, ("ulrike", PASSWORDS["ulrike"].replace("ü", "u")): REFUSED}
    with SecureGateway(kinds=["starttls"]) as gateway:
        wrong = outcomes(PASSWORD_CLIENTS, gateway.bindings["starttls"], "PLAIN", logons)
        assert not wrong, "\n".join(wrong)


@case
def passwords_in_clear_are_neither_asked_for_nor_taken():
    # On a binding without TLS, and on one that waits for STARTTLS.
    with SecureGateway(kinds=["bare", "starttls"]) as gateway:
        for binding in gateway.bindings.values():
            binding.way = "clear"
            for mechanism in ("PLAIN", "LOGIN"):
                wrong = outcomes(PASSWORD_CLIENTS, binding, mechanism, {(NTLM_USER, PASSWORDS[NTLM_USER]): NOT_OFFERED})
                assert not wrong, "\n".join(wrong)
            with session(binding) as client:
                assert offered(client) == ["NTLM"], client.esmtp_features
                for argument in ("PLAIN " + plain(NTLM_USER, PASSWORDS[NTLM_USER]), "PLAIN", "LOGIN", "login"):
                    code, text = client.docmd("AUTH", argument)
                    assert f"{code} {text.decode()}" == UNRECOGNIZED, (argument, code, text)
        assert not queue(gateway.spool)


# --- NTLM ----------------------------------------------------------------------------------------


NTLM_LOGONS = {(NTLM_USER, PASSWORDS[NTLM_USER]): None, (NTLM_USER, WRONG): REFUSED, ("nobody", WRONG): REFUSED,
               # There is no NT hash of this one's.
               (HASH_USER, PASSWORDS[HASH_USER]): REFUSED}


def ntlm(kind):
    with SecureGateway(kinds=[kind]) as gateway:
        binding = gateway.bindings[kind]
        wrong = outcomes(NTLM_CLIENTS, binding, "NTLM", NTLM_LOGONS)
        wrong += outcomes(V1_CLIENTS, binding, "NTLM", {(NTLM_USER, PASSWORDS[NTLM_USER]): REFUSED, (NTLM_USER, WRONG): REFUSED})
        assert not wrong, "\n".join(wrong)
        assert len(queue(gateway.spool)) == len(NTLM_CLIENTS)


@case
def ntlm_in_clear():
    ntlm("bare")


@case
def ntlm_over_starttls():
    ntlm("starttls")


@case
def ntlm_over_implicit_tls():
    ntlm("implicit")


# --- what is offered, said and stored ------------------------------------------------------------


@case
def mechanisms_that_are_offered():
    with SecureGateway() as gateway:
        for kind, wanted in (("bare", ["NTLM"]), ("clear", ["NTLM", "LOGIN", "PLAIN"]), ("starttls", ["NTLM", "LOGIN", "PLAIN"]),
                             ("implicit", ["NTLM", "LOGIN", "PLAIN"])):
            with session(gateway.bindings[kind]) as client:
                assert offered(client)[:len(wanted)] == wanted, f"{kind}: {offered(client)}"
                assert ("starttls" in client.esmtp_features) is False, "under TLS, and where there is none"
        with smtplib.SMTP(*gateway.bindings["starttls"].server.split(":"), timeout=PATIENCE) as client:
            client.ehlo()
            assert offered(client) == ["NTLM"] and "starttls" in client.esmtp_features, client.esmtp_features


@case
def the_dialogue_of_auth():
    name, word = "bm9yYQ==", base64.b64encode(PASSWORDS[NTLM_USER].encode()).decode()
    cancelled, undecodable = "501 5.7.0 Authentication cancelled", "501 5.5.2 Cannot decode response"
    success, user_name, password = "235 2.7.0 Authentication successful", "334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"
    sequence = "503 5.5.1 Bad sequence of commands"
    dialogues = (
            [("AUTH NTLM", "334 NTLM supported"), ("*", cancelled)],
            [("auth ntlm", "334 NTLM supported"), ("!!!", undecodable)],
            [("AUTH NTLM", "334 NTLM supported"), ("AAAA", REFUSED)],
            [("AUTH PLAIN", "334 "), ("*", cancelled)],
            [("AUTH PLAIN", "334 "), (plain(NTLM_USER, PASSWORDS[NTLM_USER]), success), ("AUTH PLAIN", sequence)],
            [("AUTH PLAIN " + plain(NTLM_USER, WRONG), REFUSED), ("AUTH PLAIN " + plain(NTLM_USER, PASSWORDS[NTLM_USER]), success)],
            [("AUTH PLAIN ====", undecodable), ("AUTH PLAIN =", REFUSED)],
            [("AUTH LOGIN", user_name), (name, password), (word, success)],
            [("AUTH login " + name, password), (word, success), ("AUTH NTLM", sequence)],
            [("AUTH LOGIN", user_name), ("*", cancelled)],
            [("AUTH LOGIN", user_name), (name, password), ("*", cancelled)],
            [("AUTH LOGIN", user_name), (name, password), (word[:-1] + "?", undecodable)],
            [("AUTH SECRET", UNRECOGNIZED)],
            [(f"MAIL FROM:<{FROM}>", "250 2.1.0 Sender OK"), ("AUTH NTLM", sequence)],
    )
    with SecureGateway(kinds=["clear"]) as gateway:
        for dialogue in dialogues:
            with session(gateway.bindings["clear"]) as client:
                for command, wanted in dialogue:
                    client.putcmd(command)
                    # As it stands on the wire: a space behind an empty 334 counts.
                    came = client.file.readline().decode()
                    assert came == wanted + "\r\n", f"{command}: {came!r}, not {wanted!r}; {dialogue}"


# As IANA calls the ciphers whose names OpenSSL has of its own.
IANA = {"ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"}


@case
def the_received_field_says_how_it_came():
    old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    for kind, version, authenticated, wanted in (
            ("bare", None, False, "ESMTP"), ("clear", None, True, "ESMTPA"), ("starttls", old, False, "ESMTPS"),
            ("starttls", new, True, "ESMTPSA"), ("implicit", new, False, "ESMTPS"), ("implicit", old, True, "ESMTPSA")):
        with SecureGateway(kinds=[kind]) as gateway:
            with session(gateway.bindings[kind], version=version) as client:
                if authenticated:
                    log_in(client)
                identifier = send(client)
                using = ""
                if version:
                    cipher, spoken, _ = client.sock.cipher()
                    assert client.sock.version() == {old: "TLSv1.2", new: "TLSv1.3"}[version]
                    using = f"(using {spoken} with cipher {IANA.get(cipher, cipher)})\r\n\t"
            _, field, content = only(gateway.spool)
            start = (f"Received: from smtplib.example ([127.0.0.1])\r\n\t{using}"
                     f"by mx.test.example (Gatepost) with {wanted} id {identifier};\r\n\t")
            assert field.startswith(start.encode()), f"{field}, not {start}"
            # Who sent it is nobody's business on the way.
            assert NTLM_USER.encode() not in field, field
            assert content.endswith(b"\r\n\r\nHello.\r\n"), content


# --- limits --------------------------------------------------------------------------------------


def refused_logons(binding, source, count):
    """That many wrong logons, three on a connection; all replies."""
    replies = []
    while len(replies) < count:
        with session(binding, source) as client:
            for _ in range(min(3, count - len(replies))):
                # Refused without a password's hash, which takes its time.
                code, text = client.docmd("AUTH", "NTLM AAAA")
                replies.append(f"{code} {text.decode()}")
    return replies


@case
def logons_that_fail_end_a_session():
    with SecureGateway(kinds=["clear"]) as gateway, session(gateway.bindings["clear"], "127.3.0.1") as client:
        for count in range(4):
            code, text = client.docmd("AUTH", "PLAIN " + plain(NTLM_USER, WRONG))
            wanted = REFUSED if count < 3 else "421 4.7.0 Too many errors on this connection, closing transmission channel"
            assert f"{code} {text.decode()}" == wanted, (count, code, text)
        assert client.file.read() == b""


@case
def logons_that_fail_bar_their_source_for_a_while():
    with SecureGateway(kinds=["clear"]) as gateway:
        binding = gateway.bindings["clear"]
        for last in range(2, 20):
            began = time.monotonic()
            source = f"127.3.0.{last}"
            replies = refused_logons(binding, source, 60)
            assert set(replies) == {REFUSED}, replies
            # It counts by the minute.
            if time.monotonic() - began < 30:
                break
        with session(binding, source) as client:
            # Whatever the password: so that nothing is learned of it.
            for password in (PASSWORDS[NTLM_USER], WRONG):
                code, text = client.docmd("AUTH", "PLAIN " + plain(NTLM_USER, password))
                assert f"{code} {text.decode()}".startswith("454 4.7.0 "), (code, text)
        # Mail without a logon is served, and others are.
        with session(binding, source) as client:
            send(client)
        with session(binding, "127.3.0.1") as client:
            log_in(client)


# --- submission ----------------------------------------------------------------------------------


def submit(client, content):
    assert client.mail(FROM)[0] == 250 and client.rcpt(TO)[0] == 250
    code, text = client.data(content)
    assert code == 250, text
    return text.split()[1].decode()


FIELDS = re.compile(rb"^(Date|Message-ID): (.+)\r\n", re.MULTILINE | re.IGNORECASE)


def submission(gateway, address):
    """What holds on a binding that requires AUTH (RFC 6409, [MS-OXSMTP] v0.1)."""
    with smtplib.SMTP(*address, timeout=PATIENCE) as client:
        client.ehlo()
        for _ in range(2):
            assert client.mail(FROM) == (530, b"5.7.1 Client was not authenticated")
        client.user, client.password = NTLM_USER, PASSWORDS[NTLM_USER]
        client._host = MX  # pylint: disable=protected-access
        client.starttls(context=ssl.create_default_context(cafile=gateway.authority.file))
        client.ehlo()
        assert client.mail(FROM) == (530, b"5.7.1 Client was not authenticated")
        log_in(client)
        bare = submit(client, MESSAGE)
        own = b"Date: Mon, 7 Feb 1994 21:52:25 -0800\r\nMessage-ID: <own@client.example>\r\n"
        kept = submit(client, own + MESSAGE)
        half = submit(client, b"message-id: <half@client.example>\r\n" + MESSAGE)
    messages = queue(gateway.spool)
    header, body = messages[bare][2].split(b"\r\n\r\n", 1)
    fields = {name.lower(): value for name, value in FIELDS.findall(header + b"\r\n")}
    assert fields.keys() == {b"date", b"message-id"} and body == b"Hello.\r\n", messages[bare]
    assert re.fullmatch(rb"(\w{3}, )?\d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", fields[b"date"]), fields
    assert re.fullmatch(rb"<[^<>@ ]+@mx\.test\.example>", fields[b"message-id"]), fields
    assert messages[kept][2] == own + MESSAGE, messages[kept]
    found = FIELDS.findall(messages[half][2])
    assert [name.lower() for name, _ in found].count(b"message-id") == 1 and len(found) == 2, messages[half]


@case
def submission_where_auth_is_required():
    with SecureGateway(kinds=["submission"]) as gateway:
        submission(gateway, gateway.address)


@case
def submission_on_its_own_port():
    host = f"127.5.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
    with SecureGateway(f"--listen={host}:587", kinds=[]) as gateway:
        assert gateway.address == (host, 587), gateway.listening
        submission(gateway, gateway.address)


@case
def nothing_is_added_to_mail_that_is_not_submitted():
    with SecureGateway(kinds=["starttls"]) as gateway:
        with session(gateway.bindings["starttls"]) as client:
            identifier = submit(client, MESSAGE)
        assert queue(gateway.spool)[identifier][2] == MESSAGE


@case
def clients_are_refused_without_a_logon_where_it_is_required():
    with SecureGateway(kinds=["submission"]) as gateway:
        output = run("swaks", "--server", gateway.server, "--from", FROM, "--to", TO, code=23)
        assert b"530 5.7.1 Client was not authenticated" in output, output
        for client, mechanism in ((by_swaks, "LOGIN"), (by_curl, "NTLM"), (by_smtplib, "PLAIN"), (by_pyspnego, "NTLM")):
            came = client(gateway.bindings["submission"], mechanism, NTLM_USER, PASSWORDS[NTLM_USER])
            assert came is None, (client, came)
        assert len(queue(gateway.spool)) == 4


# --- users ---------------------------------------------------------------------------------------


@case
def a_users_file_that_others_may_read_is_refused():
    for mode in (0o644, 0o640, 0o604, 0o660):
        path = users_file()
        path.chmod(mode)
        command = [GATEPOST, "serve", "--hostname=mx.test.example", "--accept-domain=test.example", "--listen=127.0.0.1:0",
                   "--metrics-listen=127.0.0.1:0", "--shards=1", f"--spool={SCRATCH}/spool-users-{mode:o}", f"--users={path}"]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               timeout=PATIENCE, check=False, text=True, env=ENVIRONMENT)
        assert ended.returncode not in (0, -6, 101) and "listening" not in ended.stdout, ended
        assert f"chmod 600 {path}" in ended.stderr, ended.stderr


@case
def users_come_and_go():
    with SecureGateway(kinds=["clear"]) as gateway:
        binding = gateway.bindings["clear"]
        listed = run(GATEPOST, "user", "list", "--users", gateway.users)
        assert all(user.encode() in listed for user in PASSWORDS) and b"$argon2" not in listed, listed
        run(GATEPOST, "user", "remove", "--users", gateway.users, HASH_USER)
        run(GATEPOST, "user", "add", "--users", gateway.users, "--ntlm", "newcomer", input=PASSWORDS[HASH_USER].encode() + b"\n")
        # It sees that by itself.
        until("the new one is known", lambda: by_smtplib(binding, "PLAIN", "newcomer", PASSWORDS[HASH_USER]) is None)
        assert by_pyspnego(binding, "NTLM", "newcomer", PASSWORDS[HASH_USER]) is None
        assert by_smtplib(binding, "PLAIN", HASH_USER, PASSWORDS[HASH_USER]) == REFUSED


@case
def what_a_user_may_do():
    with SecureGateway(kinds=["clear"]) as gateway:
        binding = gateway.bindings["clear"]
        for name, options in (("elsewhere", ["--binding", "1"]), ("here", ["--binding", binding.port, "--sender", "own@client.example"]),
                              ("domain", ["--sender", "client.example", "--sender", ".sub.example"])):
            run(GATEPOST, "user", "add", "--users", gateway.users, *options, name, input=PASSWORDS[HASH_USER].encode())
        gateway.reload()
        until("they are known", lambda: by_smtplib(binding, "PLAIN", "domain", PASSWORDS[HASH_USER]) is None)
        with session(binding) as client:
            argument = "PLAIN " + plain("elsewhere", PASSWORDS[HASH_USER])
            assert client.docmd("AUTH", argument) == (421, b"4.3.2 Service not available")
            assert client.file.read() == b""
        refused = (550, b"5.7.1 Client does not have permissions to submit to this server")
        for user, wanted in (("here", {"own@client.example": True, FROM: False, "": False}),
                             ("domain", {FROM: True, "a@b.sub.example": True, "a@sub.example": False, "a@other.example": False})):
            with session(binding) as client:
                assert client.docmd("AUTH", "PLAIN " + plain(user, PASSWORDS[HASH_USER]))[0] == 235
                for sender, may in wanted.items():
                    assert client.mail(sender) == ((250, b"2.1.0 Sender OK") if may else refused), (user, sender)
                    client.rset()


@case
def no_password_shows_when_it_is_sent_at_the_wrong_place():
    word = base64.b64encode(PASSWORDS[NTLM_USER].encode()).decode()
    whole = plain(NTLM_USER, PASSWORDS[NTLM_USER])
    mistakes = (["AUTH LOGIN", "*", word], [word], [whole], [PASSWORDS[NTLM_USER]], ["AUTH PLAIN " + whole + "?"],
                     ["AUTH NONE " + whole], ["AUTH PLAIN  " + whole], ["AUTH PLAIN " + whole + " x"], ["AUTH PLAIN " + 4000 * whole],
                     ["AUTH PLAIN", whole + "\0"], ["AUTH NTLM", whole],
                     ["AUTH NTLM " + whole], ["AUTH LOGIN " + word, word, word])
    with SecureGateway(kinds=["clear"]) as gateway:
        for commands in mistakes:
            with contextlib.suppress(smtplib.SMTPServerDisconnected), session(gateway.bindings["clear"]) as client:
                for command in commands:
                    client.send(command.encode() + b"\r\n")
                    client.getreply()


if __name__ == "__main__":
    sys.exit(main())
