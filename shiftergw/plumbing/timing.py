"""Pauses, timeouts and cancellation."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")


async def pause(seconds: float, clock: IReactorTime) -> None:
    """Wait for this many seconds. Cancellable."""
    call: Any = None
    waiting: Deferred[None] = Deferred(lambda _: call.cancel())
    call = clock.callLater(seconds, waiting.callback, None)
    await waiting


@contextmanager
def ticking(seconds: float, clock: IReactorTime, tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick`, which must be fast and not raise, every `seconds` during the block."""
    call: Any = None

    def run_tick() -> None:
        nonlocal call
        call = clock.callLater(seconds, run_tick)
        tick()

    call = clock.callLater(seconds, run_tick)
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
    """Return the result of `work`; after `seconds` cancel it and raise the error of `late`.

    The time counts from now, or from when `since` fires. Cancelling the caller cancels the work,
    and stays a cancellation.
    """
    running = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    is_expired = is_over = False
    call: Any = None

    def expire() -> None:
        nonlocal is_expired
        is_expired = True
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
        if is_expired:
            raise late() from error
        raise
    finally:
        is_over = True
        if call is not None and call.active():
            call.cancel()


def shield(inner: Deferred[T]) -> Deferred[T]:
    """Return a Deferred with the result of `inner`; cancelling it does not cancel `inner`.

    A result that arrives after that cancellation stays in `inner`, for the next caller.
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
            result = await shield(running)
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
    """Return the result in a Deferred that always fails with `CancelledError` when cancelled.

    Twisted's clients and endpoints raise various errors when they are cancelled: a wrapped
    cancellation, or a failed look-up.
    """
    is_abandoned = False

    def abandon(_: Deferred[T]) -> None:
        nonlocal is_abandoned
        is_abandoned = True
        work.cancel()

    outer: Deferred[T] = Deferred(abandon)
    work.addBoth(lambda result: None if is_abandoned else outer.callback(result))
    return outer
