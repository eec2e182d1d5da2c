"""One connection in one thread: steps that arrive while it works share its next turn.

A hop to a thread costs more than most statements, and a commit more than both; so whatever waits
is done in one hop, and steps that write in one transaction. Each of them is still atomic: it has a
savepoint of its own, and its caller hears of it only after the commit.
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
from shiftergw.store.sqlite.faults import translated, unavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

TURN = 100
"""Steps of one turn at most: other processes wait for a transaction's end."""

HANG_SECONDS = 20.0
"""How long a turn may take before its callers, and all others meanwhile, get `Unavailable`.

A locked file takes 10 seconds at most. A disk that fails may never answer.
"""


@dataclass(slots=True)
class Step(Generic[T]):
    """One piece of work on the connection, and who waits for it.

    `durable`: it must outlive a power cut. (What a *process* has committed outlives that process
    in any case.)
    """

    work: Callable[[sqlite3.Connection], T]
    durable: bool
    answer: Deferred[T] = field(default_factory=Deferred)
    result: T | None = None
    error: Exception | None = None


Turn = Callable[[sqlite3.Connection, Sequence[Step[Any]]], None]


class Lane:
    """Takes turns on one connection. Cancelling a caller does not undo a step that has begun."""

    _log = Logger()

    def __init__(
        self,
        threads: Threads,
        connection: sqlite3.Connection,
        turn: Turn,
        clock: IReactorTime,
    ) -> None:
        """Work on `connection`, and own it; `turn` is `reading` or `writing`."""
        self._threads = threads
        self._clock = clock
        self._connection = connection
        self._turn = turn
        self._waiting: deque[Step[Any]] = deque()
        self._draining: Deferred[None] | None = None
        self.damage: DatabaseDamaged | None = None
        """The first damage of the file that a step met; it stays until the file is replaced."""
        self.is_failing = False
        """Whether the database could not do a step of the last turn."""
        self._hangs = False

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Return what `work` returns; raise what it raises, `Unavailable` for SQLite's errors.

        `Unavailable` is also raised when the disk hangs. The step may be done all the same later.
        """
        if self._hangs:
            raise _hanging()
        step = Step(work, durable)
        self._waiting.append(step)
        if self._draining is None or self._draining.called:
            self._draining = Deferred.fromCoroutine(self._drain())
        return await step.answer

    async def _drain(self) -> None:
        most = TURN
        while self._waiting:
            turn = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            turn = [step for step in turn if not step.answer.called]  # else cancelled by now
            limit = self._clock.callLater(HANG_SECONDS, self._give_up, turn)
            try:
                await self._threads.run(self._turn, self._connection, turn)
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                for step in turn:
                    step.error = unavailable(error)
            finally:
                if limit.active():
                    limit.cancel()
                self._hangs = False
            self._judge(turn)
            # Steps that have waited for a locked file wait for it once more at most, all together.
            most = len(self._waiting) if self._is_busy(turn) else TURN
            for step in turn:
                if step.answer.called:
                    continue
                if step.error is not None:
                    step.answer.errback(step.error)
                else:
                    step.answer.callback(step.result)

    def _give_up(self, turn: Sequence[Step[Any]]) -> None:
        """Fail all callers, and those to come until the turn has ended."""
        self._hangs = self.is_failing = True
        error = _hanging()
        self._log.error("{what} {detail}", what=error.what, detail=error.detail)
        for step in (*turn, *self._waiting):
            if not step.answer.called:
                step.answer.errback(_hanging())

    def _judge(self, turn: Sequence[Step[Any]]) -> None:
        """Note what the steps of a turn say about the database."""
        self.is_failing = any(isinstance(step.error, Unavailable) for step in turn)
        for step in turn:
            if self.damage is None and isinstance(step.error, DatabaseDamaged):
                self.damage = step.error
                self._log.critical(
                    "{what} Stop the gateway and restore the backup. {detail}",
                    what=step.error.what,
                    detail=step.error.detail,
                )

    @staticmethod
    def _is_busy(turn: Sequence[Step[Any]]) -> bool:
        return any(isinstance(step.error, DatabaseBusy) for step in turn)

    async def close(self) -> None:
        """End what has been asked for, and close the connection."""
        if self._draining is not None:
            await self._draining
        await self._threads.run(self._connection.close)


def _hanging() -> Unavailable:
    return Unavailable(
        "The gateway's database does not answer.",
        detail=f"SQLite: a call has taken more than {HANG_SECONDS:g} s; the disk may hang",
    )


def reading(connection: sqlite3.Connection, turn: Sequence[Step[Any]]) -> None:
    """Do the steps of a turn one by one; each sees what was committed before it began.

    Once one has waited in vain for a locked file, those after it fail without a wait of their own.
    """
    busy: DatabaseBusy | None = None
    for step in turn:
        if busy is not None:
            step.error = busy
            continue
        try:
            with translated():
                step.result = step.work(connection)
        except DatabaseBusy as error:
            step.error = busy = error
        except Exception as error:  # noqa: BLE001 - it is the caller's
            step.error = error


def writing(connection: sqlite3.Connection, turn: Sequence[Step[Any]]) -> None:
    """Do the steps of a turn in one transaction; one that raises changes nothing."""
    try:
        if connection.in_transaction:  # an earlier turn's, which could not even be given up
            connection.execute("ROLLBACK")
        # In a WAL, FULL syncs the commit and everything before it; NORMAL leaves that for later.
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
    except Exception as error:  # noqa: BLE001 - it is the caller's
        connection.execute("ROLLBACK TO step")
        step.error = error
    connection.execute("RELEASE step")
