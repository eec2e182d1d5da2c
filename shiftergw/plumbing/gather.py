"""Wait for several things at once, and take all of them down when one fails."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults

from shiftergw.plumbing.timing import shielded

T = TypeVar("T")


def cancel_all(deferreds: Iterable[Deferred[Any]]) -> None:
    """Cancel Deferreds that nobody waits for any more, and drop their results and errors."""
    for deferred in deferreds:
        deferred.addBoth(lambda _: None)
        deferred.cancel()


async def gather_or_cancel(coroutines: Iterable[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run all coroutines side by side and return their results in order.

    When one fails, or the caller is cancelled, the others are cancelled, once, and waited for, and
    the first failure is raised as it is. (`gatherResults` leaves the others running.)
    """
    running = [Deferred.fromCoroutine(c) for c in coroutines]
    together = gatherResults(running, consumeErrors=True)
    try:
        # Shielded, because a second cancellation would disturb the clean-up after the first.
        return await shielded(together)
    except FirstError as error:
        failure = error.subFailure.value
        assert failure is not None
        raise failure from failure.__cause__
    finally:
        together.addErrback(lambda _: None)
        for one in running:
            one.cancel()
        await DeferredList(running, consumeErrors=True)
