"""What every queue of work promises. A queue's own test module runs this on it, by inheritance."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import Unavailable
from shiftergw.ports import JobQueue
from tests.work.waiting import until


class QueueContract:
    """The heir provides `queue`, a running one with two slots, and `traces`, where jobs leave them.

    Its workers are those of `tests.work.workers`.
    """

    @pytest_twisted.ensureDeferred
    async def test_an_offer_is_run(self, queue: JobQueue, traces: Path) -> None:
        """A record that was offered reaches a worker, and its slot is free again afterwards."""
        assert queue.slots() == 2
        await queue.offer("short-1")
        assert queue.slots() == 1
        await until((traces / "short-1").exists)
        await until(lambda: queue.slots() == 2)

    @pytest_twisted.ensureDeferred
    async def test_no_more_than_the_slots(self, queue: JobQueue, traces: Path) -> None:
        """Without a slot an offer is refused; jobs of two slots run side by side."""
        await queue.offer("short-1")
        await queue.offer("short-2")
        assert queue.slots() == 0
        with pytest.raises(Unavailable):
            await queue.offer("short-3")
        await until(lambda: (traces / "short-1").exists() and (traces / "short-2").exists())
        assert queue.slots() == 0
        await until(lambda: queue.slots() == 2)
        assert not (traces / "short-3").exists()

    @pytest_twisted.ensureDeferred
    async def test_cancel(self, queue: JobQueue, traces: Path) -> None:
        """A job is stopped by its key; another key disturbs nobody."""
        await queue.offer("sleep-1")
        await queue.offer("short-1")
        await until((traces / "sleep-1").exists)
        await queue.cancel("unknown")
        await queue.cancel("sleep-1")
        await until(lambda: queue.slots() == 2)

    @pytest_twisted.ensureDeferred
    async def test_drain_waits(self, queue: JobQueue, traces: Path) -> None:
        """Draining takes no more and lets running jobs end."""
        await queue.offer("short-1")
        await queue.drain(20)
        assert (traces / "short-1").exists()
        assert queue.slots() == 0
        with pytest.raises(Unavailable):
            await queue.offer("short-2")

    @pytest_twisted.ensureDeferred
    async def test_drain_has_a_limit(self, queue: JobQueue, traces: Path) -> None:
        """A job that does not end within the limit is stopped."""
        await queue.offer("sleep-1")
        await until((traces / "sleep-1").exists)
        await queue.drain(0.1)
        assert queue.slots() == 0
