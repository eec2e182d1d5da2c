"""Short calls to what may hang: those that come together are made together, in one thread.

To wake a thread, and the reactor after it, costs more than a short call does; and while both have
something to do, each of them waits for Python's lock at every step of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

A = TypeVar("A")
T = TypeVar("T")

MOST_WAITING = 1000
"""Calls that wait for their batch; more are refused at once."""

MOST_TOGETHER = 16
"""Calls in one batch: the first of them waits for the last."""


@dataclass(eq=False, slots=True)
class _Call(Generic[A, T]):
    argument: A
    since: float
    answer: Deferred[T] = field(default_factory=Deferred)
    result: T | Failure = field(init=False)


class BatchedCalls(Generic[A, T]):
    """Calls of one function in a thread that does nothing else, one batch after the other.

    A batch begins when a turn of the reactor has brought no further call, so batches are large
    when the reactor is busy, and then the two seldom work at the same time. What is late goes on
    without its callers; while it does, others are refused at once.
    """

    def __init__(
        self,
        function: Callable[[A], T],
        seconds: float,
        reactor: Any,
        late: Callable[[], Exception],
    ) -> None:
        """Let nobody wait longer than `seconds`; then raise what `late` makes."""
        self._function = function
        self._seconds = seconds
        self._reactor = reactor
        self._late = late
        self._waiting: list[_Call[A, T]] = []
        self._gathers = False
        self._under_way: Sequence[_Call[A, T]] = ()
        self._hangs = False
        self._limit: Any = None
        self._queue: SimpleQueue[Sequence[_Call[A, T]]] = SimpleQueue()
        self._thread: Thread | None = None

    async def run(self, argument: A) -> T:
        """Return what the function returns for an argument, or raise what it raises."""
        if self._hangs or len(self._waiting) >= MOST_WAITING:
            raise self._late()
        call: _Call[A, T] = _Call(argument, self._reactor.seconds())
        self._waiting.append(call)
        if not self._gathers and not self._under_way:
            self._gather()
        return await call.answer

    def _gather(self) -> None:
        """Begin a batch once a turn of the reactor has brought no call, or there are enough."""
        self._gathers = True
        self._reactor.callLater(0, self._gathered, 0)

    def _gathered(self, before: int) -> None:
        now = len(self._waiting)
        if before < now < MOST_TOGETHER:
            self._reactor.callLater(0, self._gathered, now)
        else:
            self._gathers = False
            self._begin()

    def _begin(self) -> None:
        batch, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
        self._under_way = batch
        left = batch[0].since + self._seconds - self._reactor.seconds()
        self._limit = self._reactor.callLater(max(0, left), self._expire)
        if self._thread is None:  # not before: a service is made before its process forks
            # A daemon: the end of the process does not wait for what hangs.
            self._thread = Thread(target=self._serve, name="batched", daemon=True)
            self._thread.start()
        self._queue.put(batch)

    def _serve(self) -> None:
        """Make the calls of each batch, but not for callers who have left; in the thread."""
        while True:
            batch = self._queue.get()
            for call in batch:
                if call.answer.called:
                    continue
                try:
                    call.result = self._function(call.argument)
                except Exception:  # noqa: BLE001 - it is its caller's
                    call.result = Failure()
            self._reactor.callFromThread(self._end)

    def _expire(self) -> None:
        """Let go all who wait: what is under way hangs, and the others came after it."""
        self._hangs = True
        late, self._waiting = [*self._under_way, *self._waiting], []
        for call in late:
            if not call.answer.called:
                call.answer.errback(self._late())

    def _end(self) -> None:
        batch, self._under_way, self._hangs = self._under_way, (), False
        if self._limit.active():
            self._limit.cancel()
        for call in batch:
            if not call.answer.called:
                call.answer.callback(call.result)
        if self._waiting and not self._gathers:
            self._gather()
