"""What is tidied up, and when: real files and a real store on a clock of the test's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build.whole import SquashBuilder
from shiftergw.delivery.local import LocalDirectory
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause, shielded
from shiftergw.ports import Sweepable
from shiftergw.service import housekeeping
from shiftergw.service.housekeeping import (
    FAILURE_SECONDS,
    SCRATCH_SECONDS,
    SWEEP_SECONDS,
    Housekeeping,
    Schedule,
    Scratch,
    expire_due,
)
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.pulls import begin_pull, complete_pull, failure, request
from tests.work.waiting import until

NOW = 1_000_000.0
ID = "a" * 64


async def until_gone(*paths: Path) -> None:
    """Wait until files are gone, but not for ever."""
    for _ in range(500):
        if not any(path.exists() for path in paths):
            return
        await pause(0.01, reactor)


def aged(path: Path, at: float) -> Path:
    """Make a file that was last written at some time."""
    path.write_bytes(b"x")
    os.utime(path, (at, at))
    return path


@pytest_twisted.ensureDeferred
async def test_scratch_removes_what_the_dead_left(tmp_path: Path) -> None:
    """Old temporaries go, from the builder's directory and from image directories; others stay."""
    expand, images = tmp_path / "expand", tmp_path / "images"
    expand.mkdir()
    images.mkdir()
    before, after = NOW - SCRATCH_SECONDS - 1, NOW - SCRATCH_SECONDS + 1
    stale = aged(images / f"{ID}.squashfs.partial.{'0' * 16}", before)
    fresh = aged(images / f"{ID}.squashfs.partial.{'1' * 16}", after)
    delivered = aged(images / f"{ID}.squashfs", before)
    foreign = aged(images / "notes.txt", before)
    unused = aged(expand / f"{ID}-{'b' * 12}.squashfs", before)
    clock = Clock()
    clock.advance(NOW)
    threads = Threads(reactor, 1, "test")
    threads.startService()
    builder = SquashBuilder(expand, "mksquashfs", threads, threads, reactor, clock)
    down = LocalDirectory(tmp_path / "gone", threads)  # which does not hold up the others
    places: dict[str, tuple[Sweepable, float]] = {
        "expand": (builder, SCRATCH_SECONDS),
        "down": (down, SCRATCH_SECONDS),
        "up": (LocalDirectory(images, threads), SCRATCH_SECONDS),
    }
    scratch = Scratch(places, clock)
    scratch.startService()
    await until_gone(unused, stale)
    await scratch.stopService()
    await threads.stopService()
    assert not stale.exists()
    assert fresh.exists()
    assert delivered.exists()
    assert foreign.exists()
    assert not unused.exists()


class Stuck:
    """An image directory that answers when the test wants, as on a file system that hangs."""

    def __init__(self) -> None:
        """Answer nothing yet."""
        self.asked: list[Deferred[int]] = []

    async def sweep(self, before: float) -> int:
        """See `Sweepable`; what is in the kernel's hands does not hear of a cancellation."""
        self.asked.append(Deferred())
        while True:
            try:
                return await shielded(self.asked[-1])
            except CancelledError:
                pass


