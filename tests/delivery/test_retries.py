"""How long a delivery that breaks goes on, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.retries import QUICK_SECONDS, TRIES, DeliveryRetries, retry_request
from shiftergw.delivery.shared_session import SessionBroken, SharedSession
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress
from shiftergw.plumbing.channel import Away, Connection
from shiftergw.plumbing.timing import pause

CUT = SessionBroken("a", DeliveryFailed("The connection to the system broke."))
CUT_AT_B = SessionBroken("b", DeliveryFailed("The connection to the system broke."))
DOWN = Away("The system cannot be reached.")
LONG = QUICK_SECONDS
START = 1000.0


class Shunned(SharedSession):
    """A link to nowhere that notes which hosts it was to avoid."""

    def __init__(self, clock: Clock, hosts: str) -> None:
        """Open nothing; each letter is a host."""
        super().__init__(Hosts(dict.fromkeys(hosts, nowhere), clock), clock, 1)
        self.shunned: list[str] = []

    def shun(self, host: str) -> None:
        """Note it."""
        self.shunned.append(host)


async def nowhere() -> Connection:
    """Connect with no host."""
    raise DOWN


class Delivery:
    """One delivery whose tries end as told: what was found there, and the error or None.

    Each try lasts `seconds`, and its host gives a sign of life every `signs` seconds, if at all.
    """

    def __init__(
        self,
        *ends: tuple[int | None, Exception | None],
        hosts: str = "a",
        seconds: float = 0,
        signs: float = 0,
    ) -> None:
        """Begin it."""
        self.clock = Clock()
        self.clock.advance(START)
        self.session = Shunned(self.clock, hosts)
        self.retries = DeliveryRetries(self.session, self.clock, lambda _: None)
        self._seconds, self._signs = seconds, signs
        self._ends = list(ends)
        self.began: list[float] = []
        self.result: list[Any] = []
        self.running = Deferred.fromCoroutine(self.retries.run(self._deliver))
        self.running.addCallbacks(
            lambda _: self.result.append(None), lambda failure: self.result.append(failure.value)
        )

    async def _deliver(self) -> None:
        self.began.append(self.clock.seconds() - START)
        verified, error = self._ends.pop(0)
        if verified is not None:
            self.retries.note_verified(verified)
        if self._seconds:
            end = self.clock.seconds() + self._seconds
            while self._signs and self.clock.seconds() + self._signs < end:
                await pause(self._signs, self.clock)
                self.retries.report(Progress("deliver", 1, 2))
            await pause(end - self.clock.seconds(), self.clock)
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


def test_a_host_that_refuses_at_once() -> None:
    """A quick refusal is no silence, however long ago the delivery was made."""
    delivery = Delivery((None, DOWN), (0, None))
    delivery.wait()
    assert delivery.began == [0, 1]
    assert delivery.result == [None]


def test_as_long_as_it_gets_further() -> None:
    """A delivery that gets further each time goes on however often it breaks, without haste."""
    delivery = Delivery(*((10 * n, CUT) for n in range(50)), (500, None))
    delivery.wait()
    assert delivery.began == list(range(51))
    assert delivery.result == [None]


@pytest.mark.parametrize(("found", "error"), [(None, DOWN), (0, CUT), (50, CUT)])
def test_a_long_silence_ends_it(found: int | None, error: Away) -> None:
    """A system without another host holds no worker once it was silent for long."""
    delivery = Delivery((found, error), seconds=LONG)
    delivery.wait()
    assert delivery.result == [error]
    assert delivery.began == [0]


def test_a_long_try_with_signs_of_life() -> None:
    """What breaks after it has got on for long is tried again at once: that is no silence."""
    delivery = Delivery((0, CUT), (50, None), seconds=4 * LONG, signs=LONG - 1)
    delivery.wait()
    assert delivery.began == [0, 4 * LONG + 1]
    assert delivery.result == [None]


def test_a_silent_host_is_left_for_the_others() -> None:
    """Each host of a system may be silent once; where one was before, the delivery ends."""
    delivery = Delivery((0, CUT), (0, CUT_AT_B), hosts="ab", seconds=LONG)
    delivery.wait()
    assert delivery.session.shunned == ["a", "b"]
    assert len(delivery.began) == 2
    assert delivery.result == [CUT_AT_B]
    again = Delivery((0, CUT), (50, CUT_AT_B), (60, CUT), (60, CUT_AT_B), hosts="ab", seconds=LONG)
    again.wait()
    assert len(again.began) == 4, "a delivery that gets further has all hosts before it again"


@pytest.mark.parametrize(
    ("hosts", "seconds", "asked"), [("a", LONG, 1), ("a", LONG - 1, 2), ("ab", LONG, 2)]
)
def test_a_request_is_repeated_if_that_is_quick(hosts: str, seconds: float, asked: int) -> None:
    """A host that was silent for long is not asked again, but another one is."""
    clock, times = Clock(), list[float]()

    async def ask() -> None:
        times.append(clock.seconds())
        await pause(seconds, clock)
        raise CUT

    link = Shunned(clock, hosts)
    running = Deferred.fromCoroutine(retry_request(link, ask, clock))
    running.addErrback(lambda failure: failure.trap(SessionBroken))
    clock.pump([seconds] * 2)
    assert running.called
    assert len(times) == asked
    assert link.shunned == ["a"]


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
    assert delivery.session.shunned == ["a"]
    at_once = Delivery((None, CUT), (0, None))
    at_once.wait()
    assert at_once.session.shunned == ["a"]


@pytest.mark.parametrize("end", [lambda d: d.session.close(), lambda d: _cancelled(d.running)])
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
