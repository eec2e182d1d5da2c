"""Rounds of the dispatcher, on a store with work."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.task import Clock

from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.service.dispatch import Dispatch
from shiftergw.store.sqlite.store import SqliteStore

LIMIT = 60.0
SYSTEMS = ("alpha", "down", "up")


async def claim_work(
    store: SqliteStore, clock: Clock, count: int, uid: int = 1, system: str = "alpha"
) -> Sequence[str]:
    """Return the keys of new work."""
    keys = []
    for n in range(count):
        request = PullRequest(system, "docker", ImageReference.parse(f"u{uid}:{n}"), uid)
        keys.append((await store.claim(request, clock.seconds() + n / 100))[0].key)
    return keys


async def begin(store: SqliteStore, key: str, clock: Clock) -> ImageRecord:
    """Begin a record as a worker does."""
    record = await store.begin(key, "node:1", clock.seconds(), LIMIT)
    assert record is not None
    return record


async def run_round(dispatch: Dispatch) -> None:
    """Run one round to its end."""
    dispatch.startService()
    await dispatch.stopService()