@pytest_twisted.ensureDeferred
async def test_scratch_of_a_system_that_hangs(tmp_path: Path) -> None:
    """The others are tidied up meanwhile; rounds go on without it, until it answers after all."""
    images = tmp_path / "images"
    images.mkdir()
    stale = aged(images / f"{ID}.meta.partial.{'0' * 16}", NOW - SCRATCH_SECONDS - 1)
    clock = Clock()
    clock.advance(NOW)
    threads = Threads(reactor, 1, "test")
    threads.startService()
    stuck = Stuck()
    up = LocalDirectory(images, threads)
    scratch = Scratch({"stuck": (stuck, 0), "up": (up, SCRATCH_SECONDS)}, clock)
    scratch.startService()
    await until(lambda: not stale.exists())
    await threads.run(int)  # the one thread has told of what it did before
    clock.advance(SWEEP_SECONDS)
    for sweeps in (1, 1, 2):
        if sweeps == 2:
            stuck.asked[0].callback(0)
        aged(stale, NOW - SCRATCH_SECONDS - 1)
        scratch.wake()
        await until(lambda: not stale.exists())
        assert len(stuck.asked) == sweeps
    stuck.asked[1].callback(0)
    await scratch.stopService()
    await threads.stopService()


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Open a store."""
    opened = SqliteStore(reactor, tmp_path / "store.sqlite")
    await opened.startService()
    yield opened
    await opened.stopService()


class Housekeeper:
    """Does one round, and counts how often it woke somebody."""

    def __init__(self, store: SqliteStore, schedule: Schedule = Schedule()) -> None:  # noqa: B008
        """Keep house in `store` at `NOW`."""
        self.clock = Clock()
        self.clock.advance(NOW)
        self.woken = 0
        self.service = Housekeeping(store, self.wake, self.clock, schedule)

    def wake(self) -> None:
        """Count."""
        self.woken += 1

    async def round(self) -> None:
        """Do one round: it is over when the next one is waited for."""
        self.service.startService()
        for _ in range(1000):
            if self.clock.getDelayedCalls():
                break
            await pause(0.01, reactor)
        await self.service.stopService()


@pytest_twisted.ensureDeferred
async def test_old_failures_are_forgotten(store: SqliteStore) -> None:
    """A day after its end a failure is gone; a younger one can still be asked about."""
    keys = []
    for tag, ended in (("old:1", NOW - FAILURE_SECONDS - 1), ("new:1", NOW)):
        record = await begin_pull(store, request(tag), ended)
        await store.finish(record.key, record.attempt, failure(), ended)
        keys.append(record.key)
    await Housekeeper(store).round()
    assert await store.get(keys[0]) is None
    assert await store.get(keys[1]) is not None


@pytest_twisted.ensureDeferred
async def test_images_whose_time_is_up_expire(store: SqliteStore) -> None:
    """They become work for the workers, who are woken; younger ones and timeless ones stay."""
    due = await complete_pull(store, request("due:1"), "a" * 64, expiration=NOW)
    young = await complete_pull(store, request("young:1"), "b" * 64, expiration=NOW + 1)
    timeless = await complete_pull(store, request("timeless:1"), "c" * 64)
    keeper = Housekeeper(store)
    await keeper.round()
    assert [record.key for record in await store.waiting(NOW, 5)] == [due.key]
    assert keeper.woken == 1
    for record in (young, timeless):
        kept = await store.get(record.key)
        assert kept is not None
        assert kept.status is State.READY


@pytest_twisted.ensureDeferred
async def test_no_expiry_where_it_is_not_wanted(store: SqliteStore) -> None:
    """Nothing expires by itself then, and the log says so once; an admin's command still does it.

    Old failures of ours are forgotten all the same.
    """
    record = await begin_pull(store, request("old:1"), NOW - FAILURE_SECONDS - 1)
    await store.finish(record.key, record.attempt, failure(), NOW - FAILURE_SECONDS - 1)
    due = await complete_pull(store, request("due:1"), expiration=NOW)
    keeper = Housekeeper(store, Schedule(enabled=False))
    with capturedLogs() as logged:
        await keeper.round()
        await keeper.round()
    texts = [formatEvent(event) for event in logged]
    assert texts.count("images do not expire by themselves: ScheduledExpiry is false") == 1
    assert await store.get(record.key) is None
    assert await store.get(due.key) == due
    assert [one.key for one in await expire_due(store, NOW)] == [due.key]


@pytest_twisted.ensureDeferred
async def test_images_of_other_systems_stay(store: SqliteStore) -> None:
    """No worker could remove the files of a system that is not configured."""
    await complete_pull(store, request("here:1"), expiration=NOW - 1)
    await complete_pull(store, request("there:1", system="gone"), expiration=NOW - 1)
    await Housekeeper(store, Schedule(systems={"alpha"})).round()
    assert [record.system for record in await store.waiting(NOW, 5)] == ["alpha"]


@pytest_twisted.ensureDeferred
async def test_what_is_due_can_be_asked_for_by_system(store: SqliteStore) -> None:
    """Another system's images are left alone."""
    await complete_pull(store, request("here:1"), expiration=NOW - 1)
    await complete_pull(store, request("there:1", system="beta"), expiration=NOW - 1)
    assert [record.system for record in await expire_due(store, NOW, {"beta"})] == ["beta"]
    assert [record.system for record in await expire_due(store, NOW)] == ["alpha"]
    assert await expire_due(store, NOW) == []


@pytest_twisted.ensureDeferred
async def test_many_that_are_due_at_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go some at a time, those first whose time was up first; the others in later rounds.

    A schedule that is switched on dates all images alike: as much work at once would hold up pulls.
    """
    monkeypatch.setattr(housekeeping, "MOST_DUE", 2)
    for n in range(5):
        await complete_pull(store, request(f"x:{n}"), f"{n:064x}", expiration=NOW - n - 1)
    rounds = [[one.id[-1:] for one in await expire_due(store, NOW) if one.id] for _ in range(4)]
    assert rounds == [["4", "3"], ["2", "1"], ["0"], []]
