#!/usr/bin/env python3
"""Mail from the release binary into next hops that ask for TLS and AUTH, none of them ours but one.

usage: next_hop_auth.py GATEPOST DIRECTORY [CASE...]

Next hops: Exim (GATEPOST_EXIM says where), a Postfix of its own, a server in Python whose NTLM is
pyspnego's and which can be told to misbehave, and the gateway itself. Works in DIRECTORY alone (the
servers' own users must be able to get there), on 127.0.0.0/8. Every wait is bounded; nothing depends
on how fast anything is. Ends with one line, `N passed, N failed`, and exits 1 when something failed.

What is checked everywhere: what is delivered is whole and there once, what is not waits in the
queue, and no password stands in what the gateway prints, tells or stores.
"""

import base64
import os
import re
import smtplib
import subprocess
import sys
from pathlib import Path

from exim import Exim
from harness import ENVIRONMENT, FROM, GATEPOST, PATIENCE, SCRATCH, TO, case, main, queue, run, same, until
from logons import HASH_USER, NTLM_USER, PASSWORDS, WRONG
from next_hops import UNLIMITED, Mail, NextHop, Postfix, check, delivered
from pki import Authority, self_signed
from secure import DiscreetGateway, SecureGateway
from smtp_hop import Hop

NAME = "hop.example"
USERS = {user: password for user, password in PASSWORDS.items() if password.isascii()}
# What must not be seen on the way: of the envelope, of the header, of the body.
TELLTALES = (FROM.encode(), TO.encode(), b"Confidential", b"nobody else")
CONTENT = b"From: a@b.example\r\nSubject: Confidential\r\n\r\n.\r\nFor nobody else.\r\n"
NEGOTIATE = base64.b64encode(b"NTLMSSP\0\1\0\0\0")[:14]


# --- the gateway that sends ----------------------------------------------------------------------


