"""Start programs that end with the test run, even if it is killed (see `tests.reaper`)."""

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
_reaper_inputs: dict[int, int] = {}
"""The reaper's input, by the id of the process that started the reaper: forks have none."""


def guard() -> None:
    """Mark the programs that this process starts from now on, and kill them when it ends.

    Programs that earlier runs have left are killed at once.
    """
    runner = os.getpid()
    if runner in _reaper_inputs:
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
        start_new_session=True,  # signals to the group of the run do not reach it
    )
    assert process.stdin is not None
    _reaper_inputs[runner] = os.dup(process.stdin.fileno())
    # Set so that Popen does not warn: the reaper ends after this process.
    process.returncode = 0
    os.environ[reaper.VARIABLE] = mark


def start(argv: Sequence[Any], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program as `subprocess.Popen` does; it and its children end with the run."""
    guard()
    env = options.get("env")
    if env is not None:
        options["env"] = {**env, reaper.VARIABLE: os.environ[reaper.VARIABLE]}
    process = subprocess.Popen(argv, **options)
    with suppress(BrokenPipeError):  # the mark is enough
        os.write(_reaper_inputs[os.getpid()], b"%d\n" % process.pid)
    return process
