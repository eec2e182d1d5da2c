"""One attempt at a record: its progress and its heartbeats in the store, and its leases.

The pipeline reports often and must not wait for the store. So it leaves its reports here, and one
loop writes the latest of them every half second. The same loop renews the attempt's leases, and
notices when a newer attempt has taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed, RetryLater, Superseded, Unavailable
from shiftergw.job.estimate import Estimate
from shiftergw.job.timeline import Timeline
from shiftergw.model.postponement import Postponement, WaitLimits
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageStore
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

WRITE_SECONDS = 0.5
"""Seconds between two writes of changed progress."""

HUNG_SECONDS = 4 * 3600.0
"""Seconds without any sign of work after which a stage counts as hung; then another attempt starts.

Each report that differs from the last one is a sign of work, also if work that failed is done again
and users see no more bytes than before.
"""

_WAITS = WaitLimits()

LEASE_SECONDS = 120.0
"""Seconds for which a lease is valid without being renewed."""

LEASE_WAIT = 3600.0
"""Seconds that a pull waits for other deliveries of the same image, all its waits together."""

LEASE_PATIENCE = 20.0
"""Seconds that a delivery waits for the lease before it is postponed and frees its worker."""


class Attempt:
    """Reports one attempt to the store, and holds its leases."""

    _log = Logger()

    def __init__(
        self,
        record: ImageRecord,
        store: ImageStore,
        clock: IReactorTime,
        heartbeat_limit: float,
        waits: WaitLimits = _WAITS,
    ) -> None:
        """Report for attempt `record.attempt`; `heartbeat_limit` is in seconds."""
        self.record = record
        self._store = store
        self._clock = clock
        self._waits = waits
        self._beat_every = heartbeat_limit / 4
        self._state = self._written_state = record.status
        self._message = self._written_message = ""
        self._progress = self._written_progress = self._last_report = Progress()
        self.estimate = Estimate()
        """The rate of the stage, and the time left."""
        self._has_worked = False
        """Whether a report since the last write was another one than that before it."""
        self.timeline = Timeline(clock, str(record.status))
        self.cause = ""
        """The cause of a failure, for the log."""
        self.cause_code = ""
        """The code of the error, or the kind of wait, for the metrics."""
        self.image_id = record.id or ""
        """The id of the image, for the log, once it is known."""
        self._last_beat = self._last_change = clock.seconds()
        self._writing = DeferredLock()
        self._leases: dict[tuple[str, str], float] = {}
        self.is_superseded = False
        """Whether a newer attempt has taken over."""

    @property
    def stage(self) -> str:
        """Return the state that names the stage of the attempt."""
        return str(self._state)

    @property
    def holder(self) -> str:
        """Return the name under which this attempt holds leases."""
        return f"{self.record.key}/{self.record.attempt}"

    # `Watcher`, for the pipeline.

    def enter_stage(self, state: State, message: str) -> None:
        """Begin a stage; `message` is one line for the user."""
        self._state, self._message, self._progress = state, message, Progress()
        self.timeline.enter(str(state))

    def report(self, progress: Progress) -> None:
        """Replace the progress of the stage; users never see it go backwards."""
        self._has_worked |= progress != self._last_report
        self._last_report = progress
        self._progress = progress.after(self._progress)
        self.estimate.add(self._progress, self._clock.seconds())
        self.timeline.report(progress)

    def report_reading(self, progress: Progress) -> None:
        """Estimate the time left by how far layers are read; users see the download."""
        self.estimate.add_reading(progress, self._clock.seconds())

    def notify(self, message: str) -> None:
        """Tell the user in one line what the stage waits for; the stage stays the same."""
        self._message = message

    def decide_postponement(self, delay: RetryLater) -> Postponement:
        """Return the postponement that `delay` asks for; raise a `PullError` if it is too long."""
        wait_seconds = {
            "registry": self.record.waited,
            "pull": self.record.waited_for_pulls,
            "system": self.record.waited_for_system,
        }[delay.cause]
        return decide_wait(wait_seconds, delay, self._clock.seconds(), self._waits)

    # The store.

    async def keep_alive(self, on_superseded: Callable[[], object]) -> None:
        """Write progress and heartbeats until cancelled; call `on_superseded` once when superseded.

        If the store is unavailable, the work goes on and the next round tries again.
        """
        while True:
            await pause(WRITE_SECONDS, self._clock)
            try:
                await self.write()
            except Superseded:
                self.is_superseded = True
                on_superseded()
                return
            except Unavailable as error:
                self._log.warn("heartbeat of {key}: {error}", key=self.record.key, error=error)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - without heartbeats the attempt would count as dead
                self._log.failure("heartbeat of {key}", key=self.record.key)

    async def write(self) -> None:
        """Write changed progress, or a heartbeat if one is due; renew old leases.

        Raises `Superseded` if a newer attempt has taken over, or a lease is lost.
        """
        now = self._clock.seconds()
        await self._write_progress(now, due=now - self._last_beat >= self._beat_every)
        await self._renew_leases(now, older_than=LEASE_SECONDS / 4)

    async def confirm(self) -> None:
        """Raise `Superseded` unless this attempt and its leases are still valid.

        Waits for a store that is unavailable, as `lease` does.
        """

        async def write_and_renew(now: float) -> None:
            await self._write_progress(now, due=True)
            await self._renew_leases(now, older_than=0)

        await retry_while_unavailable(
            write_and_renew, self._clock, f"the heartbeat of {self.record.key}"
        )

    async def _write_progress(self, now: float, *, due: bool) -> None:
        # One write at a time: a slow store must not get an earlier stage after a later one.
        async with self._writing:
            await self._write_latest(now, due=due)

    async def _write_latest(self, now: float, *, due: bool) -> None:
        key, number = self.record.key, self.record.attempt
        state, message, progress = self._state, self._message, self._progress
        if self._has_worked:
            self._has_worked, self._last_change = False, now
        if state is not self._written_state:
            await self._store.advance(key, number, state, message, now)
            self._last_change = now
        elif message != self._written_message or progress != self._written_progress:
            await self._store.heartbeat(
                key, number, self.estimate.complete(progress, now), now, message
            )
            self._last_change = now
        elif now - self._last_change > HUNG_SECONDS:
            # The worker cancels the stage. If it hangs all the same, the heartbeats stop, and
            # the whole process is stopped for that.
            raise Superseded("The stage has made no progress for hours.")
        elif due:
            await self._store.heartbeat(
                key, number, self.estimate.complete(progress, now), now, message
            )
        else:
            return
        self._last_beat = now
        self._written_state, self._written_message = state, message
        self._written_progress = progress

    async def _renew_leases(self, now: float, older_than: float) -> None:
        """Renew leases that were last renewed `older_than` seconds ago or earlier.

        Their age counts, not that of the last heartbeat: a stage may report all the time.
        """
        for place, renewed_at in list(self._leases.items()):
            # A lease may have been released while another was being renewed.
            if place in self._leases and now - renewed_at >= older_than:
                await self._renew(*place)

    async def lease(self, directory: str, image_id: str) -> None:
        """Acquire the lease on (image directory, id), waiting while another delivery holds it.

        Raises `RetryLater` after `LEASE_PATIENCE`, since the wait occupies a worker.
        """
        deadline = self._clock.seconds() + LEASE_PATIENCE
        while not await retry_while_unavailable(
            lambda now: self._store.lease(directory, image_id, self.holder, now, LEASE_SECONDS),
            self._clock,
            f"the lease of {self.record.key}",
        ):
            if self._clock.seconds() > deadline:
                failure = DeliveryFailed(
                    "Another delivery of this image did not end.", remedy="Try again later."
                )
                now = self._clock.seconds()
                why = "another delivery of this image"
                raise RetryLater(now + LEASE_PATIENCE, why, failure, limit=LEASE_WAIT)
            self.notify("Waiting for another delivery of this image")
            await pause(1, self._clock)
        self._leases[directory, image_id] = self._clock.seconds()

    async def release(self) -> None:
        """Release all leases; if the store is unavailable, they expire by themselves."""
        while self._leases:
            (directory, image_id), _ = self._leases.popitem()
            try:
                await self._store.release(directory, image_id, self.holder)
            except Unavailable as error:
                self._log.warn("lease of {key}: {error}", key=self.record.key, error=error)

    async def _renew(self, directory: str, image_id: str) -> None:
        now = self._clock.seconds()
        if not await self._store.lease(directory, image_id, self.holder, now, LEASE_SECONDS):
            raise Superseded("Another delivery has taken this image directory's lease.")
        if (directory, image_id) in self._leases:
            self._leases[directory, image_id] = now