def auth_file(user, password):
    path = Path(run("mktemp", SCRATCH / "auth-XXXXXX").decode().strip())
    path.write_text(f"{user}:{password}\n", encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def forwarder(server, *attributes, logon=None):
    """A gateway whose next hop this is, with the attributes of its option."""
    if logon:
        attributes += (f"auth-file={auth_file(*logon)}",)
    return DiscreetGateway(",".join([f"--next-hop={server}", *attributes]), "--ack-delay=0", *UNLIMITED)


def trusting(authority, name=NAME):
    return ["tls=required", f"ca={authority.file}", *([f"tls-name={name}"] if name else [])]


def submit(gateway):
    with smtplib.SMTP(*gateway.address, timeout=PATIENCE) as client:
        assert not client.sendmail(FROM, [TO], CONTENT)


def arrives(hop, *attributes, logon=None, secure=True, user=None):
    """Whether a message arrives there, whole, once, and as it should."""
    before = len(hop.messages)
    with forwarder(hop.server, *attributes, logon=logon) as gateway:
        submit(gateway)
        delivered(gateway)
        assert not queue(gateway.spool)
        message, = hop.messages[before:]
        same(Mail(message.sender, message.recipients, message.octets).content, CONTENT)
        assert message.sender.split()[0] == f"FROM:<{FROM}>" and message.recipients == [f"TO:<{TO}>"], vars(message)
        assert (message.secure, message.user) == (secure, user), (message.secure, message.user)
        if secure:
            unseen(hop)
        return gateway


def unseen(hop):
    """Whether nothing of the message has gone there in clear."""
    seen = [word for word in TELLTALES if word in hop.clear_text()]
    assert not seen, f"{seen} in clear: {hop.clear_text()!r}"


def waits(hop, *attributes, logon=None):
    """Whether the message stays where it is, however often that is tried."""
    with forwarder(hop.server, *attributes, logon=logon) as gateway:
        submit(gateway)
        begun = hop.connections
        until("it has been tried again", lambda: hop.connections >= begun + 3)
        assert not hop.messages, vars(hop.messages[0])
        waiting, = queue(gateway.spool).values()
        same(waiting[2], CONTENT)
        assert waiting[0] == f"from=<{FROM}> to=<{TO}>", waiting
    unseen(hop)
    assert not [word for word in TELLTALES if word in hop.secret_text()], hop.secret_text()


# --- TLS -----------------------------------------------------------------------------------------


@case
def tls_that_is_required_and_right():
    authority = Authority()
    for names, name in (((NAME,), NAME), (("*.wild.example", "x.example"), "one.wild.example"), ((Hop.host,), None)):
        with Hop(authority.issue(*names)) as hop:
            arrives(hop, *trusting(authority, name))


@case
def tls_that_is_required_and_not_to_be_trusted():
    authority, stranger = Authority(), Authority()
    for certificate, name in ((authority.issue("other.example"), NAME), (authority.issue(NAME), None), (stranger.issue(NAME), NAME),
                              (self_signed(NAME), NAME)):
        with Hop(certificate) as hop:
            waits(hop, *trusting(authority, name))
            assert b"STARTTLS\r\n" in hop.clear_text()
    # The machine's authorities do not know ours.
    with Hop(authority.issue(NAME)) as hop:
        waits(hop, "tls=required", f"tls-name={NAME}")


@case
def tls_that_is_required_and_cannot_be_had():
    authority = Authority()
    certificate = authority.issue(NAME)
    for hop in (Hop(), Hop(certificate, starttls="hidden"), Hop(certificate, starttls="refused"), Hop(certificate, starttls="broken")):
        with hop:
            waits(hop, *trusting(authority), logon=(NTLM_USER, PASSWORDS[NTLM_USER]))
            assert b"AUTH" not in hop.clear_text() and b"MAIL" not in hop.clear_text(), hop.clear_text()


@case
def tls_that_is_optional():
    authority = Authority()
    for certificate in (self_signed("optional.example"), authority.issue("other.example")):
        for attributes in ((), ("tls=optional",)):
            with Hop(certificate) as hop:
                arrives(hop, *attributes)
    certificate = authority.issue(NAME)
    for hop in (Hop(), Hop(certificate, starttls="hidden"), Hop(certificate, starttls="refused"), Hop(certificate, starttls="broken")):
        with hop:
            arrives(hop, "tls=optional", secure=False)


@case
def tls_that_is_off():
    with Hop(self_signed("off.example")) as hop:
        arrives(hop, "tls=off", secure=False)
        assert b"STARTTLS" not in hop.clear_text()


@case
def replies_injected_before_the_handshake_have_no_effect():
    authority = Authority()
    certificate = authority.issue(NAME)
    for users in (None, USERS):
        logon = (NTLM_USER, PASSWORDS[NTLM_USER]) if users else None
        with Hop(certificate, starttls="injected", users=users) as hop:
            with forwarder(hop.server, *trusting(authority), logon=logon) as gateway:
                submit(gateway)
                # They are thrown away, or the connection is: both will do.
                until("it arrives or is tried again", lambda hop=hop: hop.messages or hop.connections >= 3)
                if hop.messages:
                    delivered(gateway)
                    message, = hop.messages
                    same(Mail(message.sender, message.recipients, message.octets).content, CONTENT)
                    assert message.secure and message.user == (NTLM_USER if users else None), vars(message)
                else:
                    waiting, = queue(gateway.spool).values()
                    same(waiting[2], CONTENT)
                print(f"    {'with' if users else 'without'} AUTH: {'thrown away' if hop.messages else 'the connection ends'}")
            unseen(hop)


# --- AUTH ----------------------------------------------------------------------------------------


@case
def every_mechanism_under_tls():
    authority = Authority()
    certificate = authority.issue(NAME)
    for mechanism in ("PLAIN", "LOGIN", "NTLM"):
        for user, password in USERS.items():
            with Hop(certificate, users=USERS, mechanisms=[mechanism]) as hop:
                arrives(hop, *trusting(authority), logon=(user, password), user=user)
                assert hop.logons == [(mechanism, user)], hop.logons


@case
def ntlm_in_clear_as_the_page_has_it():
    with Hop(users=USERS, mechanisms=["NTLM"], clear_auth=True) as hop:
        arrives(hop, "tls=off", logon=(NTLM_USER, PASSWORDS[NTLM_USER]), secure=False, user=NTLM_USER)
        # Without an initial response, and the first message only when it is asked for.
        assert re.search(rb"AUTH NTLM\r\n" + re.escape(NEGOTIATE), hop.clear_text()), hop.clear_text()


@case
def ntlm_that_is_answered_for_another_mechanism():
    for named in ("FOO supported", "PLAIN supported", "NTLMX supported"):
        with Hop(users=USERS, mechanisms=["NTLM"], clear_auth=True, named=named) as hop:
            waits(hop, "tls=off", logon=(NTLM_USER, PASSWORDS[NTLM_USER]))
            assert b"AUTH NTLM\r\n" in hop.clear_text() and NEGOTIATE not in hop.clear_text(), hop.clear_text()


@case
def passwords_that_are_wrong():
    authority = Authority()
    certificate = authority.issue(NAME)
    for mechanism in ("PLAIN", "LOGIN", "NTLM"):
        with Hop(certificate, users=USERS, mechanisms=[mechanism]) as hop:
            waits(hop, *trusting(authority), logon=(NTLM_USER, WRONG))
            assert set(hop.logons) == {(mechanism, None)}, hop.logons


@case
def passwords_go_in_clear_only_where_tls_is_off():
    logon = HASH_USER, PASSWORDS[HASH_USER]
    word = base64.b64encode(logon[1].encode())[:12]
    whole = base64.b64encode("\0".join(["", *logon]).encode())[:16]
    for mechanism in ("PLAIN", "LOGIN"):
        with Hop(users=USERS, mechanisms=[mechanism], clear_auth=True) as hop:
            waits(hop, "tls=optional", logon=logon)
            assert word not in hop.clear_text() and whole not in hop.clear_text(), hop.clear_text()
        with Hop(users=USERS, mechanisms=[mechanism], clear_auth=True) as hop:
            arrives(hop, "tls=off", logon=logon, secure=False, user=HASH_USER)


@case
def a_next_hop_without_auth_does_not_get_mail_meant_for_one_with():
    with Hop(self_signed("without-auth.example")) as hop:
        waits(hop, "tls=optional", logon=(NTLM_USER, PASSWORDS[NTLM_USER]))


@case
def an_auth_file_that_others_may_read_is_refused():
    path = auth_file(NTLM_USER, PASSWORDS[NTLM_USER])
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)
        command = [GATEPOST, "serve", "--hostname=mx.test.example", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
                   f"--spool={SCRATCH}/spool-auth-{mode:o}", f"--next-hop=127.0.0.1:9,auth-file={path}"]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               timeout=PATIENCE, check=False, text=True, env=ENVIRONMENT)
        assert ended.returncode not in (0, -6, 101) and "listening" not in ended.stdout, ended
        assert f"chmod 600 {path}" in ended.stderr and PASSWORDS[NTLM_USER] not in ended.stderr, ended.stderr


