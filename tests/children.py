"""Start the servers of tests, so that they end with the run however it ends (`tests.reaper`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import reaper

_REAPER = Path(reaper.__file__)
_guarded: dict[int, int] = {}
"""Of this process, where its reaper listens: forks of it have none."""


def guard() -> None:
    """Mark whatever this process starts from now on, and have it killed when this process ends.

    What runs before have left is killed at once.
    """
    runner = os.getpid()
    if runner in _guarded:
        return
    mark = reaper.mark_of(runner)
    reaper.sweep()
    environment = {name: value for name, value in os.environ.items() if name != reaper.VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_REAPER), mark],
        env=environment | {reaper.REAPER: mark},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # what is sent to the group of the run is not for it
    )
    assert process.stdin is not None
    _guarded[runner] = os.dup(process.stdin.fileno())
    # Nobody waits for it: it ends after this process.
    process.returncode = 0
    os.environ[reaper.VARIABLE] = mark


def start(argv: Sequence[Any], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program as `subprocess.Popen` does; it, and all that it starts, ends with the run."""
    guard()
    env = options.get("env")
    if env is not None:
        options["env"] = {**env, reaper.VARIABLE: os.environ[reaper.VARIABLE]}
    process = subprocess.Popen(argv, **options)
    with suppress(BrokenPipeError):  # the mark is enough
        os.write(_guarded[os.getpid()], b"%d\n" % process.pid)
    return process
