"""A value to come: for all who wait, and for those who come later."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.plumbing.promise import Promise


def test_all_who_wait_get_it() -> None:
    """And those who come later; the first value counts."""
    promise: Promise[str] = Promise()
    got: list[str] = []
    for _ in range(3):
        Deferred.fromCoroutine(promise.kept()).addCallback(got.append)
    assert got == []
    promise.keep("value")
    promise.keep("another")
    Deferred.fromCoroutine(promise.kept()).addCallback(got.append)
    assert got == ["value"] * 4


def test_a_promise_of_nothing_is_kept() -> None:
    """None is a value."""
    promise: Promise[None] = Promise()
    waiting = Deferred.fromCoroutine(promise.kept())
    promise.keep(None)
    assert waiting.called


def test_one_who_goes_takes_nothing_from_the_others() -> None:
    """A cancelled wait ends by itself."""
    promise: Promise[str] = Promise()
    first, second = (Deferred.fromCoroutine(promise.kept()) for _ in range(2))
    failures: list[object] = []
    first.addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    first.cancel()
    assert failures == [CancelledError]
    promise.keep("value")
    got: list[str] = []
    second.addCallback(got.append)
    assert got == ["value"]


def test_one_who_ends_another_s_wait() -> None:
    """By what he does with the value: both are done, and nothing is raised."""
    promise: Promise[None] = Promise()
    waits: list[Deferred[None]] = []
    failures: list[object] = []

    async def first() -> None:
        await promise.kept()
        waits[1].cancel()

    waits += [Deferred.fromCoroutine(first()), Deferred.fromCoroutine(promise.kept())]
    waits[0].addErrback(failures.append)
    waits[1].addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    promise.keep(None)
    assert failures == [CancelledError]
    assert promise.is_kept