# --- Exim and Postfix ----------------------------------------------------------------------------


class EximHop(NextHop):
    """An Exim that takes mail from those who log in under TLS, and files it."""

    def __init__(self, certificate, mechanism):
        super().__init__()
        mail = self.directory / "mail"
        mail.mkdir()
        user, password = {"PLAIN": ("$auth2", "$auth3"), "LOGIN": ("$auth1", "$auth2")}[mechanism]
        known = " ".join(f"{name}={word}" for name, word in USERS.items())
        for part in (mail, self.directory):
            os.chown(part, Exim.UID, Exim.UID)
        self.exim = Exim(f"{self.directory.name}-exim", f"""
tls_advertise_hosts = *
tls_certificate = {self.its_own(certificate.file)}
tls_privatekey = {self.its_own(certificate.key)}
local_interfaces = {self.host}.{self.port}
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
acl_smtp_mail = check
acl_smtp_rcpt = check
deliver_drop_privilege = true
chunking_advertise_hosts = *
begin acl
check:
  deny message = log in first
       !authenticated = *
  accept
begin routers
file:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  directory = {mail}
  maildir_format = true
  create_directory
  envelope_to_add
  return_path_add
  user = {Exim.USER}
  use_crlf
begin authenticators
one:
  driver = plaintext
  public_name = {mechanism}
  server_prompts = {":" if mechanism == "PLAIN" else "Username:: : Password::"}
  server_condition = ${{if eq{{{password}}}{{${{extract{{{user}}}{{{known}}}{{$value}}fail}}}}}}
  server_set_id = {user}
""")

    def its_own(self, file):
        """A copy that it may read."""
        copy = self.directory / file.name
        copy.write_bytes(file.read_bytes())
        os.chown(copy, Exim.UID, Exim.UID)
        return copy

    def command(self):
        return self.exim.command("-bdf")

    def mails(self):
        found = []
        for path in sorted((self.directory / "mail" / "new").iterdir()):
            octets = path.read_bytes()
            own = re.search(rb"^Received: .*\n(?:[ \t].*\n)*", octets, re.MULTILINE)
            found.append(Mail(re.match(rb"Return-path: (.*)\r\n", octets)[1].decode(), [], octets[own.end():]))
        return found


