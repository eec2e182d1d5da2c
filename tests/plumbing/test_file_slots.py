"""Slots that the processes of a machine share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.plumbing.file_slots import FileSlots, TakenSlot
from shiftergw.plumbing.threads import Threads
from tests.work.waiting import until

real: Any = reactor


@contextmanager
def recording(waits: list[bool]) -> Iterator[None]:
    """Record True when a wait begins, and False when it ends."""
    waits.append(True)
    try:
        yield
    finally:
        waits.append(False)


class Holder:
    """A caller that takes a slot, and returns it when the test says so."""

    def __init__(self, slots: FileSlots, numbers: range, queue: str = "any") -> None:
        """Begin to take one of these slots."""
        self.waits: list[bool] = []
        self.slot: TakenSlot | None = None
        self._end: Deferred[None] = Deferred()
        self.result = Deferred.fromCoroutine(self._hold(slots, numbers, queue))

    async def _hold(self, slots: FileSlots, numbers: range, queue: str) -> None:
        async with slots.take(numbers, queue, partial(recording, self.waits)) as self.slot:
            await self._end

    async def end(self) -> None:
        """Return the slot."""
        self._end.callback(None)
        await self.result


@pytest.fixture
def slots(tmp_path: Path, threads: Threads) -> FileSlots:
    """Return slots in a directory that does not exist yet."""
    return FileSlots(tmp_path / "slots", threads, real)


def names(tmp_path: Path) -> list[str]:
    """Return the suffixes of the files in the directory of slots."""
    return sorted(path.suffix for path in (tmp_path / "slots").iterdir())


def waits(holder: Holder) -> Callable[[], bool]:
    """Return whether a holder has begun to wait."""
    return lambda: holder.waits == [True]


@pytest_twisted.ensureDeferred
async def test_as_many_holders_as_slots(slots: FileSlots, tmp_path: Path) -> None:
    """The third of two slots waits until one is returned; nothing is left at the end."""
    holders = [Holder(slots, range(2)) for _ in range(2)]
    await until(lambda: all(holder.slot for holder in holders))
    numbers = [holder.slot.holders for holder in holders if holder.slot]
    assert (max(numbers), holders[0].waits) == (2, [])
    third = Holder(slots, range(2))
    await until(lambda: ".ticket" in names(tmp_path))
    assert (third.slot, third.waits) == (None, [True])
    await holders[1].end()
    await until(lambda: third.slot is not None)
    assert third.waits == [True, False]
    await third.end()
    await holders[0].end()
    assert names(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_the_first_in_the_queue_is_served_first(slots: FileSlots, tmp_path: Path) -> None:
    """Slots go to those who wait, in the order of their coming, and not to newcomers."""
    first = Holder(slots, range(1))
    await until(lambda: first.slot is not None)
    queue = []
    for number in range(3):
        queue.append(Holder(slots, range(1)))
        await until(lambda: names(tmp_path).count(".ticket") == number + 1)  # noqa: B023 - used at once
    for holder in queue:
        async with slots.try_take(range(2), "any") as slot:
            assert slot is None
        await first.end()
        await until(lambda: holder.slot is not None)  # noqa: B023 - used at once
        first = holder
    assert not await slots.has_queue("any")
    await first.end()


@pytest_twisted.ensureDeferred
async def test_queues_do_not_wait_for_each_other(slots: FileSlots) -> None:
    """A free slot that the first of one queue may not have goes to the first of another."""
    holder = Holder(slots, range(1, 2), "large")
    await until(lambda: holder.slot is not None)
    large = Holder(slots, range(1, 2), "large")
    await until(waits(large))
    small = Holder(slots, range(2), "small")
    await until(lambda: small.slot is not None)
    assert (small.waits, large.slot) == ([], None)
    for user in (small, holder, large):
        await user.end()


@pytest_twisted.ensureDeferred
async def test_a_cancelled_wait_leaves_no_place_in_the_queue(
    slots: FileSlots, tmp_path: Path
) -> None:
    """Neither a ticket nor a slot is left, and the wait counts as ended."""
    holder = Holder(slots, range(1))
    await until(lambda: holder.slot is not None)
    waiter = Holder(slots, range(1))
    await until(lambda: ".ticket" in names(tmp_path))
    waiter.result.cancel()
    with pytest.raises(CancelledError):
        await waiter.result
    assert (waiter.waits, names(tmp_path)) == ([True, False], [".slot"])
    await holder.end()


@contextmanager
def process_with(*paths: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds the locks of these files."""
    program = (
        "import sys, time, pathlib; from shiftergw.plumbing.locks import try_lock;"
        "held = [try_lock(pathlib.Path(name)) for name in sys.argv[1:]];"
        "print(None not in held, flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, *map(str, paths)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process


@pytest_twisted.ensureDeferred
async def test_the_dead_hold_nothing(slots: FileSlots, tmp_path: Path) -> None:
    """A process that was killed frees its slot, and its place in the queue."""
    directory = tmp_path / "slots"
    directory.mkdir()
    with process_with(directory / "0.slot", directory / f"any-{0:020}-1-0.ticket") as dead:
        waiter = Holder(slots, range(1))
        await until(lambda: names(tmp_path) == [".slot", ".ticket", ".ticket"])
        assert waiter.slot is None
        dead.kill()
    await until(lambda: waiter.slot is not None)
    assert names(tmp_path) == [".slot"]
    await waiter.end()
