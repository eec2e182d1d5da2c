"""Run steps on one connection in a thread: steps that arrive meanwhile share the next turn.

A call in a thread costs more than most statements, and a commit costs more than both. So one call
runs all waiting steps, and steps that write share one transaction. Each step is still atomic: it
has its own savepoint, and its caller gets the result only after the commit.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import DatabaseBusy, DatabaseDamaged, Unavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.store.sqlite.faults import translate_errors, unavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

TURN = 100
"""Steps of one turn at most: other processes wait for the end of its transaction."""

HANG_SECONDS = 20.0
"""Seconds after which all callers of a turn, and later callers, get `Unavailable`.

Another process's lock delays a turn for `BUSY_SECONDS` at most. A broken disk may never answer.
"""


@dataclass(slots=True)
class Step(Generic[T]):
    """One piece of work on the connection, and its result.

    A `durable` step must outlive a power cut. (Every committed step outlives its *process*.)
    """

    work: Callable[[sqlite3.Connection], T]
    durable: bool
    answer: Deferred[T] = field(default_factory=Deferred)
    result: T | None = None
    error: Exception | None = None


Turn = Callable[[sqlite3.Connection, Sequence[Step[Any]]], None]


class Lane:
    """Run turns on one connection. The cancellation of a caller does not undo its step."""

    _log = Logger()

    def __init__(
        self,
        threads: Threads,
        connection: sqlite3.Connection,
        turn: Turn,
        clock: IReactorTime,
    ) -> None:
        """Own `connection`; `turn` is `run_reads` or `run_writes`."""
        self._threads = threads
        self._clock = clock
        self._connection = connection
        self._turn = turn
        self._waiting: deque[Step[Any]] = deque()
        self._draining: Deferred[None] | None = None
        self.damage: DatabaseDamaged | None = None
        """The first damage that a step has met; it stays until the file is replaced."""
        self.is_failing = False
        """Whether the database could not carry out a step of the last turn."""
        self._hangs = False

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Return the result of `work`, or raise its error; SQLite's errors become `Unavailable`.

        `Unavailable` is also raised if the disk hangs. The step may still be done later.
        """
        if self._hangs:
            raise _hanging()
        step = Step(work, durable)
        self._waiting.append(step)
        if self._draining is None or self._draining.called:
            self._draining = Deferred.fromCoroutine(self._drain())
        return await step.answer

    async def _drain(self) -> None:
        limit = TURN
        while self._waiting:
            turn = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            turn = [step for step in turn if not step.answer.called]  # without cancelled steps
            timeout = self._clock.callLater(HANG_SECONDS, self._give_up, turn)
            try:
                await self._threads.run(self._turn, self._connection, turn)
            except Exception as error:  # noqa: BLE001 - the callers get it
                for step in turn:
                    step.error = unavailable(error)
            finally:
                if timeout.active():
                    timeout.cancel()
                self._hangs = False
            self._note_errors(turn)
            # If the file was locked, the next turn runs all waiting steps, so that no step waits
            # for the lock more than twice.
            is_busy = any(isinstance(step.error, DatabaseBusy) for step in turn)
            limit = len(self._waiting) if is_busy else TURN
            for step in turn:
                if step.answer.called:
                    continue
                if step.error is not None:
                    step.answer.errback(step.error)
                else:
                    step.answer.callback(step.result)

    def _give_up(self, turn: Sequence[Step[Any]]) -> None:
        """Fail all callers; later callers fail until the turn has ended."""
        self._hangs = self.is_failing = True
        error = _hanging()
        self._log.error("{what} {detail}", what=error.what, detail=error.detail)
        for step in (*turn, *self._waiting):
            if not step.answer.called:
                step.answer.errback(_hanging())

    def _note_errors(self, turn: Sequence[Step[Any]]) -> None:
        """Note errors of a turn that concern the database as a whole."""
        self.is_failing = any(isinstance(step.error, Unavailable) for step in turn)
        for step in turn:
            if self.damage is None and isinstance(step.error, DatabaseDamaged):
                self.damage = step.error
                self._log.critical(
                    "{what} Stop the gateway and restore the backup. {detail}",
                    what=step.error.what,
                    detail=step.error.detail,
                )

    async def close(self) -> None:
        """Run the waiting steps and close the connection."""
        if self._draining is not None:
            await self._draining
        await self._threads.run(self._connection.close)


def _hanging() -> Unavailable:
    return Unavailable(
        "The gateway's database does not answer.",
        detail=f"SQLite: a call has taken more than {HANG_SECONDS:g} s; the disk may hang",
    )


def run_reads(connection: sqlite3.Connection, turn: Sequence[Step[Any]]) -> None:
    """Run the steps of a turn one by one; each sees all commits before its start.

    Once a step has waited in vain for a locked file, the steps after it fail at once.
    """
    busy: DatabaseBusy | None = None
    for step in turn:
        if busy is not None:
            step.error = busy
            continue
        try:
            with translate_errors():
                step.result = step.work(connection)
        except DatabaseBusy as error:
            step.error = busy = error
        except Exception as error:  # noqa: BLE001 - the caller gets it
            step.error = error


def run_writes(connection: sqlite3.Connection, turn: Sequence[Step[Any]]) -> None:
    """Run the steps of a turn in one transaction; a step that raises changes nothing."""
    try:
        if connection.in_transaction:  # the rollback of an earlier turn has failed
            connection.execute("ROLLBACK")
        # In WAL mode FULL syncs the log at each commit; NORMAL syncs it at a later checkpoint.
        level = "FULL" if any(step.durable for step in turn) else "NORMAL"
        connection.execute(f"PRAGMA synchronous = {level}")
        connection.execute("BEGIN IMMEDIATE")
        for step in turn:
            _write(connection, step)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        for step in turn:
            step.error = unavailable(error)
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def _write(connection: sqlite3.Connection, step: Step[Any]) -> None:
    connection.execute("SAVEPOINT step")
    try:
        step.result = step.work(connection)
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001 - the caller gets it
        connection.execute("ROLLBACK TO step")
        step.error = error
    connection.execute("RELEASE step")
