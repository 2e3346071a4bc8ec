"""What protects the spool and the next hops is taken out, one thing at a time, and the simulation must notice.

    mutants.py REPOSITORY SCRATCH [NAME...]

Each mutant is a change of one place in a copy of the sources. A place that is not there any more is a failure too:
then this file is behind the sources. Builds with CARGO_TARGET_DIR, or below SCRATCH. GATEPOST_MUTANT_SEEDS is how
many seeds a mutant may survive.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# What is taken out, in which file, the text there, and what takes its place.
MUTANTS = {
    "sync": (
        "tests/simulation/process.rs",
        "offset: batch.offset, octets: batch.octets, through: true }",
        "offset: batch.offset, octets: batch.octets, through: false }",
    ),
    "crc": (
        "src/queue/record.rs",
        "intact.then_some(Record { header, envelope, message })",
        "(intact || true).then_some(Record { header, envelope, message })",
    ),
    "generation": (
        "src/queue/recover.rs",
        ".filter(|header| (header.generation, header.key) == (generation, key))",
        ".filter(|header| header.key == key)",
    ),
    "outcome": (
        "src/queue/recover.rs",
        "            self.add_outcome(record, location);",
        "            let _ = Self::add_outcome;",
    ),
    "backoff": (
        "src/delivery/backoff.rs",
        "Duration::from_nanos((wait_ns - spread_ns).saturating_add(jitter_ns))",
        "Duration::from_nanos((wait_ns - spread_ns).saturating_add(jitter_ns) / 10)",
    ),
}
TEST = "what_is_acknowledged_is_delivered"
SEEDS = os.environ.get("GATEPOST_MUTANT_SEEDS", "4000")
PATIENCE = 900
# All that the simulation uses: they name nobody else (tests/architecture.rs), and are built in a fraction of the time.
ROOMS = ("delivery", "limits", "policy", "queue", "smtp")


def copy_sources(repository, tree):
    """Makes a package of the pure rooms and the simulation."""
    manifest = (repository / "Cargo.toml").read_text()
    # Whatever belongs to the program, its other tests and its benches goes.
    manifest = re.sub(r"^(default-run|readme) = .*\n", "", manifest, flags=re.MULTILINE)
    # Another version: cargo keeps its artifacts apart from those of the program, which are in the same place.
    manifest = re.sub(r'^version = "(.*?)"$', r'version = "\1-mutant"', manifest, count=1, flags=re.MULTILINE)
    manifest = re.sub(r"^members = .*$", 'members = ["."]', manifest, flags=re.MULTILINE)
    manifest = re.sub(r"^\[\[(bench|test)\]\]\n([^\[\n].*\n)*", "", manifest, flags=re.MULTILINE)
    (tree / "src").mkdir(parents=True)
    (tree / "Cargo.toml").write_text(manifest)
    shutil.copy(repository / "Cargo.lock", tree)
    shutil.copytree(repository / "tests/simulation", tree / "tests/simulation")
    for room in ROOMS:
        source = repository / "src" / room
        if source.is_dir():
            shutil.copytree(source, tree / "src" / room)
        else:
            shutil.copy(source.with_suffix(".rs"), tree / "src")
    (tree / "src/lib.rs").write_text("".join(f"pub mod {room};\n" for room in ROOMS))


def simulate(tree, target):
    """Runs the simulation of a tree; returns what it said, and whether it passed."""
    command = ["cargo", "test", "--offline", "--test", "simulation", TEST, "--", "--exact", "--nocapture"]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "GATEPOST_SIM_SEEDS": SEEDS,
        "RUST_BACKTRACE": "0",
    }
    environment.pop("GATEPOST_SIM_SEED", None)
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.stdout + done.stderr, done.returncode == 0


def judge(name, tree, target):
    """Makes one mutant and runs it; returns why it is a failure, or None."""
    path, text, replacement = MUTANTS[name]
    file = tree / path
    source = file.read_text()
    if source.count(text) != 1:
        return f"{path} has {source.count(text)} times what is to be taken out: {text!r}"
    file.write_text(source.replace(text, replacement))
    try:
        said, passed = simulate(tree, target)
    finally:
        file.write_text(source)
    if passed:
        return f"{SEEDS} seeds pass without it"
    found = re.search(r"^seed \d+: .*$", said, re.MULTILINE)
    if not found:
        return "the simulation did not run:\n" + said[-3000:]
    print(f"{name}: {found.group()[:300]}", flush=True)
    return None


def main():
    repository, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    names = sys.argv[3:] or list(MUTANTS)
    tree = scratch / "mutant"
    target = Path(os.environ.get("CARGO_TARGET_DIR", scratch / "target")).resolve()
    try:
        copy_sources(repository, tree)
        failures = {}
        for name in names:
            reason = judge(name, tree, target)
            if reason:
                failures[name] = reason
                print(f"FAILED {name}: {reason}", flush=True)
    finally:
        shutil.rmtree(tree)
    print(f"{len(names) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
