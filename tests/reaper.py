"""Kill what a run of tests has started, once the run has ended: in order, by a crash or a kill.

`PR_SET_PDEATHSIG` does not do it: it holds for one process and not for what that starts, it is
bound to the thread that started it, and a server that drops privileges loses it. So a process of
its own waits for the end of the run. It finds what is left in two ways:

* The environment of everything that the run starts has a mark, which names the run. It is inherited
  by servers that fork, and by those that leave their parents.
* The run registers its servers, on standard input: whatever is below one belongs to it, also where
  it has an environment of its own.

This file runs without the packages of the tests, as `reaper.py MARK`; see `tests.children`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

VARIABLE = "TESTS_RUN"
"""The variable of the environment that holds the mark."""

REAPER = "TESTS_REAPER"
"""The variable by which a reaper is known: it outlives its run."""

KILL_SECONDS = 20.0
POLL_SECONDS = 0.25


class Process(NamedTuple):
    """A process; its start tells it from a later one of the same id."""

    pid: int
    start: str

    def is_alive(self) -> bool:
        """Return whether it runs; one that has ended and waits for its parent does not."""
        fields = _stat(self.pid)
        return len(fields) > 1 and fields[0] not in "ZX" and fields[19] == self.start

    def kill(self) -> None:
        """Kill it, if it is still the same process."""
        if self.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)


def process(pid: int) -> Process:
    """Return a process by its id; one that does not exist is not alive."""
    fields = _stat(pid)
    return Process(pid, fields[19] if len(fields) > 1 else "")


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on (proc(5)); none if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return []


def mark_of(runner: int) -> str:
    """Return the mark of a run: its process, and the namespace in which that has its id."""
    namespace = Path("/proc/self/ns/pid").readlink()
    return f"{runner}:{process(runner).start}:{namespace}"


def runner_of(mark: str) -> Process | None:
    """Return the process of a run; None for one of another namespace, which cannot be judged."""
    pid, _, rest = mark.partition(":")
    start, _, namespace = rest.partition(":")
    if not pid.isdigit() or namespace != str(Path("/proc/self/ns/pid").readlink()):
        return None
    return Process(int(pid), start)


def marks() -> Iterator[tuple[Process, str]]:
    """Yield every marked process, with its mark."""
    prefix = f"{VARIABLE}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(prefix):
                yield process(int(entry.name)), os.fsdecode(variable.removeprefix(prefix))


def descendants(roots: Iterable[Process]) -> set[Process]:
    """Return processes and all below them, without reapers."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[Process] = set()
    waiting = [root for root in roots if root.is_alive()]
    while waiting:
        one = waiting.pop()
        if one not in found and not _is_reaper(one.pid):
            found.add(one)
            waiting += [process(pid) for pid in children.get(one.pid, [])]
    return found


def _is_reaper(pid: int) -> bool:
    try:
        return f"{REAPER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def left_of(mark: str, registered: Iterable[Process]) -> set[Process]:
    """Return what a run has started and still lives."""
    marked = [one for one, other in marks() if other == mark]
    runner = runner_of(mark)
    left = descendants([*marked, *registered])
    return {one for one in left if one.is_alive() and one not in {runner, process(os.getpid())}}


def reap(mark: str, registered: Iterable[Process]) -> None:
    """Kill what a run has started, until nothing is left of it."""
    roots = list(registered)
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline and (left := left_of(mark, roots)):
        roots += left  # what a killed process has started belongs to another parent now
        for one in left:
            one.kill()
        time.sleep(0.02)


def sweep() -> None:
    """Kill what earlier runs have left whose reaper was killed, too."""
    for mark in {mark for _, mark in marks()}:
        runner = runner_of(mark)
        if runner is not None and not runner.is_alive():
            reap(mark, ())


def main(mark: str) -> None:
    """Wait for the end of a run, and kill what it has left."""
    runner = runner_of(mark)
    assert runner is not None
    registered: list[Process] = []
    rest, is_open = b"", True
    while runner.is_alive():
        ready = select.select([0] if is_open else [], [], [], POLL_SECONDS)[0]
        if ready:
            data = os.read(0, 4096)
            is_open = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            registered += [process(int(line)) for line in lines]
    reap(mark, registered)


if __name__ == "__main__":
    main(sys.argv[1])
