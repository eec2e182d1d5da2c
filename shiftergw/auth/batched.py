"""Run short calls that may hang in one thread, in batches.

To wake a thread, and the reactor after it, costs more than a short call. And while both threads are
busy, each waits for Python's lock at every step of the other. So calls that come together are made
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from shiftergw.plumbing.reactor import with_threads

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

A = TypeVar("A")
T = TypeVar("T")

MAX_QUEUED = 1000
"""Calls that wait for their batch; further calls are refused at once."""

BATCH_SIZE = 16
"""Calls in one batch, at most: the first of them waits for the last."""


@dataclass(eq=False, slots=True)
class _Call(Generic[A, T]):
    argument: A
    start: float
    answer: Deferred[T] = field(default_factory=Deferred)
    result: T | Failure = field(init=False)


class BatchedCalls(Generic[A, T]):
    """Calls one function in a thread that does nothing else, one batch after the other.

    A batch starts when a turn of the reactor has brought no further call. So batches are large when
    the reactor is busy, and reactor and thread seldom work at the same time. A batch that takes too
    long goes on without its callers; until it ends, further calls are refused at once.
    """

    def __init__(
        self,
        function: Callable[[A], T],
        seconds: float,
        reactor: Reactor,
        late: Callable[[], Exception],
    ) -> None:
        """Let callers wait for `seconds` at most; raise the exception of `late` after that."""
        self._function = function
        self._seconds = seconds
        self._reactor = reactor
        self._late = late
        self._queue: list[_Call[A, T]] = []
        self._is_gathering = False
        self._batch: Sequence[_Call[A, T]] = ()
        """The calls that the thread is making."""
        self._is_hanging = False
        self._timer: Any = None
        self._batches: SimpleQueue[Sequence[_Call[A, T]]] = SimpleQueue()
        self._thread: Thread | None = None

    async def run(self, argument: A) -> T:
        """Return the result of the function for an argument, or raise its exception."""
        if self._is_hanging or len(self._queue) >= MAX_QUEUED:
            raise self._late()
        call: _Call[A, T] = _Call(argument, self._reactor.seconds())
        self._queue.append(call)
        if not self._is_gathering and not self._batch:
            self._gather()
        return await call.answer

    def _gather(self) -> None:
        """Start a batch once a turn of the reactor has brought no call, or there are enough."""
        self._is_gathering = True
        self._reactor.callLater(0, self._check_queue, 0)

    def _check_queue(self, last_length: int) -> None:
        length = len(self._queue)
        if last_length < length < BATCH_SIZE:
            self._reactor.callLater(0, self._check_queue, length)
        else:
            self._is_gathering = False
            self._start_batch()

    def _start_batch(self) -> None:
        self._batch, self._queue = self._queue[:BATCH_SIZE], self._queue[BATCH_SIZE:]
        remaining = self._batch[0].start + self._seconds - self._reactor.seconds()
        self._timer = self._reactor.callLater(max(0, remaining), self._expire)
        if self._thread is None:  # not earlier: a service is made before its process forks
            # A daemon: the end of the process does not wait for a call that hangs.
            self._thread = Thread(target=self._serve, name="batched", daemon=True)
            self._thread.start()
        self._batches.put(self._batch)

    def _serve(self) -> None:
        """Make the calls of each batch, except for callers who no longer wait; in the thread."""
        while True:
            for call in self._batches.get():
                if call.answer.called:
                    continue
                try:
                    call.result = self._function(call.argument)
                except Exception:  # noqa: BLE001 - it is raised at the caller's
                    call.result = Failure()
            with_threads(self._reactor).callFromThread(self._end_batch)

    def _expire(self) -> None:
        """Raise `late` for all callers: the batch hangs, and the queue came after it."""
        self._is_hanging = True
        calls, self._queue = [*self._batch, *self._queue], []
        for call in calls:
            if not call.answer.called:
                call.answer.errback(self._late())

    def _end_batch(self) -> None:
        batch, self._batch, self._is_hanging = self._batch, (), False
        if self._timer.active():
            self._timer.cancel()
        for call in batch:
            if not call.answer.called:
                call.answer.callback(call.result)
        if self._queue and not self._is_gathering:
            self._gather()
