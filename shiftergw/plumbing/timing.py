"""Limits on waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


async def pause(seconds: float, clock: IReactorTime) -> None:
    """Return after this many seconds; cancellable."""
    call: Any = None
    waiting: Deferred[None] = Deferred(lambda _: call.cancel())
    call = clock.callLater(seconds, waiting.callback, None)
    await waiting


@contextmanager
def ticking(seconds: float, clock: IReactorTime, tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` every so many seconds while the block lives; it must be cheap and not raise."""
    call: Any = None

    def again() -> None:
        nonlocal call
        call = clock.callLater(seconds, again)
        tick()

    call = clock.callLater(seconds, again)
    try:
        yield
    finally:
        call.cancel()


async def within(
    seconds: float,
    clock: IReactorTime,
    work: Coroutine[Deferred[Any], Any, T] | Deferred[T],
    late: Callable[[], BaseException],
    *,
    since: Deferred[None] | None = None,
) -> T:
    """Return what `work` returns, or cancel it after `seconds` and raise what `late` makes.

    The time counts from now, or from when `since` fires. Being cancelled from outside cancels the
    work too and stays a cancellation.
    """
    running = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    expired = is_over = False
    call: Any = None

    def expire() -> None:
        nonlocal expired
        expired = True
        running.cancel()

    def begin(_: None) -> None:
        nonlocal call
        if not is_over:
            call = clock.callLater(seconds, expire)

    if since is None:
        begin(None)
    else:
        since.addCallback(begin)
    try:
        return await running
    except Exception as error:
        # A cancelled request of twisted.web fails with its own wrapper, not with CancelledError.
        if expired:
            raise late() from error
        raise
    finally:
        is_over = True
        if call is not None and call.active():
            call.cancel()


def shielded(inner: Deferred[T]) -> Deferred[T]:
    """Return a Deferred with the result of `inner`, whose cancelling leaves `inner` alone.

    A result that came too late for it stays in `inner`, for whoever waits next.
    """
    outer: Deferred[T] = Deferred()

    def pass_on(result: Any) -> Any:
        if outer.called:
            return result
        outer.callback(result)
        return None

    inner.addBoth(pass_on)
    return outer


async def wait_to_end(running: Deferred[T], on_cancel: Callable[[], object]) -> T:
    """Return the result of `running`; wait for its end even if the caller is cancelled.

    The first cancellation calls `on_cancel`, which should make `running` end soon. Whatever its
    result, the cancellation is raised afterwards.
    """
    cancellation: CancelledError | None = None
    while True:
        try:
            result = await shielded(running)
        except CancelledError as error:
            if running.called:
                raise
            if cancellation is None:
                on_cancel()
            cancellation = error
            continue
        except Exception:
            if cancellation is not None:
                raise cancellation from None
            raise
        if cancellation is not None:
            raise cancellation
        return result


def abandonable(work: Deferred[T]) -> Deferred[T]:
    """Return the result in a Deferred that is cancelled by `CancelledError`, and by nothing else.

    What Twisted's clients and endpoints raise then depends on how far they were: it is wrapped, or
    called a failed look-up.
    """
    abandoned = False

    def abandon(_: Deferred[T]) -> None:
        nonlocal abandoned
        abandoned = True
        work.cancel()

    outer: Deferred[T] = Deferred(abandon)
    work.addBoth(lambda result: None if abandoned else outer.callback(result))
    return outer
