"""How long a delivery that breaks goes on, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.again import TRIES, Tries
from shiftergw.delivery.channel import Away
from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.link import Broken, Link
from shiftergw.errors import DeliveryFailed

CUT = Broken("a", DeliveryFailed("The connection to the system broke."))
DOWN = Away("The system cannot be reached.")


class Shunned(Link):
    """A link to nowhere that notes which hosts it was to avoid."""

    def __init__(self, clock: Clock) -> None:
        """Open nothing."""
        super().__init__(Hosts({}, clock), clock, 1)
        self.shunned: list[str] = []

    def shun(self, host: str) -> None:
        """Note it."""
        self.shunned.append(host)


class Delivery:
    """One delivery whose tries end as told: what was found there, and the error or None."""

    def __init__(self, *ends: tuple[int | None, Exception | None]) -> None:
        """Begin it."""
        self.clock = Clock()
        self.link = Shunned(self.clock)
        self.tries = Tries(self.link)
        self._ends = list(ends)
        self.began: list[float] = []
        self.result: list[Any] = []
        self.running = Deferred.fromCoroutine(self.tries.run(self._deliver))
        self.running.addCallbacks(
            lambda _: self.result.append(None), lambda failure: self.result.append(failure.value)
        )

    async def _deliver(self) -> None:
        self.began.append(self.clock.seconds())
        found, error = self._ends.pop(0)
        if found is not None:
            self.tries.found(found)
        if error is not None:
            raise error

    def wait(self) -> None:
        """Turn the clock until nothing waits any more."""
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(min(call.getTime() for call in calls) - self.clock.seconds())


def test_a_few_in_vain() -> None:
    """A system that stays away is tried a few times, with growing pauses."""
    delivery = Delivery((0, CUT), *[(None, DOWN)] * TRIES)
    delivery.wait()
    assert delivery.began == [0, 1, 3, 7]
    assert delivery.result == [DOWN]


def test_as_long_as_it_gets_further() -> None:
    """A delivery that gets further each time goes on however often it breaks, without haste."""
    delivery = Delivery(*((10 * n, CUT) for n in range(50)), (500, None))
    delivery.wait()
    assert delivery.began == list(range(51))
    assert delivery.result == [None]


def test_back_and_forth() -> None:
    """Going back, and then no further than before, is in vain."""
    ends = [(found, CUT) for found in (0, 20, 0, 20, 10)]
    delivery = Delivery(*ends)
    delivery.wait()
    assert len(delivery.began) == 2 + TRIES
    assert delivery.result == [CUT]


@pytest.mark.parametrize("error", [DeliveryFailed("The delivered file is not what was sent.")])
def test_what_is_no_break(error: Exception) -> None:
    """A failure that is not the connection's ends the delivery."""
    delivery = Delivery((0, error))
    assert delivery.result == [error]
    assert delivery.clock.getDelayedCalls() == []


def test_which_host_is_shunned() -> None:
    """A host is left once it gets no further: it may have the part, and others not."""
    delivery = Delivery((0, CUT), (50, CUT), (50, CUT), (None, DOWN), (50, None))
    delivery.wait()
    assert delivery.link.shunned == ["a"]
    at_once = Delivery((None, CUT), (0, None))
    at_once.wait()
    assert at_once.link.shunned == ["a"]


@pytest.mark.parametrize("end", [lambda d: d.link.close(), lambda d: _cancelled(d.running)])
def test_ended_while_it_waits(end: Callable[[Delivery], Any]) -> None:
    """A delivery that waits for its next try ends at once when it is to."""
    delivery = Delivery((0, CUT))
    assert delivery.result == []
    Deferred.fromCoroutine(end(delivery))
    assert len(delivery.result) == 1
    assert not isinstance(delivery.result[0], Away)
    assert delivery.clock.getDelayedCalls() == []


async def _cancelled(running: Deferred[Any]) -> None:
    running.cancel()
