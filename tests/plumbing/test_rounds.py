"""Rounds are repeated, also after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from shiftergw.errors import Unavailable
from shiftergw.plumbing.rounds import Rounds


class Action:
    """The action of each round; the test decides when and how it ends."""

    def __init__(self, *, is_immediate: bool = True) -> None:
        self.is_immediate = is_immediate
        self.calls: list[Deferred[None]] = []
        self.raises: Exception | None = None

    async def act(self) -> None:
        """Return at once, wait for the test, or raise."""
        waiting: Deferred[None] = Deferred()
        self.calls.append(waiting)
        if self.raises is not None:
            raise self.raises
        if not self.is_immediate:
            await waiting


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def levels() -> Iterator[list[str]]:
    """Return the levels of logged events."""
    level_names: list[str] = []

    def observe(event: dict[str, object]) -> None:
        level_names.append(getattr(event.get("log_level"), "name", ""))

    watch: Callable[..., None] = observe
    globalLogPublisher.addObserver(watch)  # type: ignore[arg-type]
    yield level_names
    globalLogPublisher.removeObserver(watch)  # type: ignore[arg-type]


def stop(rounds: Rounds) -> bool:
    """Stop the rounds; return whether the stop is complete."""
    results: list[object] = []
    rounds.stopService().addCallback(results.append)
    return bool(results)


def test_rounds_follow_one_another(clock: Clock) -> None:
    """A round starts at the start and after each interval, until the stop."""
    action = Action()
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.startService()
    assert len(action.calls) == 1
    clock.advance(4.9)
    assert len(action.calls) == 1
    clock.advance(0.1)
    clock.advance(5)
    assert len(action.calls) == 3
    assert stop(rounds)
    clock.advance(50)
    assert len(action.calls) == 3
    assert clock.getDelayedCalls() == []


def test_wake(clock: Clock) -> None:
    """`wake` starts a round at once; then the interval counts anew."""
    action = Action()
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.startService()
    clock.advance(3)
    rounds.wake()
    assert len(action.calls) == 2
    clock.advance(3)
    assert len(action.calls) == 2
    clock.advance(2)
    assert len(action.calls) == 3
    assert stop(rounds)


def test_wake_in_a_round(clock: Clock) -> None:
    """`wake` during a round, even repeated, causes one more round right after it."""
    action = Action(is_immediate=False)
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.startService()
    rounds.wake()
    rounds.wake()
    assert len(action.calls) == 1
    action.calls[0].callback(None)
    assert len(action.calls) == 2
    action.calls[1].callback(None)
    assert len(action.calls) == 2
    assert stop(rounds)


def test_stop_waits_for_the_round(clock: Clock) -> None:
    """The stop is complete when the current round has ended; no further round starts."""
    action = Action(is_immediate=False)
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.startService()
    results: list[object] = []
    rounds.stopService().addCallback(results.append)
    assert results == []
    action.calls[0].callback(None)
    assert results == [None]
    assert len(action.calls) == 1


@pytest.mark.parametrize(
    ("error", "level"),
    [(Unavailable("Away."), "warn"), (ValueError("a bug"), "critical")],
)
def test_errors_do_not_end_the_rounds(
    clock: Clock, levels: list[str], error: Exception, level: str
) -> None:
    """An error is logged, and the next round starts after the interval."""
    action = Action()
    action.raises = error
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.startService()
    assert levels == [level]
    clock.advance(5)
    assert len(action.calls) == 2
    assert stop(rounds)


def test_wake_before_the_start_and_after_the_stop(clock: Clock) -> None:
    """`wake` before the start or after the stop has no effect."""
    action = Action()
    rounds = Rounds(action.act, clock, 5, "action")
    rounds.wake()
    assert action.calls == []
    rounds.startService()
    assert stop(rounds)
    rounds.wake()
    assert len(action.calls) == 1
