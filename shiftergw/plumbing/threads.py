"""Our own thread pool: the reactor's is for name look-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from shiftergw.errors import Unavailable
from shiftergw.plumbing.timing import shielded, wait_to_end

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

P = ParamSpec("P")
T = TypeVar("T")


class Threads(Service):
    """A bounded pool of threads for work that would block the reactor."""

    def __init__(self, reactor: Any, size: int, name: str) -> None:
        """Make a pool of at most `size` threads; it starts with the service."""
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=size, name=name)
        self.setName(name)

    @property
    def clock(self) -> IReactorTime:
        """Return the clock of the reactor that this pool belongs to."""
        clock: IReactorTime = self._reactor
        return clock

    def startService(self) -> None:
        """Start the pool."""
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """Wait for running work; no more is taken."""
        super().stopService()
        # `ThreadPool.stop` joins its threads, so it runs in a thread that is not one of them.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    def call_reactor(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have `function` called on the reactor's thread soon; for what runs in the pool.

        All such calls come before the result of the function that makes them.
        """
        self._reactor.callFromThread(function, *args, **kwargs)

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Return the result of `function` to come; cancelling it does not end the function.

        Raises `Unavailable` once the pool has stopped.
        """
        if self._pool.joined:  # it would drop the call without a word
            raise Unavailable("The gateway is stopping.")
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    async def acquire(self, function: Callable[[], T], release: Callable[[T], object]) -> T:
        """Return what `function` acquires in a thread, such as a locked file.

        A caller that is cancelled does not wait for the thread, which may hang. What the thread
        acquires after that is passed to `release`, in a thread.
        """

        def give_back(result: T | Failure) -> Deferred[object] | None:
            return None if isinstance(result, Failure) else self._give_back(release, result)

        acquiring = self.begin(function)
        try:
            return await shielded(acquiring)
        except CancelledError:
            acquiring.addBoth(give_back)
            raise

    async def release(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call, in a thread, a function that releases what `acquire` returned.

        It is called in any case: a caller that is cancelled does not wait for its end, and once
        this pool has stopped, a thread of the reactor calls it.
        """
        await shielded(self._give_back(function, *args, **kwargs))

    def _give_back(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[object]:
        pool = self._reactor.getThreadPool() if self._pool.joined else self._pool
        return deferToThreadPool(self._reactor, pool, function, *args, **kwargs)

    async def run(
        self,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what `function` returns in a thread.

        A thread cannot be interrupted: when the caller is cancelled, this waits for the function
        to end and then raises the cancellation, so that no thread outlives its caller's clean-up.
        For long work use `run_until`.
        """
        return await self.run_until(lambda: None, function, *args, **kwargs)

    async def run_until(
        self,
        on_cancel: Callable[[], object],
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `run`; `on_cancel` is called once on cancellation and makes `function` end soon.

        Raises `Unavailable` once the pool has stopped.
        """
        return await wait_to_end(self.begin(function, *args, **kwargs), on_cancel)
