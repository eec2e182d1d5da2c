"""One job: a record that waits is taken up, worked on by its kind, and its end is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel

from shiftergw.errors import (
    GatewayError,
    ImageNotFound,
    PullError,
    RegistryDenied,
    RetryLater,
    Superseded,
    TimedOut,
    TooMany,
    Unavailable,
    WorkerLost,
)
from shiftergw.job.attempt import Attempt
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.summary import summary
from shiftergw.model import Expired, Failed, ImageRecord, Postponed, Ready, WaitLimits
from shiftergw.plumbing.exhaustion import Exhausted, is_exhaustion
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore
from shiftergw.rules.attempts import MAX_ATTEMPTS, STOPPED_MESSAGE, describe_attempt, describe_work
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

Outcome = Ready | Expired | Failed | Postponed

SUPERSEDED = "superseded by another attempt"

_WITH_REASON = frozenset({State.FAILURE, State.EXPIRING, State.PENDING})

UNWRITTEN = "The gateway's database did not take the result; the pull starts again."

REQUEUE_SECONDS = 4.0
"""How long a worker that is told to stop waits until its record is requeued."""


class Worker:
    """Takes one record at a time from waiting to its end."""

    _log = Logger()

    def __init__(
        self,
        store: ImageStore,
        pull: Pull,
        removal: Removal,
        clock: IReactorTime,
        runner: str,
        heartbeat_limit: float,
        waits: WaitLimits | None = None,
    ) -> None:
        """Do both kinds of work; `runner` names this process in the store."""
        self._waits = waits or WaitLimits()
        self._store = store
        self._pull = pull
        self._removal = removal
        self._clock = clock
        self._runner = runner
        self._heartbeat_limit = heartbeat_limit
        self._working: tuple[ImageRecord, Deferred[Any]] | None = None
        self._overdue = False

    def late(self, key: str) -> None:
        """End the work on a record, if it goes on, as a failure: it has taken too long."""
        if self._working is not None and self._working[0].key == key:
            self._overdue = True
            self._working[1].cancel()

    async def abandon(self) -> bool:
        """Requeue a record whose work does not end, before this process is killed for that.

        Returns whether there is one. It counts as a death.
        """
        if self._working is None:
            return False
        await self._requeue(self._working[0], STOPPED_MESSAGE, died=True)
        return True

    async def run(self, key: str) -> None:
        """Do the work of a record, if it is still to be done, and write down how it ended.

        Being cancelled requeues the record: the process is told to stop, and another attempt takes
        the work up. So does an end that could not be written. Raises `Exhausted` if this process
        had better end; then the record is left to whatever has started it.
        """
        limit = self._heartbeat_limit
        # Nobody else is told of it meanwhile: who offered it takes it for begun.
        record = await retry_while_unavailable(
            lambda now: self._store.begin(key, self._runner, now, limit),
            self._clock,
            f"the begin of {key}",
        )
        if record is None:
            return
        self._log.info(
            "begins: {what}, {trace}", what=describe_work(record), trace=describe_attempt(record)
        )
        attempt = Attempt(record, self._store, self._clock, limit, self._waits)
        try:
            outcome = await self._outcome(attempt)
            if outcome is not None:
                await self._finish(attempt, outcome)
        except CancelledError:
            await self._requeue(record, STOPPED_MESSAGE, died=False)
            raise
        except Unavailable:
            # Counted, since the work is done again: it may have cost hours.
            await self._requeue(record, UNWRITTEN, died=True)
            raise
        finally:
            # Not before the end is written: what we delivered is nobody's until then.
            await attempt.release()
        if outcome is None:
            self._say_ended(attempt, SUPERSEDED)

    async def _requeue(self, record: ImageRecord, message: str, *, died: bool) -> None:
        """Give the record to the next attempt; briefly, since the process is about to end."""
        try:
            await within(
                REQUEUE_SECONDS,
                self._clock,
                self._store.requeue(record.key, record.attempt, message, died=died),
                lambda: Unavailable("The gateway's database does not answer."),
            )
        except Superseded:
            return
        except Unavailable as error:
            self._log.error(
                "not requeued: {what}, {trace}: {error}",
                what=describe_work(record),
                trace=describe_attempt(record),
                error=error,
            )
        else:
            self._log.warn(
                "requeued: {what}, {trace}: {message}",
                what=describe_work(record),
                trace=describe_attempt(record),
                message=message,
            )

    async def _outcome(self, attempt: Attempt) -> Outcome | None:
        """Do the work while the attempt keeps its record alive; None if it was superseded."""
        work = Deferred.fromCoroutine(self._work(attempt))
        self._working, self._overdue = (attempt.record, work), False
        pulse = Deferred.fromCoroutine(attempt.keep_alive(work.cancel))
        try:
            return await work
        except Superseded:
            return None
        except CancelledError:
            if attempt.lost:
                return None
            if not self._overdue:
                raise
            late = TimedOut("The site's limit of time for one image was reached.")
            attempt.why = late.what
            return Failed(attempt.stage, late.what, late.remedy, late.retryable)
        finally:
            self._working = None
            pulse.cancel()
            pulse.addErrback(lambda failure: failure.trap(CancelledError))
            await pulse

    async def _finish(self, attempt: Attempt, outcome: Outcome) -> None:
        record = attempt.record
        try:
            try:
                ended = await self._written(record, outcome)
            except (CancelledError, Superseded, Unavailable):
                raise
            except TooMany as error:  # so many wait already that this pull cannot
                attempt.why = error.what
                failure = PullError(error.what, remedy=error.remedy)
                ended = await self._written(record, self._failed(attempt, failure))
            except Exception as error:  # noqa: BLE001 - again and again it would be the same
                outcome = self._failed(attempt, error)
                ended = await self._written(record, outcome)
        except Superseded:
            self._say_ended(attempt, SUPERSEDED)
            return
        self._say_ended(attempt, str(ended.status), ended.size)

    async def _written(self, record: ImageRecord, outcome: Outcome) -> ImageRecord:
        """Write an end down, and return what remains.

        The store may be away for a moment, and the work may have cost hours. Leases live longer
        than it is waited for.
        """

        async def write(now: float) -> ImageRecord:
            if not isinstance(outcome, Postponed):
                return await self._store.finish(record.key, record.attempt, outcome, now)
            limits = self._waits.limits_of(outcome.cause)
            at, why = outcome.not_before, outcome.why
            return await self._store.postpone(
                record.key, record.attempt, at, why, now, limits, outcome.cause
            )

        return await retry_while_unavailable(write, self._clock, f"the end of {record.claim}")

    async def _work(self, attempt: Attempt) -> Outcome:
        """Do the work; turn every error but cancellation and supersession into a reason."""
        record = attempt.record
        try:
            if record.status is State.EXPIRING:
                return await self._removal.run(attempt)  # until it succeeds
            _check_deaths(record.deaths)
            return await self._pull.run(attempt)
        except (CancelledError, Superseded):
            raise
        except Exception as error:
            if is_exhaustion(error):
                raise Exhausted(str(error)) from error
            if isinstance(error, RetryLater):
                return self._postponed(attempt, error)
            # One record's surprise must not end the worker.
            return self._failed(attempt, error)

    def _postponed(self, attempt: Attempt, later: RetryLater) -> Outcome:
        """Return until when a pull waits, or its failure if that is too long.

        Removals have a way of their own to be tried again.
        """
        attempt.why = f"{later.why}: {later.what} {later.detail}".strip()
        if attempt.record.status is State.EXPIRING:
            return self._failed(attempt, later.failure)
        try:
            return attempt.wait(later)
        except PullError as error:
            return self._failed(attempt, error)

    def _failed(self, attempt: Attempt, error: Exception) -> Failed:
        """Return the reason that an error is, and log the rest of it."""
        record = attempt.record
        if not isinstance(error, GatewayError):
            self._log.failure(
                "fault: {what}, {trace}", what=describe_work(record), trace=describe_attempt(record)
            )
            attempt.why = f"{type(error).__name__}; its traceback is in the line before"
            error = GatewayError("The gateway met a fault of its own.")
            return Failed(attempt.stage, error.what, error.remedy, retryable=False)
        attempt.why = f"{error.what} {error.detail}".strip()
        # What a login, or the lack of one, has to do with is this user's matter alone.
        own = (
            record.sealed is not None
            or record.kind == "acl"
            or isinstance(error, RegistryDenied | ImageNotFound)
        )
        return Failed(attempt.stage, error.what, error.remedy, error.retryable, own=own)

    def _say_ended(self, attempt: Attempt, ended: str, size: int | None = None) -> None:
        """Log the end of an attempt: who, what, how much, how long, and why it failed."""
        why = attempt.why if ended in _WITH_REASON else ""
        level = LogLevel.warn if why and ended != State.PENDING else LogLevel.info
        text = summary(attempt.record, attempt.timeline, ended, size, why)
        self._log.emit(level, "{text}", text=text)


def _check_deaths(number: int) -> None:
    if number >= MAX_ATTEMPTS:
        raise WorkerLost(f"{number} workers died on this image, one after the other.")
