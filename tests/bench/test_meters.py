"""Meters see the most that a directory had, and the CPU time of each program of a tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.meters import UNSEEN, ProcessMeter, ScratchMeter, used_space
from tests.bench.test_commands import BUSY

SCRIPT = """
import subprocess, sys
print("ready")
input()
subprocess.run([sys.executable, "-c", sys.argv[1]])
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
print("cat runs")
sys.stdin.read()
child.communicate()
"""


def test_the_most_that_was_there_counts(tmp_path: Path) -> None:
    """What was there before does not count; what is gone at the end does, and links once."""
    (tmp_path / "before").write_bytes(bytes(100_000))
    with ScratchMeter([tmp_path]) as meter:
        part = tmp_path / "packs" / "part"
        part.parent.mkdir()
        part.write_bytes(bytes(200_000))
        (tmp_path / "link").hardlink_to(part)
        meter.look()
        part.unlink()
        (tmp_path / "link").unlink()
    assert meter.bytes == pytest.approx(200_000, abs=10_000)
    assert meter.files == 2  # the directory is one
    assert used_space([tmp_path], "packs*")[1] == 1


def test_each_program_has_its_time() -> None:
    """Times of a tree are those of its programs, also of those that have ended unseen."""
    with subprocess.Popen(
        [sys.executable, "-uc", SCRIPT, BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        meter = ProcessMeter(process.pid, {process.pid: "worker"})
        meter.look()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "cat runs\n"
        meter.look()
        process.stdin.close()
    first, last = meter.looks
    assert first.cpu == {"worker": 0.0}
    assert last.cpu.keys() == {"worker", "cat", UNSEEN}
    assert last.cpu[UNSEEN] >= 0.1
    assert last.time > first.time