@case
def exim_by_plain_and_by_login():
    authority = Authority()
    certificate = authority.issue(NAME)
    for mechanism in ("PLAIN", "LOGIN"):
        with EximHop(certificate, mechanism) as hop:
            for user, password in USERS.items():
                with forwarder(hop.server, *trusting(authority), logon=(user, password)) as gateway:
                    submit(gateway)
                    delivered(gateway)
                until(f"it is logged: {hop.exim.log()}",
                      lambda hop=hop, user=user: re.search(rf" <= {FROM} .* X=TLS1\.3:.* A=one:{user} ", hop.exim.log()))
            until("they are filed", lambda hop=hop: (hop.directory / "mail" / "new").is_dir() and len(hop.mails()) == len(USERS))
            check(hop.mails(), [CONTENT] * len(USERS))
            with forwarder(hop.server, *trusting(authority), logon=(NTLM_USER, WRONG)) as gateway:
                submit(gateway)
                until("it is refused twice", lambda hop=hop: hop.exim.log().count("one authenticator failed for") >= 2)
                assert len(queue(gateway.spool)) == 1


@case
def postfix_under_tls():
    authority = Authority()
    certificate = authority.issue(NAME)
    settings = [f"smtpd_tls_cert_file = {certificate.file}", f"smtpd_tls_key_file = {certificate.key}",
                "smtpd_tls_security_level = encrypt", "smtpd_tls_loglevel = 1", "smtpd_tls_received_header = yes"]
    with Postfix(*settings) as postfix:
        for server in (postfix.server, postfix.plain_server):
            with forwarder(server, *trusting(authority)) as gateway:
                for _ in range(20):
                    submit(gateway)
                delivered(gateway)
        check(postfix.mails(), [CONTENT] * 40)
        assert "TLS connection established" in postfix.log_text(), postfix.log_text()
        with forwarder(postfix.server, "tls=off") as gateway:
            submit(gateway)
            until("it is refused", lambda: "530 5.7.0 Must issue a STARTTLS" in "".join(gateway.errors) or
                  gateway.metric("gatepost_queue_messages") == 1)
            assert len(queue(gateway.spool)) == 1


# --- the gateway itself --------------------------------------------------------------------------


def into_ourselves(authority, kind, user, wanted):
    with SecureGateway(kinds=[kind], certificates=[authority.issue(NAME)], authority=authority) as receiver:
        tls = trusting(authority) if receiver.bindings[kind].way == "starttls" else ["tls=off"]
        with forwarder(receiver.server, *tls, logon=(user, PASSWORDS[user])) as gateway:
            submit(gateway)
            delivered(gateway)
        (envelope, field, content), = queue(receiver.spool).values()
        assert envelope == f"from=<{FROM}> to=<{TO}>" and b" with %s" % wanted in field, (envelope, field)
        assert content.endswith(CONTENT), content


@case
def the_gateway_by_each_mechanism():
    authority = Authority()
    for kind, user, wanted in (("bare", NTLM_USER, b"ESMTPA"), ("starttls", NTLM_USER, b"ESMTPSA"), ("starttls", HASH_USER, b"ESMTPSA"),
                               ("tls-required", NTLM_USER, b"ESMTPSA")):
        into_ourselves(authority, kind, user, wanted)


@case
def the_gateway_refuses_what_has_no_nt_hash():
    with SecureGateway(kinds=["bare"]) as receiver:
        with forwarder(receiver.server, "tls=off", logon=(HASH_USER, PASSWORDS[HASH_USER])) as gateway:
            submit(gateway)
            accepted = lambda: receiver.metric("gatepost_connections_accepted_total")
            until("it has been tried again", lambda: accepted() >= 2)
            assert len(queue(gateway.spool)) == 1
        assert not queue(receiver.spool)


if __name__ == "__main__":
    sys.exit(main())
