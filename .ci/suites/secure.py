"""A gateway with certificates and users, which must give none of their passwords away."""

import base64
import subprocess

from impacket import ntlm

from harness import GATEPOST, Gateway, run
from logons import PASSWORDS, WRONG, Binding, users_file
from pki import MX, Authority

# "clear" takes passwords without TLS, "bare" does not.
ATTRIBUTES = {
    "starttls": "auth=optional",
    "implicit": "tls=implicit,auth=optional",
    "clear": "tls=off,auth=optional,plaintext-auth",
    "bare": "tls=off,auth=optional",
    "tls-required": "tls=required,auth=optional",
    "submission": "auth=required,plaintext-auth",
}
WAYS = {"implicit": "implicit", "starttls": "starttls", "tls-required": "starttls"}
UNLIMITED = ["--message-rate=0", "--max-connections-per-source=0", "--max-protocol-errors=0"]


def secrets():
    """How the passwords may look: as they are, in UTF-16, in base64 at each of its three offsets, as NT hashes."""
    for password in (*PASSWORDS.values(), WRONG):
        for octets in (password.encode(), password.encode("utf-16-le")):
            yield octets
            for offset in range(3):
                # Without the ends, which depend on what stands beside it.
                yield base64.b64encode(b"\0" * offset + octets)[4 if offset else 0:][:len(octets) * 4 // 3 - 4]
        digest = ntlm.compute_nthash(password)
        yield from (digest, digest.hex().encode(), digest.hex().upper().encode(), base64.b64encode(digest)[:-3])


class DiscreetGateway(Gateway):
    """A gateway that is to give no password away."""

    def __exit__(self, failure, *rest):
        if failure is None and self.process.poll() is None:
            self.check_secrets()
        super().__exit__(failure, *rest)

    def check_secrets(self):
        """Whether any password stands in what it prints, tells or stores."""
        shown = {"metrics": "\n".join(self.scrape()).encode(),
                 "queue list": run(GATEPOST, "queue", "list", "--spool", self.spool)}
        shown |= {str(path): path.read_bytes() for path in self.spool.rglob("*") if path.is_file()}
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.reader.join(60)
        shown["standard output"] = "".join([*self.printed, self.process.stdout.read()]).encode()
        shown["standard error"] = "".join(self.errors).encode()
        assert not any("panicked" in line for line in self.errors), self.errors
        for where, octets in shown.items():
            for secret in secrets():
                assert secret not in octets, f"a password is in {where}, as {secret!r}"


class SecureGateway(DiscreetGateway):
    """A gateway with a binding of each of the kinds that are asked for, at `bindings`."""

    def __init__(self, *options, kinds=("starttls", "implicit", "clear", "bare"), certificates=None,
                 authority=None, host="127.0.0.1:0", **more):
        self.authority = authority or Authority()
        if certificates is None:
            certificates = [self.authority.issue(MX)]
        self.certificates = certificates
        self.users = users_file()
        super().__init__(*(f"--listen={host},{ATTRIBUTES[kind]}" for kind in kinds), f"--users={self.users}",
                         *(option for certificate in certificates for option in certificate.options()),
                         *UNLIMITED, *options, **more)
        assert len(self.listening) >= len(kinds), self.listening
        self.bindings = {kind: Binding(address, WAYS.get(kind, "clear"), self.authority)
                         for kind, address in zip(kinds, self.listening)}
