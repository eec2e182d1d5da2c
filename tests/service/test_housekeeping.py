"""Old files and records are removed in time: real files and a real store with a test's clock."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build.builder import SquashBuilder
from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import Unavailable
from shiftergw.model.packed_data import PackedData
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause, shield
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


async def until_removed(*paths: Path) -> None:
    """Wait until files are removed, at most some seconds."""
    for _ in range(500):
        if not any(path.exists() for path in paths):
            return
        await pause(0.01, reactor)


def write_old(path: Path, time: float) -> Path:
    """Create a file that was last written at `time`."""
    path.write_bytes(b"x")
    os.utime(path, (time, time))
    return path


@pytest_twisted.ensureDeferred
async def test_scratch_removes_files_of_dead_attempts(tmp_path: Path) -> None:
    """Old temporary files are removed from the builder's and the image directories; others stay."""
    expand, images = tmp_path / "expand", tmp_path / "images"
    expand.mkdir()
    images.mkdir()
    before, after = NOW - SCRATCH_SECONDS - 1, NOW - SCRATCH_SECONDS + 1
    stale = write_old(images / f"{ID}.squashfs.partial.{'0' * 16}", before)
    fresh = write_old(images / f"{ID}.squashfs.partial.{'1' * 16}", after)
    image = write_old(images / f"{ID}.squashfs", before)
    foreign = write_old(images / "notes.txt", before)
    squashfs = write_old(expand / f"{ID}-{'b' * 12}.squashfs", before)
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
    await until_removed(squashfs, stale)
    await scratch.stopService()
    await threads.stopService()
    assert not stale.exists()
    assert fresh.exists()
    assert image.exists()
    assert foreign.exists()
    assert not squashfs.exists()


class HungDirectory:
    """An image directory whose sweeps end when the test decides, as on a file system that hangs."""

    def __init__(self) -> None:
        """Start with a sweep that hangs."""
        self.sweeps: list[Deferred[int]] = []

    async def sweep(self, before: float) -> int:
        """See `Sweepable`; a call that is blocked in the kernel ignores its cancellation."""
        self.sweeps.append(Deferred())
        while True:
            try:
                return await shield(self.sweeps[-1])
            except CancelledError:
                pass


@pytest_twisted.ensureDeferred
async def test_scratch_of_a_system_that_hangs(tmp_path: Path) -> None:
    """Other directories are swept meanwhile; this one only after its sweep has ended."""
    images = tmp_path / "images"
    images.mkdir()
    stale = write_old(images / f"{ID}.meta.partial.{'0' * 16}", NOW - SCRATCH_SECONDS - 1)
    clock = Clock()
    clock.advance(NOW)
    threads = Threads(reactor, 1, "test")
    threads.startService()
    hung = HungDirectory()
    up = LocalDirectory(images, threads)
    scratch = Scratch({"hung": (hung, 0), "up": (up, SCRATCH_SECONDS)}, clock)
    scratch.startService()
    await until(lambda: not stale.exists())
    await threads.run(int)  # the one thread has told of what it did before
    clock.advance(SWEEP_SECONDS)
    for count in (1, 1, 2):
        if count == 2:
            hung.sweeps[0].callback(0)
        write_old(stale, NOW - SCRATCH_SECONDS - 1)
        scratch.wake()
        await until(lambda: not stale.exists())
        assert len(hung.sweeps) == count
    hung.sweeps[1].callback(0)
    await scratch.stopService()
    await threads.stopService()


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Yield a running store."""
    running = SqliteStore(reactor, tmp_path / "store.sqlite")
    await running.startService()
    yield running
    await running.stopService()


class Housekeeper:
    """A housekeeper that runs one round, and counts how often it woke the dispatcher."""

    def __init__(self, store: SqliteStore, schedule: Schedule = Schedule()) -> None:  # noqa: B008
        """Use `store`, and `NOW` as the time."""
        self.clock = Clock()
        self.clock.advance(NOW)
        self.wakes = 0
        self.audit_events: list[Mapping[str, object]] = []
        audit = self.audit_events.append
        self.service = Housekeeping(store, self.wake, self.clock, schedule, audit=audit)

    def wake(self) -> None:
        """Count a call."""
        self.wakes += 1

    async def round(self) -> None:
        """Run one round; it has ended when the next one is scheduled."""
        self.service.startService()
        for _ in range(1000):
            if self.clock.getDelayedCalls():
                break
            await pause(0.01, reactor)
        await self.service.stopService()


@pytest_twisted.ensureDeferred
async def test_old_failures_are_forgotten(store: SqliteStore) -> None:
    """A day after its end a failure is removed; clients can still ask about a younger one."""
    keys = []
    for tag, time in (("old:1", NOW - FAILURE_SECONDS - 1), ("new:1", NOW)):
        record = await begin_pull(store, request(tag), time)
        await store.finish(record.key, record.attempt, failure(), time)
        keys.append(record.key)
    await Housekeeper(store).round()
    assert await store.get(keys[0]) is None
    assert await store.get(keys[1]) is not None


@pytest_twisted.ensureDeferred
async def test_ranges_of_files_without_an_image_are_forgotten(store: SqliteStore) -> None:
    """A day after they were saved they go, unless an image has the file; younger ones stay."""
    old_time = NOW - FAILURE_SECONDS - 1
    for sha256, time in (("a" * 64, old_time), ("b" * 64, old_time), ("c" * 64, NOW)):
        await store.save_ranges(sha256, PackedData(), time)
    await complete_pull(store, request(), sha256="b" * 64)
    await Housekeeper(store).round()
    rows = await store._read(
        lambda db: db.execute("SELECT sha256 FROM file_ranges ORDER BY sha256").fetchall()
    )
    assert rows == [("b" * 64,), ("c" * 64,)]


@pytest_twisted.ensureDeferred
async def test_due_images_expire(store: SqliteStore) -> None:
    """Due images become work, and the dispatcher is woken; images that are not due stay."""
    due = await complete_pull(store, request("due:1"), "a" * 64, expiration=NOW)
    young = await complete_pull(store, request("young:1"), "b" * 64, expiration=NOW + 1)
    timeless = await complete_pull(store, request("timeless:1"), "c" * 64)
    keeper = Housekeeper(store)
    await keeper.round()
    assert [record.key for record in await store.waiting(NOW, 5)] == [due.key]
    assert keeper.wakes == 1
    assert keeper.audit_events == [
        {"system": due.system, "action": "expiry", "image": "docker:due:1", "id": "a" * 64}
    ]
    for record in (young, timeless):
        ready = await store.get(record.key)
        assert ready is not None
        assert ready.status is State.READY


@pytest_twisted.ensureDeferred
async def test_ranges_that_stay_keep_no_image(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database does not remove old ranges, images expire all the same."""

    async def refuse(_: float) -> int:
        raise Unavailable("The user of the database may not do this.")

    monkeypatch.setattr(store, "forget_ranges", refuse)
    due = await complete_pull(store, request("due:1"), expiration=NOW)
    keeper = Housekeeper(store)
    with capturedLogs() as events:
        await keeper.round()
    assert [record.key for record in await store.waiting(NOW, 5)] == [due.key]
    assert keeper.wakes == 1
    assert any("may not do this" in formatEvent(event) for event in events)


