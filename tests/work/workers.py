"""Workers for tests: a small program that behaves well, or badly in a way that KIND names.

`python workers.py KIND DIRECTORY`. The key of a record tells the worker what its job does (`sleep`,
`crash`, ...), as plain text or encoded in 24 hex digits.
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

LONG_SECONDS = 900
"""How long a job sleeps that only its end by force ends, also on a busy machine."""

SIGNALS = {"crash": signal.SIGKILL, "abort": signal.SIGABRT}
"""The signals by which a worker kills itself, by the first word of a key."""

EXITS = {"leave": 0, "fail": 3}
"""The codes with which a worker exits, by the first word of a key."""


def write_answer(answer: object) -> None:
    """Write one line to standard output."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def leave_trace(directory: Path, name: str) -> None:
    """Write this process's id into a file that the test reads."""
    (directory / name).write_text(str(os.getpid()), encoding="utf-8")


def decode_key(key: str) -> str:
    """Return the text of a key."""
    if re.fullmatch("[0-9a-f]{24}", key):
        return bytes.fromhex(key).decode().strip()
    return key


def die(key: str) -> None:
    """End this process if the key names a signal or an exit code."""
    for word, number in SIGNALS.items():
        if key.startswith(word):
            os.kill(os.getpid(), number)
    for word, code in EXITS.items():
        if key.startswith(word):
            sys.exit(code)


def run_job(key: str, directory: Path) -> None:
    """Do what the text of a key says."""
    leave_trace(directory, key)
    die(key)
    if key.startswith("sleep"):
        time.sleep(LONG_SECONDS)
    elif key.startswith("short"):
        time.sleep(0.5)
        leave_trace(directory, f"{key}-done")
    elif key.startswith("noise"):
        sys.stderr.write("to the log\nwarn a.b: trouble\n\x1b[31mred\n" + "x" * 10_000 + "\n")
        sys.stderr.flush()
        sys.stdout.write('not json\n{"done": "of somebody else"}\n{"done": 1}\n[]\n')
    elif key.startswith("measure"):
        write_answer({"metrics": [["name", [], [1]]]})
    elif key.startswith("flood"):
        sys.stderr.write("again\n" * 1000)
        sys.stderr.flush()
    elif key.startswith("child"):
        child = subprocess.Popen(["sleep", str(LONG_SECONDS)])
        (directory / "child").write_text(str(child.pid), encoding="utf-8")
        time.sleep(LONG_SECONDS)
    elif key.startswith("heir"):
        # The child holds the pipes of this process open after its death.
        child = subprocess.Popen(["sleep", str(LONG_SECONDS)])
        (directory / "child").write_text(str(child.pid), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def main(kind: str, directory: Path) -> None:
    """Run as a worker of a kind until the end of input."""
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
        time.sleep(LONG_SECONDS)
    if kind == "slow":
        time.sleep(1.5)
    write_answer({"ready": True})
    if kind == "fleeting":
        sys.exit(1)
    for line in sys.stdin:
        key = json.loads(line)["record"]
        run_job(decode_key(key), directory)
        write_answer({"done": key})
    if kind == "stubborn":
        time.sleep(LONG_SECONDS)
    leave_trace(directory, f"left-{os.getpid()}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
