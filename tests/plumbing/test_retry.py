"""Calls are retried while a store is unavailable, for a minute at most."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import TimedOut, Unavailable
from shiftergw.plumbing.retry import RETRY_SECONDS, retry_while_unavailable


class FlakyStore:
    """A store whose calls fail until a time; it notes the time of each call."""

    def __init__(self, until: float, error: type[Exception] = Unavailable) -> None:
        """Raise `error` before `until` seconds."""
        self.clock, self.until, self.error = Clock(), until, error
        self.call_times: list[float] = []

    async def call(self, now: float) -> str:
        """Return an answer, or raise the error."""
        self.call_times.append(now)
        if now < self.until:
            raise self.error("The store is away.")
        return "answer"

    def begin(self) -> Deferred[str]:
        """Begin to call with retries."""
        return Deferred.fromCoroutine(retry_while_unavailable(self.call, self.clock, "a test"))


@pytest.mark.parametrize("until", [0, 1, 30, RETRY_SECONDS])
def test_retries_every_second(until: float) -> None:
    """The store is called every second, and its first answer is returned."""
    store = FlakyStore(until)
    answers: list[str] = []
    store.begin().addCallback(answers.append)
    store.clock.pump([1] * int(until))
    assert answers == ["answer"]
    assert store.call_times == [float(second) for second in range(int(until) + 1)]


def test_gives_up_after_a_minute() -> None:
    """After a minute the last error is raised."""
    store = FlakyStore(RETRY_SECONDS + 100)
    waiting = store.begin()
    store.clock.pump([1] * (int(RETRY_SECONDS) + 1))
    assert waiting.called
    failure = waiting.result
    waiting.addErrback(lambda _: None)
    assert failure.check(Unavailable)  # type: ignore[attr-defined]
    assert store.clock.getDelayedCalls() == []


def test_other_errors_are_raised_at_once() -> None:
    """Only `Unavailable` is retried."""
    store = FlakyStore(5, TimedOut)
    failures: list[object] = []
    store.begin().addErrback(lambda failure: failures.append(failure.check(TimedOut)))
    assert failures == [TimedOut]


def test_cancelling_ends_the_retries() -> None:
    """A cancelled caller leaves no timer behind."""
    store = FlakyStore(5)
    waiting = store.begin()
    failures: list[object] = []
    waiting.addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    waiting.cancel()
    assert failures == [CancelledError]
    assert store.clock.getDelayedCalls() == []
