"""The cost of a program has that of its descendants; what cannot be measured says why."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.bench.commands import Commands, Cost, NoMeasurement, peak_memory, tree_cpu

BUSY = "import time\nwhile time.process_time() < 0.15: pass"


def test_descendants_count() -> None:
    """The CPU time of a child counts as that of the program."""
    cost = Commands(60).run(["sh", "-c", '"$0" -c "$1"; true', sys.executable, BUSY])
    assert cost.cpu >= 0.15
    assert cost.wall >= 0.15


def test_costs_add_up() -> None:
    """The cost of two programs is the sum of both."""
    assert Cost(1.0, 2.0) + Cost(0.5, 0.25) == Cost(1.5, 2.25)


def test_failures_have_reasons() -> None:
    """A program that is lacking, fails or takes too long is not measured, and named."""
    commands = Commands(0.2)
    with pytest.raises(NoMeasurement, match="absent-program is not installed"):
        commands.run(["absent-program"])
    with pytest.raises(NoMeasurement, match="sh exits with 3: no room"):
        Commands(60).run(["sh", "-c", "echo 'no\n room' >&2; exit 3"])
    begin = time.monotonic()
    with pytest.raises(NoMeasurement, match="sh takes more than 0 s"):
        commands.run(["sh", "-c", "sleep 600; true"])
    assert time.monotonic() - begin < 300, "the child of the program ends, too"


def test_a_running_tree() -> None:
    """The CPU time of a process counts its children: those that run and those that have ended."""
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])\ninput()"
    with subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, script], stdin=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 300
        while (seconds := tree_cpu(process.pid)) < 0.15 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert seconds >= 0.15
    assert tree_cpu(process.pid) == 0


def test_peak_memory_is_in_bytes() -> None:
    """The peak memory of this process is some megabytes."""
    assert 1_000_000 < peak_memory(os.getpid()) < 1 << 40
