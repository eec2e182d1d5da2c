"""What every queue of work promises. A queue's own test module runs this on it, by inheritance."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import Unavailable
from shiftergw.ports import JobQueue
from tests.work.waiting import until

SYSTEM = "alpha"


def key_of(name: str) -> str:
    """Return a record's key, of 24 hex digits as they all are, that says what its job does."""
    return name.ljust(12).encode().hex()


class QueueContract:
    """The heir provides `queue`, a running one with two slots, and `traces`, where jobs leave them.

    The slots are for SYSTEM. Its workers are those of `tests.work.workers`.
    """

    @pytest_twisted.ensureDeferred
    async def test_an_offer_is_run(self, queue: JobQueue, traces: Path) -> None:
        """A record that was offered reaches a worker, and its slot is free again afterwards."""
        assert queue.slots(SYSTEM) == 2
        await queue.offer(key_of("short-1"), SYSTEM)
        assert queue.slots(SYSTEM) == 1
        await until((traces / "short-1").exists)
        await until(lambda: queue.slots(SYSTEM) == 2)

    @pytest_twisted.ensureDeferred
    async def test_no_more_than_the_slots(self, queue: JobQueue, traces: Path) -> None:
        """Without a slot an offer is refused; jobs of two slots run side by side."""
        await queue.offer(key_of("short-1"), SYSTEM)
        await queue.offer(key_of("short-2"), SYSTEM)
        assert queue.slots(SYSTEM) == 0
        with pytest.raises(Unavailable):
            await queue.offer(key_of("short-3"), SYSTEM)
        await until(lambda: (traces / "short-1").exists() and (traces / "short-2").exists())
        assert queue.slots(SYSTEM) == 0
        await until(lambda: queue.slots(SYSTEM) == 2)
        assert not (traces / "short-3").exists()

    @pytest_twisted.ensureDeferred
    async def test_cancel(self, queue: JobQueue, traces: Path) -> None:
        """A job is stopped by its key; another key disturbs nobody."""
        await queue.offer(key_of("sleep-1"), SYSTEM)
        await queue.offer(key_of("short-1"), SYSTEM)
        await until((traces / "sleep-1").exists)
        await queue.cancel(key_of("unknown"))
        await queue.cancel(key_of("sleep-1"))
        await until(lambda: queue.slots(SYSTEM) == 2)
