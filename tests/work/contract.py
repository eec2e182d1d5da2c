"""The promises of every job queue. The test module of a queue runs them by inheritance."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.ports import JobQueue
from tests.work.keys import key_of
from tests.work.waiting import until

SYSTEM = "alpha"


class QueueService(JobQueue, Protocol):
    """A job queue that runs as a service."""

    def stopService(self) -> Deferred[None]:
        """Stop the queue."""
        ...


class QueueContract:
    """Tests that each job queue must pass.

    The subclass's module provides two fixtures: `queue`, a running queue with two slots for SYSTEM
    whose workers are those of `tests.work.workers`, and `traces`, the directory in which jobs leave
    their traces.
    """

    @pytest_twisted.ensureDeferred
    async def test_an_offered_record_reaches_a_worker(
        self, queue: QueueService, traces: Path
    ) -> None:
        """The job takes a slot, and the slot is free again when the job has ended."""
        assert queue.slots(SYSTEM) == 2
        await queue.offer(key_of("short-1"), SYSTEM)
        assert queue.slots(SYSTEM) == 1
        await until((traces / "short-1").exists)
        await until(lambda: queue.slots(SYSTEM) == 2)

    @pytest_twisted.ensureDeferred
    async def test_offers_beyond_the_slots_are_refused(
        self, queue: QueueService, traces: Path
    ) -> None:
        """Two slots run two jobs side by side; a third offer raises `Unavailable`."""
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
    async def test_cancel_stops_the_job_of_a_record(
        self, queue: QueueService, traces: Path
    ) -> None:
        """Cancelling the key of a record without a job has no effect on the jobs of others."""
        await queue.offer(key_of("sleep-1"), SYSTEM)
        await queue.offer(key_of("short-1"), SYSTEM)
        await until((traces / "sleep-1").exists)
        await queue.cancel(key_of("unknown"))
        await queue.cancel(key_of("sleep-1"))
        await until(lambda: queue.slots(SYSTEM) == 2)

    @pytest_twisted.ensureDeferred
    async def test_a_stopped_queue_lets_short_jobs_end(
        self, queue: QueueService, traces: Path
    ) -> None:
        """After the stop the queue accepts no offers, and a short job still ends by itself."""
        await queue.offer(key_of("short-1"), SYSTEM)
        await until((traces / "short-1").exists)
        await queue.stopService()
        await until((traces / "short-1-done").exists)
        assert queue.slots(SYSTEM) == 0
        with pytest.raises(Unavailable):
            await queue.offer(key_of("short-2"), SYSTEM)
