"""The retries of broken deliveries, with a clock that the test advances."""

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
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import Connection, SystemUnavailable
from shiftergw.plumbing.timing import pause

CUT = SessionBroken("a", DeliveryFailed("The connection to the system broke."))
CUT_AT_B = SessionBroken("b", DeliveryFailed("The connection to the system broke."))
DOWN = SystemUnavailable("The system cannot be reached.")
LONG = QUICK_SECONDS
START = 1000.0


class RecordingSession(SharedSession):
    """A session that never opens, and records which hosts were shunned."""

    def __init__(self, clock: Clock, hosts: str) -> None:
        """Open nothing; each letter of `hosts` is a host."""
        super().__init__(Hosts(dict.fromkeys(hosts, refuse_connection), clock), clock, 1)
        self.shunned_hosts: list[str] = []

    def shun(self, host: str) -> None:
        """Record the host."""
        self.shunned_hosts.append(host)


async def refuse_connection() -> Connection:
    """Fail to connect."""
    raise DOWN


class Delivery:
    """A delivery with a planned end of each attempt: the verified bytes, and the error or None.

    Each attempt lasts `seconds`; its host gives a sign of life every `signs` seconds (0: never).
    """

    def __init__(
        self,
        *ends: tuple[int | None, Exception | None],
        hosts: str = "a",
        seconds: float = 0,
        signs: float = 0,
    ) -> None:
        """Start the delivery."""
        self.clock = Clock()
        self.clock.advance(START)
        self.session = RecordingSession(self.clock, hosts)
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
        verified_size, error = self._ends.pop(0)
        if verified_size is not None:
            self.retries.note_verified(verified_size)
        if self._seconds:
            end = self.clock.seconds() + self._seconds
            while self._signs and self.clock.seconds() + self._signs < end:
                await pause(self._signs, self.clock)
                self.retries.report(Progress("deliver", 1, 2))
            await pause(end - self.clock.seconds(), self.clock)
        if error is not None:
            raise error

    def wait(self) -> None:
        """Advance the clock until no timer is left."""
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(min(call.getTime() for call in calls) - self.clock.seconds())


def test_attempts_without_progress() -> None:
    """A system that stays unavailable is tried a few times, with growing pauses."""
    delivery = Delivery((0, CUT), *[(None, DOWN)] * TRIES)
    delivery.wait()
    assert delivery.began == [0, 1, 3, 7]
    assert delivery.result == [DOWN]


def test_a_host_that_refuses_at_once() -> None:
    """A quick refusal does not count as silence."""
    delivery = Delivery((None, DOWN), (0, None))
    delivery.wait()
    assert delivery.began == [0, 1]
    assert delivery.result == [None]


def test_retried_as_long_as_it_makes_progress() -> None:
    """A delivery with progress in each attempt is retried without limit, after pauses."""
    delivery = Delivery(*((10 * n, CUT) for n in range(50)), (500, None))
    delivery.wait()
    assert delivery.began == list(range(51))
    assert delivery.result == [None]


@pytest.mark.parametrize(("verified_size", "error"), [(None, DOWN), (0, CUT), (50, CUT)])
def test_a_long_silence_ends_it(verified_size: int | None, error: SystemUnavailable) -> None:
    """A system without another host occupies no worker after a long silence."""
    delivery = Delivery((verified_size, error), seconds=LONG)
    delivery.wait()
    assert delivery.result == [error]
    assert delivery.began == [0]


def test_a_long_attempt_with_signs_of_life() -> None:
    """An attempt that breaks after a long time, but not after a silence, is retried."""
    delivery = Delivery((0, CUT), (50, None), seconds=4 * LONG, signs=LONG - 1)
    delivery.wait()
    assert delivery.began == [0, 4 * LONG + 1]
    assert delivery.result == [None]


def test_a_silent_host_is_left_for_the_others() -> None:
    """Each host of a system may be silent once; if all were, the delivery ends."""
    delivery = Delivery((0, CUT), (0, CUT_AT_B), hosts="ab", seconds=LONG)
    delivery.wait()
    assert delivery.session.shunned_hosts == ["a", "b"]
    assert len(delivery.began) == 2
    assert delivery.result == [CUT_AT_B]
    with_progress = Delivery(
        (0, CUT), (50, CUT_AT_B), (60, CUT), (60, CUT_AT_B), hosts="ab", seconds=LONG
    )
    with_progress.wait()
    assert len(with_progress.began) == 4, "after progress, all hosts count as responsive again"


@pytest.mark.parametrize(
    ("hosts", "seconds", "request_count"), [("a", LONG, 1), ("a", LONG - 1, 2), ("ab", LONG, 2)]
)
def test_a_request_is_repeated_if_that_is_quick(
    hosts: str, seconds: float, request_count: int
) -> None:
    """After a long silence a request is repeated on another host only."""
    clock, times = Clock(), list[float]()

    async def request() -> None:
        times.append(clock.seconds())
        await pause(seconds, clock)
        raise CUT

    link = RecordingSession(clock, hosts)
    running = Deferred.fromCoroutine(retry_request(link, request, clock))
    running.addErrback(lambda failure: failure.trap(SessionBroken))
    clock.pump([seconds] * 2)
    assert running.called
    assert len(times) == request_count
    assert link.shunned_hosts == ["a"]


def test_back_and_forth() -> None:
    """An attempt that falls back and returns to the same point made no progress."""
    ends = [(verified_size, CUT) for verified_size in (0, 20, 0, 20, 10)]
    delivery = Delivery(*ends)
    delivery.wait()
    assert len(delivery.began) == 2 + TRIES
    assert delivery.result == [CUT]


@pytest.mark.parametrize("error", [DeliveryFailed("The delivered file is not what was sent.")])
def test_other_failures_are_not_retried(error: Exception) -> None:
    """A failure that is not of the connection ends the delivery."""
    delivery = Delivery((0, error))
    assert delivery.result == [error]
    assert delivery.clock.getDelayedCalls() == []


def test_which_host_is_shunned() -> None:
    """A host is shunned once it makes no progress; until then, perhaps it alone has the part."""
    delivery = Delivery((0, CUT), (50, CUT), (50, CUT), (None, DOWN), (50, None))
    delivery.wait()
    assert delivery.session.shunned_hosts == ["a"]
    delivery_without_progress = Delivery((None, CUT), (0, None))
    delivery_without_progress.wait()
    assert delivery_without_progress.session.shunned_hosts == ["a"]


@pytest.mark.parametrize("end", [lambda d: d.session.close(), lambda d: _cancel(d.running)])
def test_ended_during_a_pause(end: Callable[[Delivery], Any]) -> None:
    """A delivery that waits for its next attempt ends at once when closed or cancelled."""
    delivery = Delivery((0, CUT))
    assert delivery.result == []
    Deferred.fromCoroutine(end(delivery))
    assert len(delivery.result) == 1
    assert not isinstance(delivery.result[0], SystemUnavailable)
    assert delivery.clock.getDelayedCalls() == []


async def _cancel(running: Deferred[Any]) -> None:
    running.cancel()
