#!/usr/bin/env python3
"""Writes the dashboards: one NAME.json beside this file for each module of boards/.

usage: generate.py [--check]

With --check nothing is written; exits 1 when a file is not what would be written.
"""

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from boards import BOARDS  # pylint: disable=wrong-import-position

HERE = Path(__file__).parent


def main():
    """Writes or compares all of them; the exit code."""
    wanted = {HERE / f"{board.name}.json": json.dumps(board.json(), indent=2) + "\n" for board in BOARDS}
    if sys.argv[1:] == ["--check"]:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        stale += set(HERE.glob("*.json")) - wanted.keys()
        for path in stale:
            print(f"{path.name} is not what generate.py writes")
        return 1 if stale else 0
    if sys.argv[1:]:
        print(__doc__.strip(), file=sys.stderr)
        return 64
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
