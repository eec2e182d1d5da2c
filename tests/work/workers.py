"""Workers for the pool's tests: small programs that behave well, or each badly in its own way.

`python workers.py KIND DIRECTORY`. A key may say what its job is to do: `sleep`, `crash`, ...
It says so plainly, or in 24 hex digits.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNALS = {"crash": signal.SIGKILL, "abort": signal.SIGABRT}
"""By which a worker ends itself, by what its job says."""

EXITS = {"leave": 0, "fail": 3}
"""With which exit code."""


def tell(answer: object) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def note(directory: Path, name: str) -> None:
    """Leave a trace for the test."""
    (directory / name).write_text(str(os.getpid()), encoding="utf-8")


def plain(key: str) -> str:
    """Return what a key says."""
    if re.fullmatch("[0-9a-f]{24}", key):
        return bytes.fromhex(key).decode().strip()
    return key


def die(key: str) -> None:
    """End this process if the key says so."""
    for word, number in SIGNALS.items():
        if key.startswith(word):
            os.kill(os.getpid(), number)
    for word, code in EXITS.items():
        if key.startswith(word):
            sys.exit(code)


def job(key: str, directory: Path) -> None:
    """Do what the key says."""
    note(directory, key)
    die(key)
    if key.startswith("sleep"):
        time.sleep(60)
    elif key.startswith("short"):
        time.sleep(0.5)
        note(directory, f"{key}-done")
    elif key.startswith("noise"):
        sys.stderr.write("to the log\nwarn a.b: trouble\n\x1b[31mred\n" + "x" * 10_000 + "\n")
        sys.stderr.flush()
        sys.stdout.write('not json\n{"done": "of somebody else"}\n{"done": 1}\n[]\n')
    elif key.startswith("flood"):
        sys.stderr.write("again\n" * 1000)
        sys.stderr.flush()
    elif key.startswith("child"):
        child = subprocess.Popen(["sleep", "60"])
        (directory / "child").write_text(str(child.pid), encoding="utf-8")
        time.sleep(60)
    elif key.startswith("heir"):
        # Holds our pipes open after our death.
        child = subprocess.Popen(["sleep", "60"])
        (directory / "child").write_text(str(child.pid), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def main(kind: str, directory: Path) -> None:
    """Behave like `kind`."""
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "group-polite":
        os.setpgrp()
    if kind == "group":
        os.setpgrp()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "stillborn" or (directory / "sick").exists():
        sys.stderr.write("Traceback:\nModuleNotFoundError: No module named 'x'\n")
        sys.exit(1)
    if kind == "mute":
        time.sleep(60)
    if kind == "slow":
        time.sleep(1.5)
    tell({"ready": True})
    if kind == "fleeting":
        sys.exit(1)
    for line in sys.stdin:
        key = json.loads(line)["record"]
        job(plain(key), directory)
        tell({"done": key})
    if kind == "stubborn":
        time.sleep(60)
    note(directory, f"left-{os.getpid()}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
