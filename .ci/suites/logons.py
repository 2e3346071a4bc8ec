"""Clients that log in, none of them ours, and the users they log in as.

Each client sends one message over a binding and says what came of it: `None`, or the refusal. It
must exit as it does when it is refused, and its transcript must show the reply.
"""

import base64
import functools
import re
import smtplib
import ssl
from pathlib import Path

import spnego
from impacket import ntlm

from harness import FROM, GATEPOST, PATIENCE, SCRATCH, TO, run
from pki import MX

# With an NT hash, and without.
NTLM_USER, HASH_USER = "nora", "paul"
PASSWORDS = {NTLM_USER: "Nightjar.4711-Zz", HASH_USER: "Kingfisher!0815+Y", "ulrike": "Grünspecht:Öl 2 3"}
WRONG = "Woodpecker-is-wrong9"
REFUSED = "535 5.7.3 Authentication unsuccessful"
NOT_OFFERED = "not offered"
MESSAGE = b"From: sender@client.example\r\nSubject: logon\r\n\r\nHello.\r\n"


def users_file():
    """A new users file with all of them."""
    path = Path(run("mktemp", "-d", SCRATCH / "users-XXXXXX").decode().strip()) / "users"
    for user, password in PASSWORDS.items():
        options = ["--ntlm"] if user == NTLM_USER else []
        run(GATEPOST, "user", "add", "--users", path, *options, user, input=password.encode())
    assert path.stat().st_mode & 0o777 == 0o600, oct(path.stat().st_mode)
    return path


class Binding:
    """Where a client connects: the port, "clear", "starttls" or "implicit", and whose certificates count."""

    def __init__(self, address, way, authority=None):
        (self.host, self.port), self.way, self.authority = address, way, authority

    def context(self, version=None):
        context = ssl.create_default_context(cafile=self.authority.file)
        if version:
            context.minimum_version = context.maximum_version = version
        return context

    @property
    def server(self):
        return f"{self.host}:{self.port}"


def _refusal(transcript, pattern):
    """The last reply that refuses AUTH."""
    found = re.findall(pattern + r"([45]\d\d \d\.\d+\.\d+ [^\r\n]*)", transcript)
    return found[-1] if found else NOT_OFFERED


def by_curl(binding, mechanism, user, password):
    path = SCRATCH / "logon.eml"
    path.write_bytes(MESSAGE)
    scheme = "smtps" if binding.way == "implicit" else "smtp"
    tls = [] if binding.way == "clear" else ["--ssl-reqd", "--cacert", binding.authority.file]
    output = run("curl", "--silent", "--show-error", "--verbose", "--resolve", f"{MX}:{binding.port}:{binding.host}", *tls,
                 f"{scheme}://{MX}:{binding.port}/curl.example", "--login-options", f"AUTH={mechanism}",
                 "--user", f"{user}:{password}", "--mail-from", FROM, "--mail-rcpt", TO, "--upload-file", path,
                 code=None, both=True)
    transcript = output.decode()
    if "< 250 2.6.0 " in transcript:
        return None
    # 67: login denied.
    assert "curl: (67)" in transcript, transcript
    return _refusal(transcript, "< ")


def by_swaks(binding, mechanism, user, password):
    tls = {"clear": [], "starttls": ["--tls"], "implicit": ["--tls-on-connect"]}[binding.way]
    if tls:
        tls += ["--tls-verify", "--tls-ca-path", binding.authority.file, "--tls-sni", MX]
    transcript = run("swaks", "--server", binding.host, "--port", binding.port, "--from", FROM, "--to", TO,
                     "--helo", "swaks.example", *tls, "--auth", mechanism, "--auth-user", user, "--auth-password", password,
                     code=None, both=True).decode()
    if re.search(r"<~?[-~]  250 2\.6\.0 ", transcript):
        return None
    # It says so, and exits with 28, when it cannot log in.
    assert re.search(r"\*\*\* (No authentication type succeeded|Host did not advertise|Auth not attempted)", transcript), transcript
    return _refusal(transcript, r"<[~*-]\*?\*? +")


