"""Blocking calls on a file system that may hang, such as NFS whose server is away.

A thread in the hands of the kernel cannot be interrupted. A call that gives no sign of life for a
while is therefore left behind: its caller gets `Away`, and the thread stays until the kernel lets
it go. It then finds its call stopped, and changes no more than the one step that it hung in. While
as many threads as allowed are left behind, further calls fail at once, so that one file system
takes no more threads than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import duration
from shiftergw.plumbing.channel import Away
from shiftergw.plumbing.timing import shielded, wait_to_end, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

HANG_SECONDS = 30.0
"""Seconds without a sign of life after which a call is left behind."""

MOST_HANGING = 4
"""Threads that one file system may keep."""

P = ParamSpec("P")
T = TypeVar("T")


class DiskCallStopped(Exception):
    """The call was stopped; its caller is told something else."""


class DiskCall:
    """A call in a thread that takes more than a moment; its methods are for that thread."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        """Expect a sign of life within `seconds`."""
        self._clock = clock
        self._seconds = seconds
        self._stop = Event()
        self.deadline = clock.seconds() + seconds

    def go_on(self, seconds: float | None = None) -> None:
        """Give a sign of life; raise `DiskCallStopped` if nobody waits for the result any more.

        The next sign may take `seconds`, or as long as each.
        """
        if self._stop.is_set():
            raise DiskCallStopped
        self.deadline = self._clock.seconds() + max(seconds or 0, self._seconds)

    def stop(self) -> None:
        """End the call at its next sign of life; for the reactor's thread."""
        self._stop.set()


class DiskCalls:
    """Runs blocking calls on one file system."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        threads: Threads,
        seconds: float = HANG_SECONDS,
        most: int = MOST_HANGING,
    ) -> None:
        """Use `threads`, which others may use as well; `name` names the place in the log."""
        self._name = name
        self._threads = threads
        self._seconds = seconds
        self._most = most
        self._hanging = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a short `function` returns in a thread; raise `Away` if it hangs.

        A caller that is cancelled waits for the function as long, and no longer.
        """
        return await self._run(self._call(), partial(function, *args, **kwargs))

    async def run_long(self, function: Callable[[DiskCall], T]) -> T:
        """As `run`, for a function that gives signs of life, and ends soon when it is stopped."""
        call = self._call()
        return await self._run(call, partial(function, call))

    def call_reactor(self, function: Callable[[T], object], value: T) -> None:
        """Have `function` called on the reactor's thread soon; for what runs in a thread."""
        self._threads.call_reactor(function, value)

    def _call(self) -> DiskCall:
        if self._hanging >= self._most:
            raise self._away(f"{self._hanging} calls hang there already")
        return DiskCall(self._threads.clock, self._seconds)

    async def _run(self, call: DiskCall, function: Callable[[], T]) -> T:
        running = self._threads.begin(function)
        return await wait_to_end(Deferred.fromCoroutine(self._watch(call, running)), call.stop)

    async def _watch(self, call: DiskCall, running: Deferred[T]) -> T:
        """Return the result of a call; raise `Away` if it misses the deadline of its sign."""
        clock = self._threads.clock
        while True:
            remaining = max(0.0, call.deadline - clock.seconds())
            try:
                return await within(remaining, clock, shielded(running), _LateError)
            except _LateError as late:
                if call.deadline > clock.seconds():
                    continue  # there was a sign of life
                call.stop()
                self._leave(running)
                raise self._away(f"no sign of life for {duration(self._seconds)} or more") from late

    def _leave(self, running: Deferred[Any]) -> None:
        """Count a thread as hanging until it ends."""
        self._hanging += 1
        self._log.warn("a call hangs in {name}; {n} do now", name=self._name, n=self._hanging)

        def ended(_: object) -> None:
            self._hanging -= 1
            self._log.info("a call in {name} that hung has ended", name=self._name)

        running.addBoth(ended)

    def _away(self, detail: str) -> Away:
        return Away(
            "The system's image directory does not answer.",
            remedy="Try again later; if it lasts, tell the site's support: the file system of the"
            " system's images may have lost its server.",
            detail=f"{self._name}: {detail}",
        )


class _LateError(Exception):
    """The time for a sign of life has passed."""
