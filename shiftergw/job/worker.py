"""Run one job: begin a record, do the work of its kind, and write the outcome into the store."""

from __future__ import annotations

from contextlib import suppress
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
    key_values,
)
from shiftergw.job.attempt import Attempt
from shiftergw.job.measures import measure
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.model.postponement import Postponement, WaitLimits
from shiftergw.model.records import Expired, Failed, ImageRecord, Ready
from shiftergw.model.throughput import Throughput
from shiftergw.plumbing.exhaustion import Exhausted, is_exhaustion
from shiftergw.plumbing.retry import retry_while_unavailable
from shiftergw.plumbing.timing import within
from shiftergw.ports import NO_METRICS, ImageStore, Metrics
from shiftergw.rules.attempts import (
    MAX_ATTEMPTS,
    STOPPED_MESSAGE,
    log_values,
    trace_of,
)
from shiftergw.rules.work_ends import CAUSE_LIMIT, SUPERSEDED_OUTCOME, end_fields, event_of
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

Outcome = Ready | Expired | Failed | Postponement

UNWRITTEN_MESSAGE = "The gateway's database did not take the result; the pull starts again."

REQUEUE_SECONDS = 4.0
"""Seconds after which a worker that is about to stop gives up requeueing its record."""


class Worker:
    """Works on one record at a time, from the begin of an attempt to its outcome."""

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
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """Do pulls and removals; `runner` names this process in the store."""
        self._metrics = metrics
        self._waits = waits or WaitLimits()
        self._store = store
        self._pull = pull
        self._removal = removal
        self._clock = clock
        self._runner = runner
        self._heartbeat_limit = heartbeat_limit
        self._working: tuple[ImageRecord, Deferred[Any]] | None = None
        self._overdue = False

    def trace(self) -> dict[str, str | int | None]:
        """Return the log fields that identify the current job, or {} without a job."""
        return {} if self._working is None else trace_of(self._working[0])

    def time_out(self, key: str) -> None:
        """Fail a record that has taken too long, if this worker still works on it."""
        if self._working is not None and self._working[0].key == key:
            self._overdue = True
            self._working[1].cancel()

    async def abandon(self) -> bool:
        """Requeue the record in work, before this process is killed because it does not stop.

        The attempt counts as a death. Returns whether there was a record in work.
        """
        if self._working is None:
            return False
        await self._requeue(self._working[0], STOPPED_MESSAGE, died=True)
        return True

    async def run(self, key: str) -> None:
        """Do the work of a record, if it still waits, and write the outcome into the store.

        If the job is cancelled because the process is to stop, or if the outcome cannot be written,
        the record is requeued for another attempt and the error is raised. Raises `Unavailable` if
        the record could not be begun. Raises `Exhausted` if this process should be replaced; then
        whatever started the process requeues the record.
        """
        limit = self._heartbeat_limit
        # The dispatcher already counts this job as started, so retry here instead of giving it
        # back.
        record = await retry_while_unavailable(
            lambda now: self._store.begin(key, self._runner, now, limit),
            self._clock,
            f"the begin of {key}",
        )
        if record is None:
            return
        self._log.info("begins: {what}, {trace}", **log_values(record))
        attempt = Attempt(record, self._store, self._clock, limit, self._waits)
        try:
            outcome = await self._outcome(attempt)
            if outcome is not None:
                await self._finish(attempt, outcome)
        except CancelledError:
            await self._requeue(record, STOPPED_MESSAGE, died=False)
            raise
        except Unavailable:
            # It counts as a death: the work, which may take hours, must not be repeated for ever.
            await self._requeue(record, UNWRITTEN_MESSAGE, died=True)
            raise
        finally:
            # Only after the outcome is written: until then no record owns the delivered files.
            await attempt.release()
        if outcome is None:
            self._log_end(attempt, SUPERSEDED_OUTCOME)

    async def _requeue(self, record: ImageRecord, message: str, *, died: bool) -> None:
        """Return the record to the queue; give up after `REQUEUE_SECONDS`, before a kill."""
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
                error=error,
                **log_values(record),
            )
        else:
            self._log.warn(
                "requeued: {what}, {trace}: {message}",
                message=message,
                **log_values(record),
            )

    async def _outcome(self, attempt: Attempt) -> Outcome | None:
        """Do the work while the attempt writes heartbeats; return None if it was superseded."""
        work = Deferred.fromCoroutine(self._work(attempt))
        self._working, self._overdue = (attempt.record, work), False
        pulse = Deferred.fromCoroutine(attempt.keep_alive(work.cancel))
        try:
            return await work
        except Superseded:
            return None
        except CancelledError:
            if attempt.is_superseded:
                return None
            if not self._overdue:
                raise
            error = TimedOut("The site's limit of time for one image was reached.")
            attempt.cause, attempt.cause_code = error.what, "time-limit"
            return Failed(attempt.stage, error.what, error.remedy, error.retryable)
        finally:
            self._working = None
            pulse.cancel()
            pulse.addErrback(lambda failure: failure.trap(CancelledError))
            await pulse

    async def _finish(self, attempt: Attempt, outcome: Outcome) -> None:
        record = attempt.record
        try:
            try:
                record = await self._write_outcome(record, outcome)
            except (CancelledError, Superseded, Unavailable):
                raise
            except TooMany as error:  # too many postponed pulls: this one must not wait
                attempt.cause = error.what
                failure = PullError(error.what, remedy=error.remedy)
                record = await self._write_outcome(record, self._failure_of(attempt, failure))
            except Exception as error:  # noqa: BLE001 - another attempt would meet it again
                outcome = self._failure_of(attempt, error)
                record = await self._write_outcome(record, outcome)
        except Superseded:
            self._log_end(attempt, SUPERSEDED_OUTCOME)
            return
        self._log_end(attempt, str(record.status), record)
        await self._count(attempt, record)

    async def _count(self, attempt: Attempt, record: ImageRecord) -> None:
        """Add a pull that has ended to the throughput of the site, unless the store is away."""
        if attempt.record.kind != "pull":
            return
        is_ready = record.status is State.READY
        work = Throughput(
            self._clock.seconds(),
            pulls=int(is_ready),
            failures=int(record.status is State.FAILURE),
            image_bytes=(record.size or 0) if is_ready else 0,
            layer_bytes=attempt.timeline.downloaded_bytes,
        )
        with suppress(Unavailable):
            await self._store.add_throughput(work)

    async def _write_outcome(self, record: ImageRecord, outcome: Outcome) -> ImageRecord:
        """Write an outcome into the store, and return the resulting record.

        Retries while the store is unavailable: the work may have taken hours. Leases are valid for
        longer than these retries.
        """

        async def write(now: float) -> ImageRecord:
            if not isinstance(outcome, Postponement):
                return await self._store.finish(record.key, record.attempt, outcome, now)
            limits = self._waits.limits_of(outcome.cause)
            at, why = outcome.not_before, outcome.why
            return await self._store.postpone(
                record.key, record.attempt, at, why, now, limits, outcome.cause
            )

        return await retry_while_unavailable(write, self._clock, f"the end of {record.claim}")

    async def _work(self, attempt: Attempt) -> Outcome:
        """Do the work; turn every error except cancellation and supersession into an outcome.

        Raises `Exhausted` if this process lacks memory, threads or files.
        """
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
                return self._postpone(attempt, error)
            # An unexpected error of one record must not end the worker.
            return self._failure_of(attempt, error)

    def _postpone(self, attempt: Attempt, delay: RetryLater) -> Outcome:
        """Return the postponement of a pull, or its failure if it would wait too long.

        Removals are not postponed: the store repeats failed removals later.
        """
        attempt.cause = f"{delay.why}: {delay.what} {delay.detail}".strip()
        attempt.cause_code = f"wait-for-{delay.cause}"
        if attempt.record.status is State.EXPIRING:
            return self._failure_of(attempt, delay.failure)
        try:
            return attempt.decide_postponement(delay)
        except PullError as error:
            return self._failure_of(attempt, error)

    def _failure_of(self, attempt: Attempt, error: Exception) -> Failed:
        """Return the failure that an error means; log the traceback of an unexpected one."""
        record = attempt.record
        if not isinstance(error, GatewayError):
            self._log.failure("fault: {what}, {trace}", **log_values(record))
            attempt.cause = f"{type(error).__name__}; its traceback is in the line before"
            attempt.cause_code = "fault"
            error = GatewayError("The gateway met a fault of its own.")
            return Failed(attempt.stage, error.what, error.remedy, retryable=False)
        attempt.cause, attempt.cause_code = f"{error.what} {error.detail}".strip(), error.code
        # A failure that depends on the login, or on its absence, concerns this user alone, as does
        # that of an upload.
        own = (
            record.sealed is not None
            or record.upload is not None
            or record.kind == "acl"
            or isinstance(error, RegistryDenied | ImageNotFound)
        )
        what, remedy = error.texts_for_users()
        return Failed(attempt.stage, what, remedy, error.retryable, own=own)

    def _log_end(self, attempt: Attempt, outcome: str, image: ImageRecord | None = None) -> None:
        """Log and count the end of an attempt: who, what, how much, how long, why it failed."""
        measure(self._metrics, attempt, outcome, image)
        record = attempt.record
        fields = end_fields(
            record,
            outcome,
            attempt.timeline.measures(),
            image_id=(None if image is None else image.id) or attempt.image_id,
            image_size=None if image is None else image.size,
            cause=attempt.cause,
        )
        has_failed = "cause" in fields and outcome != State.PENDING
        level = LogLevel.warn if has_failed else LogLevel.info
        text = key_values(fields, CAUSE_LIMIT)
        event = event_of(record, outcome)
        self._log.emit(level, "{event} {text}", event=event, text=text, fields=fields)


def _check_deaths(number: int) -> None:
    if number >= MAX_ATTEMPTS:
        raise WorkerLost(f"{number} workers died on this image, one after the other.")