def by_msmtp(binding, mechanism, user, password):
    path = SCRATCH / "msmtprc"
    tls = "tls off\n"
    if binding.way != "clear":
        tls = (f"tls on\ntls_starttls {'on' if binding.way == 'starttls' else 'off'}\n"
               f"tls_trust_file {binding.authority.file}\ntls_host_override {MX}\n")
    path.write_text(f"account default\nhost {binding.host}\nport {binding.port}\ndomain msmtp.example\nfrom {FROM}\n"
                    f"auth {mechanism.lower()}\nuser {user}\npassword {password}\n{tls}", encoding="utf-8")
    path.chmod(0o600)
    transcript = run("msmtp", "-C", path, "--debug", TO, input=MESSAGE.replace(b"\r\n", b"\n"), code=None, both=True).decode()
    if "<-- 250 2.6.0 " in transcript:
        return None
    assert "authentication failed" in transcript or "does not support" in transcript, transcript
    return _refusal(transcript, "<-- ")


def session(binding, source=None, version=None):
    """An smtplib session with hello said, under TLS where the binding has it."""
    source = (source, 0) if source else None
    options = {"local_hostname": "smtplib.example", "timeout": PATIENCE, "source_address": source}
    if binding.way == "implicit":
        client = smtplib.SMTP_SSL(context=binding.context(version), **options)
        # Its name is that of the certificate.
        client._host = MX  # pylint: disable=protected-access
        client.connect(binding.host, binding.port)
    else:
        client = smtplib.SMTP(binding.host, binding.port, **options)
    client.ehlo()
    if binding.way == "starttls":
        client._host = MX  # pylint: disable=protected-access
        code, text = client.starttls(context=binding.context(version))
        assert (code, text) == (220, b"2.0.0 SMTP server ready"), (code, text)
        client.ehlo()
    return client


def offered(client):
    return client.esmtp_features.get("auth", "").split()


def send(client):
    """Sends the message in an open session; its queue id."""
    assert client.mail(FROM)[0] == 250
    code, text = client.rcpt(TO)
    assert code == 250, text
    code, text = client.data(MESSAGE)
    assert code == 250, text
    return text.split()[1].decode()


def _by_session(log_in, binding, mechanism, user, password):
    with session(binding) as client:
        if mechanism not in offered(client):
            return NOT_OFFERED
        code, text = log_in(client, mechanism, user, password)
        if code != 235:
            return f"{code} {text.decode()}"
        assert text == b"2.7.0 Authentication successful", text
        send(client)
        return None


def smtplib_logon(client, mechanism, user, password):
    client.user, client.password = user, password
    try:
        return client.auth(mechanism, {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[mechanism])
    except smtplib.SMTPAuthenticationError as refused:
        return refused.smtp_code, refused.smtp_error
    except UnicodeEncodeError:
        # It can send ASCII only: the same by hand.
        first = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        return client.docmd("AUTH", f"PLAIN {first}")


def ntlm_exchange(client, negotiate, authenticate, initial):
    """AUTH NTLM with these messages; the last reply."""
    first = base64.b64encode(negotiate).decode()
    if initial:
        code, text = client.docmd("AUTH", f"NTLM {first}")
    else:
        assert client.docmd("AUTH", "NTLM") == (334, b"NTLM supported")
        code, text = client.docmd(first)
    assert code == 334, (code, text)
    return client.docmd(base64.b64encode(authenticate(base64.b64decode(text, validate=True))).decode())


def _pyspnego(client, _, user, password, initial=False):
    context = spnego.client(user, password, protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    return ntlm_exchange(client, context.step(), context.step, initial)


def _impacket(client, _, user, password, initial=False):
    first = ntlm.getNTLMSSPType1("", "", use_ntlmv2=True)

    def authenticate(challenge):
        answer, _ = ntlm.getNTLMSSPType3(first, challenge, user, password, "", use_ntlmv2=True)
        return answer.getData()
    return ntlm_exchange(client, first.getData(), authenticate, initial)


by_smtplib = functools.partial(_by_session, smtplib_logon)
by_pyspnego = functools.partial(_by_session, _pyspnego)
by_impacket = functools.partial(_by_session, _impacket)
by_pyspnego_initial = functools.partial(_by_session, functools.partial(_pyspnego, initial=True))
by_impacket_initial = functools.partial(_by_session, functools.partial(_impacket, initial=True))

NTLM_CLIENTS = {"curl": by_curl, "pyspnego": by_pyspnego, "impacket": by_impacket,
                "pyspnego with an initial response": by_pyspnego_initial, "impacket with an initial response": by_impacket_initial}
# They answer in NTLMv1, whatever they are asked.
V1_CLIENTS = {"swaks": by_swaks, "msmtp": by_msmtp}
PASSWORD_CLIENTS = {"curl": by_curl, "swaks": by_swaks, "msmtp": by_msmtp, "smtplib": by_smtplib}
