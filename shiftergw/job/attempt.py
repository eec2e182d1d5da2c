"""One attempt at a piece of work: what it tells the store, and how it learns that it is over.

The pipeline reports often and must not wait for the store; so it only leaves its news here, and
one loop writes the latest of it every half second. The same loop keeps the attempt's leases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed, PullError, RetryLater, Superseded, Unavailable
from shiftergw.job.summary import Timeline
from shiftergw.model import ImageRecord, Postponed, Progress, WaitLimits
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageStore
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

WRITE_SECONDS = 0.5
"""How often news reaches the store, if there is any."""

HUNG_SECONDS = 4 * 3600.0
"""How long a stage may have no news until it counts as hung, and is left to a new attempt."""

_WAITS = WaitLimits()

LEASE_SECONDS = 120.0
"""How long a lease lives without being renewed."""

LEASE_WAIT = 3600.0
"""How long a delivery waits for others of the same image, altogether."""

PATIENCE = 20.0
"""How long a delivery waits for another one with a worker in hand."""


class Attempt:
    """The news of one attempt, and the loop that carries it to the store."""

    _log = Logger()

    def __init__(
        self,
        record: ImageRecord,
        store: ImageStore,
        clock: IReactorTime,
        heartbeat_limit: float,
        waits: WaitLimits = _WAITS,
    ) -> None:
        """Speak for `record.attempt`."""
        self.record = record
        self._store = store
        self._clock = clock
        self._waits = waits
        self._beat_every = heartbeat_limit / 4
        self._state = self._written_state = record.status
        self._message = self._written_message = ""
        self._progress = self._written_progress = Progress()
        self.timeline = Timeline(clock, str(record.status))
        self.why = ""
        """The cause of a failure, for the log."""
        self._last_beat = self._last_news = clock.seconds()
        self._writing = DeferredLock()
        self._leases: dict[tuple[str, str], float] = {}
        self.lost = False
        """Whether a newer attempt has taken over."""

    @property
    def stage(self) -> str:
        """Return the word of the stage that the attempt is in."""
        return str(self._state)

    @property
    def holder(self) -> str:
        """Return the name under which this attempt holds leases."""
        return f"{self.record.key}/{self.record.attempt}"

    # The pipeline's `Watcher`.

    def enter_stage(self, state: State, message: str) -> None:
        """Note a new stage."""
        self._state, self._message, self._progress = state, message, Progress()
        self.timeline.enter(str(state))

    def report(self, progress: Progress) -> None:
        """Note how far the stage is."""
        self._progress = progress
        self.timeline.report(progress)

    def notify(self, message: str) -> None:
        """Note what the stage waits for."""
        self._message = message

    def may_wait(self, later: RetryLater) -> bool:
        """Return whether the pull waits as long as its source asks; otherwise it fails."""
        try:
            self.wait(later)
        except PullError:
            return False
        return True

    def wait(self, later: RetryLater) -> Postponed:
        """Return until when the pull waits; raise a `PullError` if that is too long."""
        waited = {
            "registry": self.record.waited,
            "pull": self.record.waited_for_pulls,
            "system": self.record.waited_for_system,
        }[later.cause]
        return decide_wait(waited, later, self._clock.seconds(), self._waits)

    # What goes to the store.

    async def keep_alive(self, on_lost: Callable[[], object]) -> None:
        """Write news and heartbeats until cancelled; call `on_lost` once when superseded.

        A store that is away is no reason to stop: the work goes on, and the next round tries again.
        """
        while True:
            await pause(WRITE_SECONDS, self._clock)
            try:
                await self.write()
            except Superseded:
                self.lost = True
                on_lost()
                return
            except Unavailable as error:
                self._log.warn("heartbeat of {key}: {error}", key=self.record.key, error=error)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - a loop that ends in silence would look like death
                self._log.failure("heartbeat of {key}", key=self.record.key)

    async def write(self) -> None:
        """Write what is new, or a heartbeat if one is due; raise `Superseded` if it is over."""
        now = self._clock.seconds()
        await self._write_news(now, due=now - self._last_beat >= self._beat_every)
        await self._renew_leases(now, older_than=LEASE_SECONDS / 4)

    async def confirm(self) -> None:
        """Raise `Superseded` unless this attempt, and its leases, are still the ones that count.

        Waits for a store that is away, as `lease` does.
        """

        async def confirmed(now: float) -> None:
            await self._write_news(now, due=True)
            await self._renew_leases(now, older_than=0)

        await retry_while_unavailable(confirmed, self._clock, f"the word of {self.record.key}")

    async def _write_news(self, now: float, *, due: bool) -> None:
        # One at a time: a slow store must not be told of an earlier stage after a later one.
        async with self._writing:
            await self._write_latest(now, due=due)

    async def _write_latest(self, now: float, *, due: bool) -> None:
        key, number = self.record.key, self.record.attempt
        state, message, progress = self._state, self._message, self._progress
        if state is not self._written_state:
            await self._store.advance(key, number, state, message, now)
            self._last_news = now
        elif message != self._written_message or progress != self._written_progress:
            await self._store.heartbeat(key, number, progress, now, message)
            self._last_news = now
        elif now - self._last_news > HUNG_SECONDS:
            # What hangs may not even be stopped: without heartbeats the whole worker will be.
            raise Superseded("The stage has had no news for hours.")
        elif due:
            await self._store.heartbeat(key, number, progress, now, message)
        else:
            return
        self._last_beat = now
        self._written_state, self._written_message = state, message
        self._written_progress = progress

    async def _renew_leases(self, now: float, older_than: float) -> None:
        """Renew leases by their own age: a stage that reports all the time is no reason not to."""
        for place, taken in list(self._leases.items()):
            # One may have been given back while another was being renewed.
            if place in self._leases and now - taken >= older_than:
                await self._take(*place)

    async def lease(self, directory: str, image_id: str) -> None:
        """Hold the lease on (image directory, id); wait while another delivery holds it.

        Not for long: raises `RetryLater`, since the wait holds a worker.
        """
        until = self._clock.seconds() + PATIENCE
        while not await retry_while_unavailable(
            lambda now: self._store.lease(directory, image_id, self.holder, now, LEASE_SECONDS),
            self._clock,
            f"the lease of {self.record.key}",
        ):
            if self._clock.seconds() > until:
                failure = DeliveryFailed(
                    "Another delivery of this image did not end.", remedy="Try again later."
                )
                now = self._clock.seconds()
                why = "another delivery of this image"
                raise RetryLater(now + PATIENCE, why, failure, limit=LEASE_WAIT)
            self.notify("Waiting for another delivery of this image")
            await pause(1, self._clock)
        self._leases[directory, image_id] = self._clock.seconds()

    async def release(self) -> None:
        """Give all leases back; while the store is away they end by themselves."""
        while self._leases:
            (directory, image_id), _ = self._leases.popitem()
            try:
                await self._store.release(directory, image_id, self.holder)
            except Unavailable as error:
                self._log.warn("lease of {key}: {error}", key=self.record.key, error=error)

    async def _take(self, directory: str, image_id: str) -> None:
        now = self._clock.seconds()
        if not await self._store.lease(directory, image_id, self.holder, now, LEASE_SECONDS):
            raise Superseded("Another delivery has taken this image directory's lease.")
        if (directory, image_id) in self._leases:
            self._leases[directory, image_id] = now
