"""A thread pool of our own; the reactor's pool stays free for name look-ups."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from shiftergw.errors import Unavailable
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.timing import shield, wait_to_end

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.reactor import Reactor

P = ParamSpec("P")
T = TypeVar("T")


class _DaemonThread(Thread):
    """A thread that does not keep the process: it may hang in the kernel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, daemon=True)


class Threads(Service):
    """A bounded thread pool for work that would block the reactor.

    The process can end although a thread hangs, if nobody waits for the stop of the pool.
    """

    def __init__(self, reactor: Reactor, size: int, name: str) -> None:
        """Create a pool of at most `size` threads, which starts with the service."""
        self._clock = reactor
        self._reactor = with_threads(reactor)
        self._pool = ThreadPool(minthreads=0, maxthreads=size, name=name)
        self._pool.threadFactory = _DaemonThread
        self._is_stopping = False
        self.setName(name)

    @property
    def clock(self) -> IReactorTime:
        """Return the clock of the reactor that this pool belongs to."""
        return self._clock

    def startService(self) -> None:
        """Start the pool."""
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """Accept no more work; the result fires when the running work has ended."""
        super().stopService()
        end: Deferred[None] = Deferred()
        # A service whose start fails stops its pool, and is stopped afterwards.

        def stop(is_again: bool = self._is_stopping) -> None:
            if is_again:
                for thread in self._pool.threads:
                    thread.join()
            else:
                self._pool.stop()
            self._reactor.callFromThread(end.callback, None)

        # `ThreadPool.stop` joins its threads. The reactor's own threads must not wait for them: the
        # reactor would not end.
        self._is_stopping = True
        _DaemonThread(target=stop, name=f"{self.name} stop").start()
        return end

    def call_reactor(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call `function` on the reactor's thread soon; for functions that run in the pool.

        These calls happen before the result of the calling function is delivered.
        """
        self._reactor.callFromThread(function, *args, **kwargs)

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run `function` in a thread; return its result as a Deferred that cannot be cancelled.

        Raises `Unavailable` once the pool has stopped.
        """
        if self._pool.joined:  # the pool would silently drop the call
            raise Unavailable("The gateway is stopping.")
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    async def acquire(self, function: Callable[[], T], release: Callable[[T], object]) -> T:
        """Run `function` in a thread; return the resource that it acquires, such as a locked file.

        A cancelled caller does not wait for the thread, which may hang. A resource acquired after
        the cancellation is passed to `release`, in a thread.
        """

        def release_late(result: T | Failure) -> Deferred[object] | None:
            return None if isinstance(result, Failure) else self._release(release, result)

        acquiring = self.begin(function)
        try:
            return await shield(acquiring)
        except CancelledError:
            acquiring.addBoth(release_late)
            raise

    async def release(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call, in a thread, a function that releases a resource of `acquire`.

        The function is always called: a cancelled caller does not wait for its end, and after the
        stop of this pool the reactor's thread pool runs it.
        """
        await shield(self._release(function, *args, **kwargs))

    def _release(
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
        """Run `function` in a thread; return its result or raise its error.

        A thread cannot be interrupted. When the caller is cancelled, this method waits for the end
        of the function and then raises the cancellation, so that no thread outlives the caller's
        clean-up. For long work use `run_until`.
        """
        return await self.run_until(lambda: None, function, *args, **kwargs)

    async def run_until(
        self,
        on_cancel: Callable[[], object],
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do what `run` does; on cancellation call `on_cancel`, which makes `function` end soon.

        Raises `Unavailable` once the pool has stopped.
        """
        return await wait_to_end(self.begin(function, *args, **kwargs), on_cancel)
