#!/usr/bin/env python3
"""Makes the committed corpora from the transcripts: `python3 fuzz/seeds.py`, from anywhere.

Files are named by the hash of their content, so running it again changes nothing, and findings that
were added by hand stay."""

import base64
import hashlib
import re
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
TRANSCRIPTS = FUZZ.parent / "tests" / "transcripts"
# Larger dialogues repeat themselves; libFuzzer prefers small seeds.
OCTETS_MAX = 3000
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def repeated(text):
    """`{3*ab}` stands for `ababab`; as many as a seed has room for."""
    return re.sub(rb"\{(\d+)\*([^}]*)\}", lambda found: found[2] * min(int(found[1]), 5000), text)


def unescaped(text):
    named = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\", b'"': b'"', b"{": b"{"}

    def octet(found):
        return bytes([int(found[1][1:], 16)]) if found[1][:1] == b"x" else named[found[1]]

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.)", octet, text, flags=re.S)


def time(word):
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", word).groups()
    milliseconds = int(number) * SECONDS[unit] * 1000
    # The least square (see session.rs) that is as long.
    return bytes([min(255, next(n for n in range(10**6) if n * n * 40 >= milliseconds))])


def read(path):
    """What the client sends, and the same with the other operations of the target `session`."""
    sent, ops = b"", b""
    for line in path.read_bytes().split(b"\n"):
        word, _, rest = line.partition(b" ")
        octets = None
        if line.startswith(b"C:"):
            octets = repeated(line[2:].removeprefix(b" ")) + b"\r\n"
        elif word == b"@ehlo":
            octets = b"EHLO client.example\r\n"
        elif word == b"@raw":
            octets = repeated(unescaped(rest.strip()[1:-1]))
        elif word == b"@wait":
            ops += b"\xffc"
        elif word == b"@after":
            ops += b"\xfft" + time(rest.decode())
        elif line == b"@commit fails":
            ops += b"\xfff"
        elif line.startswith(b"@commit takes "):
            ops += b"\xffl" + time(line.split()[-1].decode())
        elif line.startswith(b"@logon takes "):
            ops += b"\xffk" + time(line.split()[-1].decode())
        elif word == b"@tls":
            ops += b"\xffH" if rest == b"fails" else b"\xffh"
        elif line == b"@body fails":
            ops += b"\xffb"
        elif word == b"@resources":
            ops += b"\xffr" if rest == b"short" else b"\xffR"
        elif word == b"@shutdown":
            ops += b"\xffS" if rest == b"now" else b"\xffs"
        if octets is not None:
            sent += octets
            ops += octets.replace(b"\xff", b"\xff\xff")
    return sent, ops


def write(target, seed):
    if 0 < len(seed) <= OCTETS_MAX:
        folder = FUZZ / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


BEGIN = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
BINARY = b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\nRCPT TO:<b@example.org>\r\n"
FIRST, LAST = b"BDAT 6\r\nA: b\n\n", b"BDAT 4 LAST\r\nc\0\r\n"
# Messages in chunks that end, or do not, in every way, and another one behind them.
CHUNKS = [
    BEGIN + FIRST + LAST + BEGIN + LAST,
    BEGIN + FIRST + b"RSET\r\n" + BEGIN + LAST,
    BEGIN + FIRST + b"EHLO x\r\n" + BEGIN + b"DATA\r\nx\r\n.\r\n",
    BEGIN + FIRST + b"MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\n" + LAST,
    BEGIN + FIRST + b"QUIT\r\n",
    BEGIN + FIRST + b"BDAT 99 LAST\r\nunfinished",
    BEGIN + FIRST + b"BDAT 60\r\n" + b"x" * 60 + LAST + b"RSET\r\n" + BEGIN + LAST,
    BEGIN + b"BDAT 50\r\n" + b"A: " + b"x" * 47 + LAST + BEGIN + LAST,
    BEGIN + b"BDAT 0\r\nBDAT 0 LAST\r\n" + BEGIN + FIRST + b"BDAT 0 LAST\r\n",
    BINARY + b"DATA\r\n" + FIRST + LAST,
    b"MAIL FROM:<>\r\nRCPT TO:<no@example.org>\r\n" + FIRST + LAST + BEGIN + LAST,
    FIRST + LAST + BEGIN + b"BDAT 1 FIRST\r\nx",
    BEGIN + b"BDAT 15\r\nReceived: by a\nBDAT 4\r\nReceBDAT 11 LAST\r\nived: by b\n" + BEGIN + LAST,
]


def main():
    for dialogue in CHUNKS:
        for settings in (0, 1, 2, 12, 60, 124):
            write("bdat", bytes([settings, 3, 7, 0]) + b"EHLO x\r\n" + dialogue)
        write("session", bytes([0, 0b00010100, 1, 0, 0b0101]) + b"EHLO x\r\n" + dialogue)
    lines = {}
    for path in sorted(TRANSCRIPTS.rglob("*.smtp")):
        sent, ops = read(path)
        folder = path.relative_to(TRANSCRIPTS).parts[0]
        lines.setdefault(folder, {}).update(dict.fromkeys(line + b"\r\n" for line in sent.split(b"\r\n") if len(line) < 300))
        config = re.search(rb"^@config (.*)$", path.read_bytes(), re.M)
        config = config[1] if config else b""
        # Settings of session.rs: as the defaults, errors unlimited; the tarpit where it is tested.
        three = 0b00000001 | (0b00100000 if b"tarpit" in config else 0)
        five = 0b0101 | (0b01010000 if b"tls=" in config else 0) | (0b01100000 if b"user=" in config else 0)
        one = (1 if b"default-domain" in config else 0) | (2 if b"role=relay user=" in config else 0)
        write("session", bytes([one, 0b00010100, three, 0, five]) + ops)
        if b"BDAT" in sent:
            write("bdat", bytes([0, 3, 7, 0]) + sent)
            write("bdat", bytes([12, 1, 2, 0]) + sent)
        for data in re.findall(rb"DATA\r\n(.*?\r\n\.\r\n)", sent, re.S):
            write("data", bytes([5, 1, 9]) + data)
    for found in lines.values():
        chunk = b""
        for line in found:
            chunk += line
            if len(chunk) > 1500:
                write("command", chunk)
                chunk = b""
        write("command", chunk)
    fields = (FUZZ.parent / "src" / "smtp" / "header_scan.rs").read_bytes()
    for field in re.findall(rb'\(b"(Received[^\n]*?)", b"', fields):
        write("data", bytes([3, 1, 40]) + unescaped(field) + b"\r\nx\r\n.\r\n")
    exchanges()
    headers()


def headers():
    """Headers of the PROXY protocol, and dialogues behind them."""
    address4, address6 = bytes([192, 0, 2, 1, 192, 0, 2, 25]), bytes([0x20, 1, 13, 184]) + bytes(12) + b"\x01" * 16
    ports, noop, ssl = b"\xdc\x04\0\x19", b"\x04\0\x02xx", b"\x20\0\x05\x01\0\0\0\0"

    def binary(kind, block):
        return b"\r\n\r\n\0\r\nQUIT\n" + kind + len(block).to_bytes(2, "big") + block

    def sealed(header):
        sum_of = 0xffffffff
        for octet in header:
            sum_of ^= octet
            for _ in range(8):
                sum_of = sum_of >> 1 ^ (0x82f63b78 if sum_of & 1 else 0)
        return header[:-4] + (sum_of ^ 0xffffffff).to_bytes(4, "big")

    checksum = b"\x03\0\x04\0\0\0\0"
    for header in [
            b"PROXY TCP4 192.0.2.1 192.0.2.25 56324 25\r\n", b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.25 1 65535\r\n",
            b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN what else\r\n", b"PROXY TCP4 192.0.2.01 192.0.2.25 56324 025\r\n",
            binary(b"\x21\x11", address4 + ports), binary(b"\x21\x21", address6 + ports),
            binary(b"\x21\x11", address4 + ports + noop + ssl), sealed(binary(b"\x21\x11", address4 + ports + checksum)),
            sealed(binary(b"\x21\x21", address6 + ports + noop + checksum)), binary(b"\x20\0", b""),
            binary(b"\x20\x11", address4 + ports), binary(b"\x21\0", b""), binary(b"\x21\x31", bytes(216)),
            binary(b"\x21\x12", address4 + ports), binary(b"\x22\x11", address4), b"", b"\r\n\r\n", b"PROXY\r\n"]:
        for sizes in (b"\0\0", b"\x05\x01"):
            write("proxy", sizes + header + b"EHLO x\r\n" + BEGIN + b"DATA\r\nx\r\n.\r\nQUIT\r\n")
        write("proxy", b"\x03\x07" + header)
        write("proxy", b"\0\0" + header * 2)


def exchanges():
    """Of authentication: the messages of clients in the tests of NTLM, and changes of own ones."""
    sources = FUZZ.parent / "src" / "smtp" / "sasl"
    clients = (sources / "ntlm" / "flip_tests.rs").read_bytes()
    messages = re.findall(rb'(?:negotiate|authenticate): "([^"]+)"', clients)
    messages = [base64.b64decode(re.sub(rb"\\\s+", b"", message)) for message in messages]
    for negotiate, authenticate in zip(messages[::2], messages[1::2]):
        write("ntlm", bytes([0, len(negotiate)]) + negotiate + authenticate)
        write("sasl", base64.b64encode(negotiate))
    for settings in (1, 3, 5, 7, 9, 11):
        for changes in ([], [(0, 0)], [(20, 8)], [(44, 4), (64, 1)], [(90, 1)], [(150, 255), (151, 1)], [(100, 32)]):
            changes = [place.to_bytes(2, "little") + bytes([value]) for place, value in changes]
            write("ntlm", bytes([settings]) + b"".join(changes))
    plain = (b"\0tim\0tanstaaftanstaaf", b"tim\0tim\0x", "\0J\u00fcrgen\0p\u00e4".encode(), b"Ursel\0Kurt\0xipj3plmq", b"\0\0")
    for message in plain + (b"tim\ntanstaaf", b"Username:", b"\xff\xfe"):
        write("sasl", message)
        write("sasl", base64.b64encode(message))
    for line in (b"Zg==", b"Zh==", b"Zg=", b"Zm9v\r\n", b"=", b"*", b"ntlm", b"PLAIN", b"LOGIN"):
        write("sasl", line)


main()
