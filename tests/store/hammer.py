"""Several processes that use a store at once: `python -m tests.store.hammer ...`.

They are forks of one process, since the imports of each would take a second of processor time. A
fork prints that it is ready, waits for a byte on standard input, and prints one JSON value at its
end.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import react

from shiftergw.errors import Superseded, TooMany
from shiftergw.model.records import Progress, Ready
from shiftergw.model.requests import QueueLimits
from shiftergw.ports import ImageStore
from tests import forks
from tests.patience import patient
from tests.store.places import open_store
from tests.store.pulls import NOW, request

STANDARD_INPUT = 0
STANDARD_OUTPUT = 1


async def claims(store: ImageStore, number: int) -> int:
    """Claim the same tags as the other processes; return how many this process created."""
    return sum([(await store.claim(request(f"shared:{n}"), NOW))[1] for n in range(number)])


async def fill(store: ImageStore, name: int, number: int) -> int:
    """Claim different tags until the queue is full; return how many were accepted."""
    for n in range(number):
        try:
            await store.claim(request(f"own-{name}:{n}"), NOW, QueueLimits(number, number))
        except TooMany:
            return n
    return number


async def begins(store: ImageStore, *keys: str) -> list[str]:
    """Begin the same records as the other processes; return the keys that this process began."""
    return [key for key in keys if await store.begin(key, "hammer", NOW, 60) is not None]


async def duel(store: ImageStore, key: str) -> list[int]:
    """Begin a record again and again, and finish it; return the attempts that ended it."""
    attempts = []
    for n in range(30):
        record = await store.begin(key, "hammer", NOW + n * 100, 0)
        if record is None:
            break
        try:
            await store.heartbeat(key, record.attempt, Progress("fetch", n, 100), NOW + n * 100)
            if n == 20:
                await store.finish(key, record.attempt, Ready("a" * 64), NOW)
                attempts.append(record.attempt)
        except Superseded:
            continue
    return attempts


async def churn(store: ImageStore, name: str) -> int:
    """Pull one image after another until the process is killed."""
    for n in range(1_000_000):
        record, _ = await store.claim(request(f"{name}:{n}"), NOW + n)
        attempt = await store.begin(record.key, "hammer", NOW + n, 60)
        assert attempt is not None
        await store.finish(record.key, 1, Ready(f"{n:064x}"), NOW + n)
        print(n, flush=True)  # noqa: T201
    return 0


async def probes(store: ImageStore, key: str) -> int:
    """Check a breaker that is due again and again; return how often a probe was due."""
    answers = [await store.check_breaker(key, NOW + 5, 30) for _ in range(20)]
    return sum(answer is not None and answer.until <= NOW + 5 for answer in answers)


ACTIONS: dict[str, Any] = {
    "claims": claims,
    "fill": fill,
    "begins": begins,
    "duel": duel,
    "churn": churn,
    "probes": probes,
}


def print_line(line: str) -> None:
    """Print a line at once, so that those of several processes do not mix."""
    os.write(STANDARD_OUTPUT, f"{line}\n".encode())


async def main(kind: str, location: str, action: str, *arguments: str) -> None:
    """Open the store and run one action."""
    store = open_store(kind, location)
    print_line("ready")
    os.read(STANDARD_INPUT, 1)
    await maybeDeferred(store.startService)
    values = [int(argument) if argument.isdigit() else argument for argument in arguments]
    result = await ACTIONS[action](store, *values)
    await store.stopService()
    print_line(json.dumps(result))


def start(location: tuple[str, str], action: str, *crowd: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process for each list of arguments in `crowd`; all wait for `go`."""
    arguments = [*location, action, json.dumps(crowd)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    if forks.can_fork(os.environ):
        return forks.ChildFork(["hammer", *arguments], **streams)
    return subprocess.Popen([sys.executable, "-m", "tests.store.hammer", *arguments], **streams)


def release(process: subprocess.Popen[str], count: int = 1) -> None:
    """Let `count` forks of a process start their action at once."""
    assert process.stdout is not None
    assert process.stdin is not None
    for _ in range(count):
        assert process.stdout.readline() == "ready\n"
    process.stdin.write("." * count)
    process.stdin.flush()


def go(location: tuple[str, str], action: str, *crowd: Sequence[str]) -> list[Any]:
    """Run an action in a process for each list of arguments; return the final output of each."""
    process = start(location, action, *crowd)
    release(process, len(crowd))
    output, _ = process.communicate(timeout=patient(60))
    assert process.returncode == 0
    answers = [json.loads(line) for line in output.splitlines()]
    assert len(answers) == len(crowd)
    return answers


def run(kind: str, location: str, action: str, crowd: str) -> None:
    """Fork for all lists of arguments but the last; end with an error if a fork does."""
    *rest, own = json.loads(crowd)
    pids: list[int] = []
    for arguments in rest:
        pid = os.fork()
        if pid == 0:
            own, pids = arguments, []
            reactor.__init__()  # type: ignore[misc] # forks share its descriptors
            break
        pids.append(pid)
    try:
        react(lambda _: Deferred.fromCoroutine(main(kind, location, action, *own)))
    except SystemExit as end:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        sys.exit(end.code or any(codes))


if __name__ == "__main__":
    gc.freeze()  # the exit of each of many processes is cheaper
    run(*sys.argv[1:])
