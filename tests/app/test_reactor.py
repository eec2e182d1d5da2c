"""A reactor for one command."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import patient

PROGRAM = """
import gc, sys
gc.disable()
from shiftergw.app.reactor import run_main

async def main(_):
    print(gc.get_freeze_count() > 10_000, gc.isenabled())
    return 7

sys.exit(run_main(main))
"""


def test_modules_are_not_garbage_collected() -> None:
    """The garbage collector searches no modules, neither during the command nor at its exit.

    It runs during the command, although workers disable it while they start.
    """
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (7, "True True\n", "")
