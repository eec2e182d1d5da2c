"""What is away for a moment is waited for, and what is away for long is given up."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.errors import TimedOut, Unavailable
from shiftergw.plumbing.patience import AWAY_SECONDS, patiently


class Thing:
    """Is away until a time; what it is asked is noted."""

    def __init__(self, until: float, error: type[Exception] = Unavailable) -> None:
        """Raise `error` so long."""
        self.clock, self.until, self.error = Clock(), until, error
        self.asked: list[float] = []

    async def ask(self, now: float) -> str:
        """Answer, or be away."""
        self.asked.append(now)
        if now < self.until:
            raise self.error("It is away.")
        return "there"

    def begin(self) -> Deferred[str]:
        """Begin to wait for it."""
        return Deferred.fromCoroutine(patiently(self.ask, self.clock, "a test"))


@pytest.mark.parametrize("until", [0, 1, 30, AWAY_SECONDS])
def test_what_comes_back(until: float) -> None:
    """It is asked each second, and its first answer counts."""
    thing = Thing(until)
    answers: list[str] = []
    thing.begin().addCallback(answers.append)
    thing.clock.pump([1] * int(until))
    assert answers == ["there"]
    assert thing.asked == [float(second) for second in range(int(until) + 1)]


def test_what_does_not() -> None:
    """After a minute the last refusal stands."""
    thing = Thing(AWAY_SECONDS + 100)
    waiting = thing.begin()
    thing.clock.pump([1] * (int(AWAY_SECONDS) + 1))
    assert waiting.called
    failure = waiting.result
    waiting.addErrback(lambda _: None)
    assert failure.check(Unavailable)  # type: ignore[attr-defined]
    assert thing.clock.getDelayedCalls() == []


def test_other_errors() -> None:
    """They are no reason to wait."""
    thing = Thing(5, TimedOut)
    failures: list[object] = []
    thing.begin().addErrback(lambda failure: failures.append(failure.check(TimedOut)))
    assert failures == [TimedOut]


def test_cancelled() -> None:
    """Who waits can be stopped."""
    thing = Thing(5)
    waiting = thing.begin()
    failures: list[object] = []
    waiting.addErrback(lambda failure: failures.append(failure.check(CancelledError)))
    waiting.cancel()
    assert failures == [CancelledError]
    assert thing.clock.getDelayedCalls() == []
