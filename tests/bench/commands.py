"""Run programs for a measurement, and count the CPU time of all their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from tests import children

_TICKS = os.sysconf("SC_CLK_TCK")
_STDERR_SHOWN = 300  # characters


class NoMeasurement(Exception):
    """A variant cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Cost:
    """What programs cost, one after the other: wall seconds and CPU seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, cost: Cost) -> Cost:
        return Cost(self.wall + cost.wall, self.cpu + cost.cpu)


class Commands:
    """Runs programs, each for at most `limit` seconds."""

    def __init__(self, limit: float) -> None:
        """Set the limit."""
        self.limit = limit

    def run(self, argv: Sequence[str | Path], **options: Any) -> Cost:
        """Run a program to its end; return its cost, with the descendants that it has waited for.

        Raises `NoMeasurement` if it fails, is not installed, or exceeds the limit.
        """
        program = Path(argv[0]).name
        begin = time.monotonic()
        try:
            process = children.start(
                [str(word) for word in argv],
                stdin=options.pop("stdin", subprocess.DEVNULL),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                **options,
            )
        except FileNotFoundError:
            raise NoMeasurement(f"{program} is not installed") from None
        timer = Timer(self.limit, _kill, [process.pid])
        timer.start()
        try:
            assert process.stderr is not None
            with process.stderr:
                errors = process.stderr.read().decode(errors="replace").strip()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid)
            process.wait()
            raise
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - begin
        if process.returncode:
            if wall >= self.limit:
                raise NoMeasurement(f"{program} takes more than {self.limit:.0f} s")
            text = " ".join(errors[-_STDERR_SHOWN:].split())
            raise NoMeasurement(f"{program} exits with {process.returncode}: {text}")
        return Cost(wall, usage.ru_utime + usage.ru_stime)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def tree_cpu(pid: int) -> float:
    """Return the CPU seconds that a process and its descendants have taken.

    Descendants that have ended count if their parents have waited for them.
    """
    return sum(process.own + process.children for process in processes_of(pid))


@dataclass(frozen=True)
class Process:
    """A process with its CPU seconds: its own, and those of children that it has waited for.

    `start` is the time of its start in ticks, which tells it from a later process of the same id.
    """

    pid: int
    name: str
    start: int
    own: float
    children: float


def processes_of(pid: int) -> Iterator[Process]:
    """Yield a process and its descendants (proc(5), `stat`), as far as they are still there."""
    with suppress(FileNotFoundError, ProcessLookupError):
        # The name of the program, in parentheses, may contain spaces.
        head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        fields = rest.split()
        user, system, child_user, child_system = (int(field) / _TICKS for field in fields[11:15])
        name = head.partition("(")[2]
        yield Process(pid, name, int(fields[19]), user + system, child_user + child_system)
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in _children(task):
                yield from processes_of(int(child))


def _children(task: Path) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return (task / "children").read_text().split()
    return []


def peak_memory(pid: int) -> int:
    """Return the largest resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
