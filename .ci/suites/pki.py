"""A certification authority of the tests' own, made by the openssl command."""

from harness import SCRATCH, run

MX = "mx.test.example"


def _request(key, certificate, name, *options):
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
        "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-days", "90", *options)


class Certificate:
    """A certificate and its key: two PEM files."""

    def __init__(self, directory, label):
        self.file, self.key = directory / f"{label}.pem", directory / f"{label}.key"

    def options(self):
        """What `gatepost serve` is told of it."""
        return [f"--tls-cert={self.file}", f"--tls-key={self.key}"]

    def replace(self, other):
        """Puts another one in its place."""
        self.key.write_bytes(other.key.read_bytes())
        self.file.write_bytes(other.file.read_bytes())


def _names(names):
    addresses = [name for name in names if name.replace(".", "").isdigit()]
    return "subjectAltName=" + ",".join(f"{'IP' if name in addresses else 'DNS'}:{name}" for name in names)


class Authority:
    """A root that issues certificates."""

    made = 0

    def __init__(self):
        Authority.made += 1
        self.directory = SCRATCH / f"authority-{Authority.made}"
        self.directory.mkdir()
        self.issued = 0
        self.root = Certificate(self.directory, "root")
        self.file = self.root.file
        _request(self.root.key, self.root.file, f"Test authority {Authority.made}",
                 "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    def issue(self, *names):
        """A server's certificate for these names."""
        self.issued += 1
        certificate = Certificate(self.directory, f"{names[0]}-{self.issued}")
        _request(certificate.key, certificate.file, names[0], "-CA", self.root.file, "-CAkey", self.root.key,
                 "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature",
                 "-addext", "extendedKeyUsage=serverAuth", "-addext", _names(names),
                 # What a certificate in use has; nobody asks there.
                 "-addext", "crlDistributionPoints=URI:http://authority.test.example/list.crl")
        return certificate


def self_signed(*names):
    """A certificate that nobody vouches for."""
    directory = SCRATCH / f"self-signed-{names[0]}"
    directory.mkdir()
    certificate = Certificate(directory, names[0])
    _request(certificate.key, certificate.file, names[0], "-addext", _names(names))
    return certificate
