"""Rounds go on, whatever happens in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from shiftergw.errors import Unavailable
from shiftergw.plumbing.rounds import Rounds


class Deed:
    """What is done in each round; the test says when it ends, and how."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.under_way: list[Deferred[None]] = []
        self.raises: Exception | None = None

    async def act(self) -> None:
        """Wait for the test, or raise."""
        waiting: Deferred[None] = Deferred()
        self.under_way.append(waiting)
        if self.raises is not None:
            raise self.raises
        if not self.at_once:
            await waiting


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def levels() -> Iterator[list[str]]:
    """Return the levels of what is logged."""
    seen: list[str] = []

    def observe(event: dict[str, object]) -> None:
        seen.append(getattr(event.get("log_level"), "name", ""))

    watch: Callable[..., None] = observe
    globalLogPublisher.addObserver(watch)  # type: ignore[arg-type]
    yield seen
    globalLogPublisher.removeObserver(watch)  # type: ignore[arg-type]


def stopped(rounds: Rounds) -> bool:
    """Stop and say whether that is done."""
    results: list[object] = []
    rounds.stopService().addCallback(results.append)
    return bool(results)


def test_rounds_follow_one_another(clock: Clock) -> None:
    """A round begins at the start and then after each interval, until the stop."""
    deed = Deed()
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.startService()
    assert len(deed.under_way) == 1
    clock.advance(4.9)
    assert len(deed.under_way) == 1
    clock.advance(0.1)
    clock.advance(5)
    assert len(deed.under_way) == 3
    assert stopped(rounds)
    clock.advance(50)
    assert len(deed.under_way) == 3
    assert clock.getDelayedCalls() == []


def test_wake(clock: Clock) -> None:
    """Waking begins a round at once; then the interval counts anew."""
    deed = Deed()
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.startService()
    clock.advance(3)
    rounds.wake()
    assert len(deed.under_way) == 2
    clock.advance(3)
    assert len(deed.under_way) == 2
    clock.advance(2)
    assert len(deed.under_way) == 3
    assert stopped(rounds)


def test_wake_in_a_round(clock: Clock) -> None:
    """Woken during a round, however often, there is one more right after it, not beside it."""
    deed = Deed(at_once=False)
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.startService()
    rounds.wake()
    rounds.wake()
    assert len(deed.under_way) == 1
    deed.under_way[0].callback(None)
    assert len(deed.under_way) == 2
    deed.under_way[1].callback(None)
    assert len(deed.under_way) == 2
    assert stopped(rounds)


def test_stop_waits_for_the_round(clock: Clock) -> None:
    """The stop is done when the round under way has ended; no other begins."""
    deed = Deed(at_once=False)
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.startService()
    results: list[object] = []
    rounds.stopService().addCallback(results.append)
    assert results == []
    deed.under_way[0].callback(None)
    assert results == [None]
    assert len(deed.under_way) == 1


@pytest.mark.parametrize(
    ("error", "level"), [(Unavailable("Away."), "warn"), (ValueError("a bug"), "critical")]
)
def test_an_error_ends_no_loop(
    clock: Clock, levels: list[str], error: Exception, level: str
) -> None:
    """An error is logged, and the next round comes in its time."""
    deed = Deed()
    deed.raises = error
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.startService()
    assert levels == [level]
    clock.advance(5)
    assert len(deed.under_way) == 2
    assert stopped(rounds)


def test_wake_before_the_start(clock: Clock) -> None:
    """Who wakes too early or too late does no harm."""
    deed = Deed()
    rounds = Rounds(deed.act, clock, 5, "deed")
    rounds.wake()
    assert deed.under_way == []
    rounds.startService()
    assert stopped(rounds)
    rounds.wake()
    assert len(deed.under_way) == 1
