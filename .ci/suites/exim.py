"""Debian's Exim, as a client and as a server.

Its package cannot be installed beside Postfix: its files lie in a directory of their own, and
GATEPOST_EXIM says where the program is.
"""

import os
import shutil
from pathlib import Path

from harness import SCRATCH, run


class Exim:
    """An Exim with configuration, spool and log of its own.

    It wants a user of its own, who exists for it alone, behind mounts that nobody else sees.
    """

    USER, UID = "Debian-exim", 65534

    def __init__(self, name, configuration):
        self.program = os.environ.get("GATEPOST_EXIM") or shutil.which("exim4")
        assert self.program, "Exim is missing"
        self.directory = SCRATCH / name
        for part in ("", "spool", "log"):
            (self.directory / part).mkdir()
            os.chown(self.directory / part, self.UID, self.UID)
        for file, line in (("passwd", f"{self.USER}:x:{self.UID}:{self.UID}::/:/bin/false"), ("group", f"{self.USER}:x:{self.UID}:")):
            known = Path("/etc", file).read_text(encoding="utf-8").splitlines()
            known = [other for other in known if not other.startswith(f"{self.USER}:")]
            (self.directory / file).write_text("\n".join([*known, line, ""]), encoding="utf-8")
        self.configuration = self.directory / "exim.conf"
        self.configuration.write_text(f"""
primary_hostname = exim.example
exim_path = {self.program}
spool_directory = {self.directory}/spool
log_file_path = {self.directory}/log/%s
keep_environment =
{configuration}""", encoding="utf-8")

    def command(self, *arguments):
        mounts = "".join(f"mount --bind {self.directory}/{file} /etc/{file} && " for file in ("passwd", "group"))
        return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", self.program, "-C", self.configuration, *arguments]

    def run(self, *arguments, message=None):
        # Its exit code says whether it has taken the message, not what came of it.
        return run(*self.command(*arguments), input=message)

    def log(self):
        path = self.directory / "log" / "main"
        return path.read_text(encoding="utf-8") if path.exists() else ""
