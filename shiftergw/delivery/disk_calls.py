"""Run blocking calls on a file system that may hang, such as NFS without its server.

A thread in a system call of the kernel cannot be interrupted. A call that makes no progress for a
while is therefore abandoned: its caller gets `SystemUnavailable`, and the thread stays until the
kernel returns. The function then notices that its call was stopped, and changes nothing beyond the
step in which it hung. While the allowed number of threads hangs, further calls fail at once, so
that one file system occupies no more threads than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import duration
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.plumbing.timing import shield, wait_to_end, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

HANG_SECONDS = 30.0
"""Seconds without progress after which a call is abandoned."""

MOST_HANGING = 4
"""Hanging threads of one file system, at most."""

P = ParamSpec("P")
T = TypeVar("T")


class DiskCallStopped(Exception):
    """Ends the thread of a stopped call; the caller of `DiskCalls` gets another error."""


class DiskCall:
    """A long call in a thread; the function in that thread uses its methods."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        """Expect progress at least every `seconds`."""
        self._clock = clock
        self._seconds = seconds
        self._stop = Event()
        self.deadline = clock.seconds() + seconds

    def note_progress(self, seconds: float | None = None) -> None:
        """Note that the call makes progress; raise `DiskCallStopped` if it was stopped.

        The next step may take `seconds`, or the usual limit if that is more.
        """
        if self._stop.is_set():
            raise DiskCallStopped
        self.deadline = self._clock.seconds() + max(seconds or 0, self._seconds)

    def stop(self) -> None:
        """Make the next `note_progress` raise; call this in the thread of the reactor."""
        self._stop.set()


class DiskCalls:
    """Run blocking calls on one file system; abandon calls that make no progress."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        threads: Threads,
        seconds: float = HANG_SECONDS,
        max_hanging: int = MOST_HANGING,
    ) -> None:
        """Use these threads, which may be shared; `name` is the file system in log lines."""
        self._name = name
        self._threads = threads
        self._seconds = seconds
        self._max_hanging = max_hanging
        self._hanging_calls = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short `function` in a thread; raise `SystemUnavailable` if it hangs.

        A cancelled caller still waits for the end of the function, up to the same limit.
        """
        return await self._run(self._call(), partial(function, *args, **kwargs))

    async def run_long(self, function: Callable[[DiskCall], T]) -> T:
        """As `run`, for a long function that reports progress with `DiskCall.note_progress`."""
        call = self._call()
        return await self._run(call, partial(function, call))

    def call_reactor(self, function: Callable[[T], object], value: T) -> None:
        """Schedule a call in the thread of the reactor; for functions that run in a thread."""
        self._threads.call_reactor(function, value)

    def _call(self) -> DiskCall:
        if self._hanging_calls >= self._max_hanging:
            raise self._no_answer(f"{self._hanging_calls} calls hang there already")
        return DiskCall(self._threads.clock, self._seconds)

    async def _run(self, call: DiskCall, function: Callable[[], T]) -> T:
        running = self._threads.begin(function)
        return await wait_to_end(Deferred.fromCoroutine(self._watch(call, running)), call.stop)

    async def _watch(self, call: DiskCall, running: Deferred[T]) -> T:
        """Return the result of a call; raise `SystemUnavailable` if it stops making progress."""
        clock = self._threads.clock
        while True:
            remaining = max(0.0, call.deadline - clock.seconds())
            try:
                return await within(remaining, clock, shield(running), _LateError)
            except _LateError as late:
                if call.deadline > clock.seconds():
                    continue  # it has made progress meanwhile
                call.stop()
                self._count_hanging(running)
                raise self._no_answer(
                    f"no sign of life for {duration(self._seconds)} or more"
                ) from late

    def _count_hanging(self, running: Deferred[Any]) -> None:
        """Count a thread as hanging until it ends."""
        self._hanging_calls += 1
        self._log.warn(
            "a call hangs in {name}; {n} of its calls hang now",
            name=self._name,
            n=self._hanging_calls,
        )

        def on_end(_: object) -> None:
            self._hanging_calls -= 1
            self._log.info("a call in {name} that hung has ended", name=self._name)

        running.addBoth(on_end)

    def _no_answer(self, detail: str) -> SystemUnavailable:
        return SystemUnavailable(
            "The system's image directory does not answer.",
            remedy="Try again later; if it lasts, tell the site's support: the file system of the"
            " system's images may have lost its server.",
            detail=f"{self._name}: {detail}",
        )


class _LateError(Exception):
    """The call made no progress in time."""
