"""Many watchers of one pull, on a real store: what they cost it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.job.attempt import WRITE_SECONDS, Attempt
from shiftergw.model.records import Progress
from shiftergw.model.requests import Session
from shiftergw.plumbing.timing import pause
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.api import make_site
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.event_stream import MOST_OF_USER
from tests.matrices import LONG
from tests.service.gateway_bench import ALICE, READY, Bench
from tests.web.fakes import in_no_thread
from tests.web.test_event_stream import Client, names

WATCHERS = 1000 if LONG else 100
SECONDS = 6
WRITES = {"claim", "begin", "advance", "heartbeat", "finish", "renew", "record_lookup"}


class NumberedUsers:
    """Accepts the credential `good:UID`."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of a user with this uid."""
        uid = int(credential.removeprefix("good:"))
        return Session(system, f"user{uid}", uid, "users", 100)

    async def renew(self, session: Session) -> Session:
        """Return the session as it is."""
        return session


class CountingStore(SqliteStore):
    """Counts the calls of each method that reads or writes records."""

    def __init__(self, *arguments: Any) -> None:
        """Start without calls."""
        super().__init__(*arguments)
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        """Count the use of a public method."""
        value = super().__getattribute__(name)
        if name in {*WRITES, "queue", "schedule", "get", "find", "find_work"}:
            self.calls[name] += 1
        return value


async def until(clock: Clock, condition: Callable[[], object]) -> None:
    """Wait until the condition is true, while the time of the site goes on slowly."""
    for _ in range(2000):
        if condition():
            return
        clock.advance(0.01)
        await pause(0.005, reactor)
    raise AssertionError("the condition never became true")


@pytest_twisted.ensureDeferred
async def test_watchers_cost_one_read_a_second(tmp_path: Path) -> None:
    """All watchers share the reads; the worker writes at most twice a second; all see the end."""
    store = CountingStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    bench = Bench(store)
    limits = ConnectionLimits(total=3 * WATCHERS, per_peer=3 * WATCHERS)
    users = {"mycluster": NumberedUsers()}
    site = make_site(bench.gateway, users, bench.clock, in_no_thread, limits=limits)
    await bench.pull(ALICE)
    (record,) = await store.waiting(bench.clock.seconds(), 1)
    work = await store.begin(record.key, "here:1", bench.clock.seconds(), 60)
    assert work is not None
    attempt = Attempt(work, store, bench.clock, 60)
    attempt.enter_stage(State.PULLING, "Pulling layers")
    clients = [
        Client(site, str(5000 + number // MOST_OF_USER), "/api/events/mycluster/docker/app:1/")
        for number in range(WATCHERS)
    ]
    await until(bench.clock, partial(has_arrived, clients[-1], "current"))
    store.calls.clear()
    start = bench.clock.seconds()
    for second in range(SECONDS):
        for half in range(2):
            bench.clock.advance(WRITE_SECONDS)
            attempt.report(Progress("fetch", 1000 * second + 500 * half, 9000))
            await attempt.write()
        # Each look reads pages of the queue until one is empty.
        await until(bench.clock, partial(has_read, store, 2 * (second + 1)))
        for _ in range(10):  # until the last page is read, and all are told
            await pause(0.005, reactor)
            bench.clock.advance(0)
    seconds = bench.clock.seconds() - start
    assert store.calls["queue"] <= 2 * (seconds + 1)
    assert sum(store.calls[name] for name in WRITES) <= 2 * seconds
    assert not store.calls["schedule"]
    await store.finish(work.key, work.attempt, READY, bench.clock.seconds())
    bench.clock.advance(2)
    await until(bench.clock, partial(has_arrived, clients[-1], "end"))
    for client in clients:
        event_names = names(client)
        assert event_names[-1] == f"end {work.key}"
        assert event_names.count(f"work {work.key}") >= SECONDS - 2
    site.stopFactory()
    await store.stopService()


def has_read(store: CountingStore, count: int) -> bool:
    """Return whether this many pages of the queue were read."""
    return store.calls["queue"] >= count


def has_arrived(client: Client, name: str) -> bool:
    """Return whether an event has arrived, without reading it."""
    return f"event: {name}".encode() in client.unread + client.transport.value()