@pytest_twisted.ensureDeferred
async def test_expiry_can_be_switched_off(store: SqliteStore) -> None:
    """Nothing expires by itself, and the log says so once; an admin can still expire images.

    Old failures of this gateway are forgotten all the same.
    """
    record = await begin_pull(store, request("old:1"), NOW - FAILURE_SECONDS - 1)
    await store.finish(record.key, record.attempt, failure(), NOW - FAILURE_SECONDS - 1)
    due = await complete_pull(store, request("due:1"), expiration=NOW)
    keeper = Housekeeper(store, Schedule(enabled=False))
    with capturedLogs() as events:
        await keeper.round()
        await keeper.round()
    texts = [formatEvent(event) for event in events]
    assert texts.count("images do not expire by themselves: ScheduledExpiry is false") == 1
    assert await store.get(record.key) is None
    assert await store.get(due.key) == due
    assert [record.key for record in await expire_due(store, NOW)] == [due.key]


@pytest_twisted.ensureDeferred
async def test_images_of_other_systems_stay(store: SqliteStore) -> None:
    """No worker could remove the files of a system that is not configured."""
    await complete_pull(store, request("here:1"), expiration=NOW - 1)
    await complete_pull(store, request("there:1", system="gone"), expiration=NOW - 1)
    await Housekeeper(store, Schedule(systems={"alpha"})).round()
    assert [record.system for record in await store.waiting(NOW, 5)] == ["alpha"]


@pytest_twisted.ensureDeferred
async def test_due_images_of_one_system_expire(store: SqliteStore) -> None:
    """Images of other systems are left alone."""
    await complete_pull(store, request("here:1"), expiration=NOW - 1)
    await complete_pull(store, request("there:1", system="beta"), expiration=NOW - 1)
    assert [record.system for record in await expire_due(store, NOW, {"beta"})] == ["beta"]
    assert [record.system for record in await expire_due(store, NOW)] == ["alpha"]
    assert await expire_due(store, NOW) == []


@pytest_twisted.ensureDeferred
async def test_many_due_images_expire_in_several_rounds(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images expire by their dates, earliest first, and a limited number in each round.

    A schedule that is switched on gives all images the same date. To remove them all at once would
    delay pulls.
    """
    monkeypatch.setattr(housekeeping, "MOST_DUE", 2)
    for n in range(5):
        await complete_pull(store, request(f"x:{n}"), f"{n:064x}", expiration=NOW - n - 1)
    rounds = [
        [record.id[-1:] for record in await expire_due(store, NOW) if record.id] for _ in range(4)
    ]
    assert rounds == [["4", "3"], ["2", "1"], ["0"], []]
