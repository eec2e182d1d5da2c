"""A body is read to its end, within limits, at the pace of its consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from shiftergw.errors import RegistryUnavailable
from shiftergw.sources.registry.body import FREE_PIECES, LEAST_PIECE, Body, Pace
from shiftergw.sources.registry.retry import Interruption, InterruptionKind, UnprovenEnd

PACE = Pace(10)
DONE = Failure(ResponseDone())


class Response:
    """An `IResponse` with its first bytes, which resumes the network as Twisted's does."""

    def __init__(self, *first: bytes) -> None:
        """Store the bytes that are delivered at once."""
        self.first = first
        self.calls: list[str] = []

    def deliverBody(self, body: Any) -> None:
        """Deliver the first bytes."""
        body.makeConnection(self)
        for data in self.first:
            body.dataReceived(data)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        """Record the call."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """Record the call."""
        self.calls.append("resume")

    def stopProducing(self) -> None:
        """Record the call."""
        self.calls.append("stop")


def read(body: Body, response: Any) -> None:
    """Begin to read a response."""
    body.read(response)


def reading(
    response: Any,
    take: Callable[[bytes], object],
    pace: Pace = PACE,
    first_window: float | None = None,
) -> tuple[Body, Clock, list[object]]:
    """Begin to read; return the body, its clock, and the list that will get its end."""
    clock = Clock()
    ends: list[object] = []
    body = Body(take, clock, pace, "It")
    body.first_window = first_window
    body.end.addCallbacks(ends.append, lambda failure: ends.append(failure.value))
    read(body, response)
    return body, clock, ends


def test_the_end() -> None:
    """The bytes arrive in order; no timer is left."""
    pieces: list[bytes] = []
    body, clock, ends = reading(Response(b"a"), pieces.append)
    body.dataReceived(b"b")
    body.connectionLost(DONE)
    assert (pieces, ends, clock.getDelayedCalls()) == ([b"a", b"b"], [None], [])


def test_broken_off() -> None:
    """Any other end than the announced one is an interruption."""
    body, clock, ends = reading(Response(), len)
    body.connectionLost(Failure(ConnectionLost()))
    assert isinstance(ends[0], Interruption)
    assert clock.getDelayedCalls() == []


def test_the_end_of_the_connection_alone() -> None:
    """The body may be incomplete: the error says so, and only the bytes can prove its end."""
    body, clock, ends = reading(Response(b"a"), len)
    body.connectionLost(Failure(PotentialDataLoss()))
    assert isinstance(ends[0], UnprovenEnd)
    assert ends[0].what == "It closed the connection, perhaps in the middle of a transfer."
    assert clock.getDelayedCalls() == []


def test_a_stall() -> None:
    """Silence for longer than the limit closes the connection; every byte starts it anew."""
    response = Response()
    body, clock, ends = reading(response, len)
    for _ in range(5):
        clock.advance(9)
        body.dataReceived(b"x")
    assert ends == []
    clock.advance(10)
    assert isinstance(ends[0], Interruption)
    assert response.calls[-1] == "stop"


def test_a_pause_is_no_stall() -> None:
    """The time of a pause of the consumer does not count, the time after it does."""
    response = Response()
    body, clock, ends = reading(response, len)
    body.pauseProducing()
    body.pauseProducing()
    clock.advance(100)
    assert ends == []
    body.resumeProducing()
    body.resumeProducing()
    clock.advance(9)
    assert ends == []
    clock.advance(1)
    assert isinstance(ends[0], Interruption)
    assert response.calls == ["resume", "pause", "pause", "resume", "resume", "stop"]


LIMITED_PACE = Pace(idle=10, rate=100, window=60)


def drip(body: Body, clock: Clock, size: int, times: int) -> None:
    """Receive `size` bytes every five seconds, `times` times."""
    for _ in range(times):
        clock.advance(5)
        body.dataReceived(b"x" * size)


def test_a_drip() -> None:
    """A body with too few bytes in one window is interrupted; the error has their number."""
    response = Response()
    body, clock, ends = reading(response, len, LIMITED_PACE)
    drip(body, clock, 600, 11)
    drip(body, clock, 1, 12)
    assert ends == []
    drip(body, clock, 1, 2)
    assert isinstance(ends[0], Interruption)
    assert ends[0].what == (
        "It is too slow: it sent 12 bytes in 60 s; 100 bytes a second are the least"
        " (`RegistryLeastRate`)."
    )
    assert ends[0].kind is InterruptionKind.SLOW
    assert response.calls[-1] == "stop"
    assert clock.getDelayedCalls() == []


def test_a_slow_line() -> None:
    """A body with the least rate has no limit of time."""
    body, clock, ends = reading(Response(), len, LIMITED_PACE)
    drip(body, clock, 600, 1000)
    body.connectionLost(DONE)
    assert (ends, clock.getDelayedCalls()) == ([None], [])


def test_no_least_rate() -> None:
    """A rate of 0 disables the limit of the rate, but not that of silence."""
    body, clock, ends = reading(Response(), len, Pace(idle=10))
    drip(body, clock, 1, 100)
    assert ends == []
    clock.advance(10)
    assert "sent nothing for 10 s" in str(ends[0])


def test_a_pause_begins_a_new_window() -> None:
    """A consumer that is slower than the network does not count against the network."""
    body, clock, ends = reading(Response(), len, LIMITED_PACE)
    for _ in range(10):
        drip(body, clock, 1, 11)
        body.pauseProducing()
        clock.advance(1000)
        body.resumeProducing()
    assert ends == []


def test_a_document_that_takes_too_long() -> None:
    """An error for the limit on the whole body is final: it is not retried."""
    body, clock, ends = reading(Response(), len, Pace(idle=10, rate=1, window=60, total=90))
    drip(body, clock, 6, 17)
    assert ends == []
    drip(body, clock, 6, 1)
    assert isinstance(ends[0], RegistryUnavailable)
    assert not isinstance(ends[0], Interruption)
    assert ends[0].what == "It is too slow: it sent 102 bytes in 90 s."
    assert clock.getDelayedCalls() == []


def test_crumbs() -> None:
    """Each piece costs processor time: many small pieces are refused, a few are not."""
    body, clock, ends = reading(Response(), len)
    for _ in range(FREE_PIECES):
        body.dataReceived(b"x")
    assert ends == []
    body.dataReceived(b"x")
    assert isinstance(ends[0], RegistryUnavailable)
    assert not isinstance(ends[0], Interruption)
    assert clock.getDelayedCalls() == []


def test_many_pieces_of_a_fair_size() -> None:
    """The number of large pieces is unlimited."""
    body, _, ends = reading(Response(), len)
    for _ in range(3 * FREE_PIECES):
        body.dataReceived(b"x" * LEAST_PIECE)
    body.connectionLost(DONE)
    assert ends == [None]


def test_paused_at_the_first_bytes() -> None:
    """A consumer that pauses during the delivery of the first bytes stays paused."""
    response = Response(b"a")
    bodies: list[Body] = []
    body = Body(lambda _: bodies[0].pauseProducing(), Clock(), PACE, "It")
    bodies.append(body)
    read(body, response)
    assert response.calls[-2:] == ["resume", "pause"]


def test_a_taker_that_fails() -> None:
    """An error of the consumer ends the body and closes the connection."""
    pieces: list[bytes] = []

    def take(data: bytes) -> None:
        pieces.append(data)
        raise ValueError(data)

    response = Response(b"a", b"b")
    body, clock, ends = reading(response, take)
    body.dataReceived(b"c")
    body.connectionLost(DONE)
    assert pieces == [b"a"]
    assert isinstance(ends[0], ValueError)
    assert len(ends) == 1
    assert response.calls[-1] == "stop"
    assert clock.getDelayedCalls() == []


def test_stopped_before_the_start() -> None:
    """A consumer that stops before the start gets no bytes."""
    pieces: list[bytes] = []
    clock = Clock()
    body = Body(pieces.append, clock, PACE, "It")
    body.stopProducing()
    response = Response(b"a")
    read(body, response)
    body.end.addErrback(lambda failure: None)
    assert (pieces, response.calls, clock.getDelayedCalls()) == ([], ["resume", "stop"], [])


@pytest.mark.parametrize("late", [DONE, Failure(ConnectionLost())])
def test_cancelling(late: Failure) -> None:
    """A cancelled body closes its connection and ignores the reason of its end."""
    response = Response()
    body, clock, ends = reading(response, len)
    body.end.cancel()
    body.resumeProducing()
    body.connectionLost(late)
    assert isinstance(ends[0], CancelledError)
    assert len(ends) == 1
    assert response.calls == ["resume", "stop"]
    assert clock.getDelayedCalls() == []


def test_the_first_window_may_be_shorter() -> None:
    """The first window of a probe is short; afterwards the usual window counts."""
    body, clock, ends = reading(Response(), len, LIMITED_PACE, first_window=4)
    body.dataReceived(b"x" * 400)
    clock.advance(4)
    assert body.proven.is_set
    drip(body, clock, 600, 11)
    assert ends == []
    body, clock, ends = reading(Response(), len, LIMITED_PACE, first_window=4)
    body.dataReceived(b"x" * 399)
    clock.advance(4)
    assert isinstance(ends[0], Interruption)
    assert "399 bytes in 4 s" in ends[0].what
