"""Run coroutines concurrently, and cancel all of them when one fails."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults

from shiftergw.plumbing.timing import shield

T = TypeVar("T")


def cancel_all(deferreds: Iterable[Deferred[Any]]) -> None:
    """Cancel Deferreds whose results are no longer needed, and drop their results and errors."""
    for work in deferreds:
        work.addBoth(lambda _: None)
        work.cancel()


async def gather_or_cancel(coroutines: Iterable[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run all coroutines concurrently and return their results in order.

    When a coroutine fails or the caller is cancelled, the remaining coroutines are cancelled once,
    and their ends are awaited. The first error is raised unchanged. (`gatherResults` would leave
    the remaining coroutines running.)
    """
    running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
    results = gatherResults(running, consumeErrors=True)
    try:
        # Shielded: a second cancellation would disturb the clean-up after the first.
        return await shield(results)
    except FirstError as error:
        failure = error.subFailure.value
        assert failure is not None
        raise failure from failure.__cause__
    finally:
        results.addErrback(lambda _: None)
        for work in running:
            work.cancel()
        await DeferredList(running, consumeErrors=True)
