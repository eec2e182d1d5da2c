"""Tries are bounded in number and in time, and the user hears of every wait."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.errors import ImageNotFound
from shiftergw.registry.retry import PROGRESS, Interrupted, Patience, with_retries


class Tries:
    """Fails with each of `failures`, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        """Have not been tried."""
        self.failures = list(failures)
        self.count = 0
        self.reached = 0
        self.said: list[str] = []
        self.clock = Clock()

    async def attempt(self) -> str:
        """Fail or succeed."""
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return "good"

    def run(self, patience: Patience = Patience()) -> Deferred[str]:  # noqa: B008
        """Begin."""
        return Deferred.fromCoroutine(
            with_retries(
                self.attempt,
                patience=patience,
                clock=self.clock,
                random=lambda: 0.5,
                say=self.said.append,
                reached=lambda: self.reached,
            )
        )


def interrupted(retry_after: float | None = None) -> Interrupted:
    """Return a failure that may pass."""
    return Interrupted("The registry is busy.", retry_after=retry_after)


def test_waits_double() -> None:
    """Without a word from the registry the waits are 1, 2 and 4 seconds."""
    tries = Tries(*[interrupted()] * 3)
    running = tries.run()
    waits = [1.0, 2.0, 4.0]
    for number, wait in enumerate(waits, 1):
        tries.clock.advance(wait - 0.01)
        assert tries.count == number
        tries.clock.advance(0.01)
    assert running.result == "good"
    assert tries.said == [f"waiting {wait:g} s: The registry is busy." for wait in waits]


@pytest.mark.parametrize(("asked", "waited"), [(12, 12), (4000, 300), (0, 0)])
def test_the_registry_names_the_wait(asked: float, waited: float) -> None:
    """`Retry-After` is kept to, up to five minutes."""
    tries = Tries(interrupted(asked))
    tries.run()
    assert [call.getTime() for call in tries.clock.getDelayedCalls()] == [waited]
    tries.clock.advance(waited)
    assert tries.count == 2


def test_tries_are_bounded() -> None:
    """After five the last failure is raised."""
    tries = Tries(*[interrupted() for _ in range(5)])
    last = tries.failures[-1]
    running = tries.run()
    tries.clock.pump([20.0] * 10)
    caught: list[BaseException | None] = []

    def catch(failure: Failure) -> str:
        caught.append(failure.value)
        return "caught"

    running.addErrback(catch)
    assert caught == [last]
    assert tries.count == 5


def test_waiting_is_bounded() -> None:
    """Waits of five minutes are made three times, not four."""
    tries = Tries(*[interrupted(300)] * 10)
    running = tries.run(Patience(tries=100))
    tries.clock.pump([300.0] * 10)
    running.addErrback(lambda failure: failure.trap(Interrupted))
    assert (tries.count, tries.clock.getDelayedCalls()) == (4, [])


def test_progress_forgives() -> None:
    """A download that gets on may be interrupted more often."""
    tries = Tries(*[interrupted() for _ in range(8)])
    running = tries.run()
    for _ in range(8):
        tries.reached += PROGRESS
        tries.clock.advance(2)
    assert running.result == "good"


def test_other_failures_are_final() -> None:
    """What does not get better by waiting is raised at once."""
    tries = Tries(ImageNotFound("No."))
    running = tries.run()
    running.addErrback(lambda failure: failure.trap(ImageNotFound))
    assert (tries.count, tries.said) == (1, [])


def test_a_wait_can_be_cancelled() -> None:
    """Cancelling leaves nothing behind."""
    tries = Tries(interrupted())
    running = tries.run()
    running.addErrback(lambda _: None)
    running.cancel()
    assert tries.clock.getDelayedCalls() == []
    assert tries.count == 1
