"""Kill the processes that a test run has started, after the run has ended in any way.

`PR_SET_PDEATHSIG` is not enough: it does not hold for grandchildren, it depends on the thread that
started the process, and a server that drops privileges loses it. So a separate process waits for
the end of the run. It finds the remaining processes in two ways:

* The environment of every process that the run starts has a mark, which names the run. Servers that
  fork or leave their parents inherit it.
* The run registers its servers on standard input. The descendants of a server belong to it, even if
  they have another environment.

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
"""The environment variable with the mark."""

REAPER = "TESTS_REAPER"
"""The environment variable that identifies a reaper, which outlives its run."""

KILL_SECONDS = 20.0
POLL_SECONDS = 0.25


class Process(NamedTuple):
    """A process; its start time distinguishes it from a later process with the same id."""

    pid: int
    start: str

    def is_alive(self) -> bool:
        """Return whether the process runs; a zombie does not."""
        fields = _stat(self.pid)
        return len(fields) > 1 and fields[0] not in "ZX" and fields[19] == self.start

    def kill(self) -> None:
        """Kill the process if its id still belongs to it."""
        if self.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)


def process(pid: int) -> Process:
    """Return a process by its id; a process that does not exist is not alive."""
    fields = _stat(pid)
    return Process(pid, fields[19] if len(fields) > 1 else "")


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on (proc(5)), or [] if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return []


def mark_of(runner: int) -> str:
    """Return the mark of a run, which has its process and the namespace of its process id."""
    namespace = Path("/proc/self/ns/pid").readlink()
    return f"{runner}:{process(runner).start}:{namespace}"


def runner_of(mark: str) -> Process | None:
    """Return the process of a run, or None if it is in another namespace of process ids."""
    pid, _, rest = mark.partition(":")
    start, _, namespace = rest.partition(":")
    if not pid.isdigit() or namespace != str(Path("/proc/self/ns/pid").readlink()):
        return None
    return Process(int(pid), start)


def marks() -> Iterator[tuple[Process, str]]:
    """Yield every marked process and its mark."""
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
    """Return processes and all their descendants, without reapers."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    result: set[Process] = set()
    pending = [root for root in roots if root.is_alive()]
    while pending:
        parent = pending.pop()
        if parent not in result and not _is_reaper(parent.pid):
            result.add(parent)
            pending += [process(pid) for pid in children.get(parent.pid, [])]
    return result


def _is_reaper(pid: int) -> bool:
    try:
        return f"{REAPER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def survivors_of(mark: str, servers: Iterable[Process]) -> set[Process]:
    """Return the live processes that a run has started; `servers` are those that it registered."""
    roots = [candidate for candidate, its_mark in marks() if its_mark == mark]
    exempt = {runner_of(mark), process(os.getpid())}
    return {
        candidate
        for candidate in descendants([*roots, *servers])
        if candidate.is_alive() and candidate not in exempt
    }


def reap(mark: str, servers: Iterable[Process]) -> None:
    """Kill the processes that a run has started, until none is alive."""
    roots = list(servers)
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline and (survivors := survivors_of(mark, roots)):
        roots += survivors  # the children of a killed process get another parent
        for survivor in survivors:
            survivor.kill()
        time.sleep(0.02)


def sweep() -> None:
    """Kill the processes of earlier runs whose reaper was killed, too."""
    for mark in {mark for _, mark in marks()}:
        runner = runner_of(mark)
        if runner is not None and not runner.is_alive():
            reap(mark, ())


def main(mark: str) -> None:
    """Wait for the end of a run, then kill the processes that it has left."""
    runner = runner_of(mark)
    assert runner is not None
    servers: list[Process] = []
    rest, is_open = b"", True
    while runner.is_alive():
        ready = select.select([0] if is_open else [], [], [], POLL_SECONDS)[0]
        if ready:
            data = os.read(0, 4096)
            is_open = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            servers += [process(int(line)) for line in lines]
    reap(mark, servers)


if __name__ == "__main__":
    main(sys.argv[1])
