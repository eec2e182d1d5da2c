"""One of several processes that use a store at once: `python -m tests.store.hammer ...`.

A process prints that it is ready, waits for a line on standard input, and prints one JSON value at
its end.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import react

from shiftergw.errors import Superseded, TooMany
from shiftergw.model.records import Progress, Ready
from shiftergw.model.requests import QueueLimits
from shiftergw.ports import ImageStore
from tests.patience import patient
from tests.store.places import open_store
from tests.store.pulls import NOW, request


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


async def main(_: Any, kind: str, location: str, action: str, *arguments: str) -> None:
    """Open the store and run one action."""
    store = open_store(kind, location)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    await maybeDeferred(store.startService)
    values = [int(argument) if argument.isdigit() else argument for argument in arguments]
    result = await ACTIONS[action](store, *values)
    await store.stopService()
    print(json.dumps(result), flush=True)  # noqa: T201


def start(location: tuple[str, str], action: str, *arguments: str) -> subprocess.Popen[str]:
    """Start one process, which waits for `go`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.hammer", *location, action, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
        text=True,
    )


def release(processes: list[subprocess.Popen[str]]) -> None:
    """Let all processes start their action at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def go(processes: list[subprocess.Popen[str]]) -> list[Any]:
    """Let all processes start at once; return the final output of each."""
    release(processes)
    answers = []
    for process in processes:
        output, _ = process.communicate(timeout=patient(60))
        assert process.returncode == 0
        answers.append(json.loads(output.splitlines()[-1]))
    return answers


if __name__ == "__main__":
    gc.freeze()  # the exit of each of many processes is cheaper
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
