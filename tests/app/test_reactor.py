"""A reactor for one command: what it does besides running the command."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
from shiftergw.app.reactor import run_main

async def main(_):
    print(gc.get_freeze_count() > 10_000)
    return 7

sys.exit(run_main(main))
"""


def test_modules_are_no_garbage() -> None:
    """The garbage collector does not go through the modules, neither at work nor at the exit."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "True\n", "")
