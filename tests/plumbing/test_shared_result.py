"""A shared result reaches every caller that waits for it, before or after it is set."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.plumbing.shared_result import SharedResult


def test_all_waiting_callers_get_the_first_result() -> None:
    """Earlier and later callers get the result that was set first."""
    result: SharedResult[str] = SharedResult()
    results: list[str] = []
    for _ in range(3):
        Deferred.fromCoroutine(result.wait()).addCallback(results.append)
    assert results == []
    result.set_result("value")
    result.set_result("another")
    Deferred.fromCoroutine(result.wait()).addCallback(results.append)
    assert results == ["value"] * 4


def test_none_is_a_result() -> None:
    """None wakes the waiting callers as any other value does."""
    result: SharedResult[None] = SharedResult()
    waiting = Deferred.fromCoroutine(result.wait())
    result.set_result(None)
    assert waiting.called


def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    """Cancelling one wait leaves the other waits in place."""
    result: SharedResult[str] = SharedResult()
    first, second = (Deferred.fromCoroutine(result.wait()) for _ in range(2))
    failures: list[object] = []
    first.addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    first.cancel()
    assert failures == [CancelledError]
    result.set_result("value")
    results: list[str] = []
    second.addCallback(results.append)
    assert results == ["value"]


def test_a_woken_caller_may_cancel_another_wait() -> None:
    """Both waits end, and nothing is raised into `set_result`."""
    result: SharedResult[None] = SharedResult()
    waits: list[Deferred[None]] = []
    failures: list[object] = []

    async def first() -> None:
        await result.wait()
        waits[1].cancel()

    waits += [Deferred.fromCoroutine(first()), Deferred.fromCoroutine(result.wait())]
    waits[0].addErrback(failures.append)
    waits[1].addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    result.set_result(None)
    assert failures == [CancelledError]
    assert result.is_set
