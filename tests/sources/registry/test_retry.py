"""Tries are bounded; the client waits for short times, and leaves longer waits to the caller."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.errors import ImageNotFound, RetryLater
from shiftergw.sources.registry.retry import (
    PROGRESS,
    Interruption,
    InterruptionKind,
    Patience,
    RegistryRetries,
)


class Tries:
    """An attempt that fails with each of `failures`, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        """Start without attempts."""
        self.failures = list(failures)
        self.count = 0
        self.progress = 0
        self.takes = 0
        self.random = 0.5
        self.messages: list[str] = []
        self.clock = Clock()

    async def attempt(self) -> str:
        """Fail or succeed."""
        self.count += 1
        self.clock.advance(self.takes)
        if self.failures:
            raise self.failures.pop(0)
        return "good"

    async def postpone(self, error: Interruption, seconds: float) -> RetryLater:
        """Return an error with the time of the next try."""
        return RetryLater(self.clock.seconds() + seconds, "test", error)

    def run(self, patience: Patience = Patience()) -> Deferred[object]:  # noqa: B008
        """Begin; the result is an error if the tries fail."""
        retries = RegistryRetries(
            patience, self.clock, lambda: self.random, self.messages.append, self.postpone
        )
        running: Deferred[object] = Deferred.fromCoroutine(
            retries.run(self.attempt, lambda: self.progress)
        )
        return running.addErrback(lambda failure: failure.value)

    def waits_for(self) -> list[float]:
        """Return the seconds until the next try."""
        return [call.getTime() - self.clock.seconds() for call in self.clock.getDelayedCalls()]


def interruption(
    retry_after: float | None = None, kind: InterruptionKind = InterruptionKind.BRIEF
) -> Interruption:
    """Return a failure that a later try may not have."""
    return Interruption("The registry is busy.", kind=kind, retry_after=retry_after)


@pytest.mark.parametrize(("random", "wait"), [(0.0, 0.5), (0.5, 1.0), (0.9, 1.4)])
def test_waits_are_spread(random: float, wait: float) -> None:
    """Pulls that are interrupted at the same time are not retried at the same time."""
    tries = Tries(interruption())
    tries.random = random
    tries.run()
    assert tries.waits_for() == [pytest.approx(wait)]
    assert Patience().backoff(2, random) == pytest.approx(2 * wait)


def test_waits_double() -> None:
    """Without `Retry-After` the waits are 1 and 2 seconds; 4 seconds are left to the caller."""
    tries = Tries(*[interruption()] * 5)
    running = tries.run(Patience(tries=9))
    for number, wait in enumerate((1.0, 2.0), 1):
        tries.clock.advance(wait - 0.01)
        assert tries.count == number
        tries.clock.advance(0.01)
    delay = running.result
    assert isinstance(delay, RetryLater)
    assert (tries.count, delay.at, delay.what) == (3, 3.0 + 4.0, "The registry is busy.")
    assert tries.messages == [f"waiting {wait} s: The registry is busy." for wait in (1, 2)]


@pytest.mark.parametrize("retry_after", [0, 0.5, 1])
def test_the_registry_cannot_shorten_a_wait(retry_after: float) -> None:
    """The client's own wait is the least, also with `Retry-After: 0`."""
    tries = Tries(interruption(retry_after))
    running = tries.run()
    assert tries.waits_for() == [1.0]
    tries.clock.advance(1.0)
    assert running.result == "good"


def test_the_registry_names_a_short_wait() -> None:
    """The client itself waits if the wait is short."""
    tries = Tries(interruption(1.75))
    tries.run()
    assert tries.waits_for() == [1.75]


@pytest.mark.parametrize("retry_after", [3, 900, 86400])
def test_the_registry_names_a_long_wait(retry_after: float) -> None:
    """A longer wait is left to the caller at once, however few the tries were."""
    tries = Tries(interruption(retry_after))
    delay = tries.run().result
    assert isinstance(delay, RetryLater)
    assert (tries.count, delay.at) == (1, retry_after)


def test_tries_are_bounded() -> None:
    """After three tries the pull must wait, even if the wait is short."""
    tries = Tries(*[interruption() for _ in range(5)])
    running = tries.run(Patience(first=0.01))
    tries.clock.pump([1.0] * 10)
    assert isinstance(running.result, RetryLater)
    assert tries.count == 3


def test_a_slow_try_is_not_repeated_at_once() -> None:
    """After a try that took a minute, the worker does not try again itself."""
    tries = Tries(*[interruption() for _ in range(5)])
    tries.takes = 60
    delay = tries.run().result
    assert isinstance(delay, RetryLater)
    assert (tries.count, delay.at) == (1, 60 + 8)


def test_a_lasting_interruption() -> None:
    """An error in the answer itself is raised after the last try."""
    tries = Tries(*[interruption(kind=InterruptionKind.LASTING) for _ in range(5)])
    last = tries.failures[2]
    running = tries.run()
    tries.clock.pump([2.0] * 10)
    assert running.result is last


def test_progress_forgives() -> None:
    """A download that makes progress may be interrupted more often."""
    tries = Tries(*[interruption() for _ in range(8)])
    running = tries.run()
    for _ in range(8):
        tries.progress += PROGRESS
        tries.clock.advance(2)
    assert running.result == "good"


def test_waits_grow_to_a_limit() -> None:
    """Without a wait named by the registry, the longest wait is five minutes."""
    patience = Patience()
    assert [patience.backoff(n, 0.5) for n in (1, 2, 3, 9, 10_000)] == [1, 2, 4, 256, 300]


def test_other_failures_are_final() -> None:
    """Errors that a wait does not mend are raised at once."""
    tries = Tries(ImageNotFound("No."))
    assert isinstance(tries.run().result, ImageNotFound)
    assert (tries.count, tries.messages) == (1, [])


def test_a_wait_can_be_cancelled() -> None:
    """A cancelled wait leaves no timer."""
    tries = Tries(interruption())
    running = tries.run()
    running.addErrback(lambda failure: isinstance(failure, Failure))
    running.cancel()
    assert tries.clock.getDelayedCalls() == []
    assert tries.count == 1
