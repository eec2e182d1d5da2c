"""Requests that a client sends without waiting for answers delay no other, and fill no memory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.web.channel import IDLE_LIMIT, TURN_BYTES
from tests.web.fakes import FakeGateway, Wire, site_of

ASK = b"GET /livez HTTP/1.1\r\n\r\n"
LIST = b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n"


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the site."""
    return Clock()


@pytest.fixture
def gateway() -> FakeGateway:
    """Return the gateway behind the site."""
    return FakeGateway()


@pytest.fixture
def wire(gateway: FakeGateway, clock: Clock) -> Wire:
    """Return a connection to the site."""
    return Wire(site_of(gateway, clock))


def _channel(wire: Wire) -> Any:
    return wire.channel


def _answers(wire: Wire) -> int:
    answer: bytes = wire.transport.value()
    return answer.count(b"HTTP/1.1 200 OK")


def test_one_turn_of_the_reactor_answers_one_request(wire: Wire, clock: Clock) -> None:
    """Before the second of many pipelined requests, other connections have their turn."""
    _channel(wire).dataReceived(ASK * 50)
    assert _answers(wire) == 1
    assert wire.transport.producerState == "paused"
    clock.advance(0)  # it counts calls that are made meanwhile to the same turn
    assert _answers(wire) == 50
    assert wire.transport.producerState == "producing"


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_pipelined_bodies_and_pieces(wire: Wire, body: bytes) -> None:
    """Requests with and without bodies are answered, wherever their bytes are split."""
    request = (
        b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\nauthentication:good:ann\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    channel, stream = _channel(wire), request * 9
    for start in range(0, len(stream), 37):
        channel.dataReceived(stream[start : start + 37])
    wire.send(b"")
    assert _answers(wire) == 9


def test_a_client_that_receives_no_answers_gets_no_more(wire: Wire, clock: Clock) -> None:
    """Once the send buffer is full, the client's requests wait, and no more bytes are read."""
    channel = _channel(wire)
    channel.dataReceived(ASK * 50)
    channel.pauseProducing()  # as the transport does
    for _ in range(10):
        clock.advance(0)
    assert _answers(wire) == 1
    assert wire.transport.producerState == "paused"
    channel.resumeProducing()
    assert wire.transport.producerState == "paused"
    wire.send(b"")
    assert _answers(wire) == 50
    assert wire.transport.producerState == "producing"


def test_a_client_that_receives_no_answers_is_disconnected(wire: Wire, clock: Clock) -> None:
    """The time limit is the same as for a silent client."""
    channel = _channel(wire)
    channel.dataReceived(ASK * 50)
    channel.pauseProducing()
    clock.advance(IDLE_LIMIT + 1)
    assert wire.transport.disconnecting
    assert _answers(wire) == 1


def test_requests_behind_an_answer_in_work_are_not_read(wire: Wire, gateway: FakeGateway) -> None:
    """Beyond 16 KiB no bytes are read, also if the client does not receive the answer."""
    gateway.gate = Deferred()
    channel = _channel(wire)
    channel.dataReceived(LIST)
    channel.pauseProducing()
    for _ in range(0x4000 // TURN_BYTES):
        channel.dataReceived(b"x" * TURN_BYTES)
        assert wire.transport.producerState == "producing"
    channel.dataReceived(b"x")
    assert wire.transport.producerState == "paused"


def test_a_turn_of_the_reactor_parses_few_bytes(wire: Wire, clock: Clock) -> None:
    """A body in chunks of one byte costs as much as thousands of requests."""
    body = b"1\r\n \r\n" * TURN_BYTES + b"0\r\n\r\n"
    channel = _channel(wire)
    channel.dataReceived(
        b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\nauthentication:good:ann\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + body
    )
    assert channel.requests[-1].content.tell() < TURN_BYTES / 6
    assert wire.transport.producerState == "paused"
    clock.advance(0)  # it counts calls that are made meanwhile to the same turn
    assert _answers(wire) == 1
    assert wire.transport.producerState == "producing"


def test_bytes_after_the_last_request_are_dropped(wire: Wire, clock: Clock) -> None:
    """After `Connection: close` the connection ends, and later requests are dropped."""
    channel = _channel(wire)
    channel.dataReceived(ASK.replace(b"1.1", b"1.0") + ASK * 1000)
    clock.advance(0)
    assert wire.transport.value().count(b" 200 OK") == 1
    assert wire.transport.disconnecting


def test_a_connection_that_ends_between_two_requests(wire: Wire, clock: Clock) -> None:
    """A connection that ends between two requests leaves no work."""
    channel = _channel(wire)
    channel.dataReceived(ASK * 50)
    wire.transport.abortConnection()
    channel.connectionLost()
    assert clock.getDelayedCalls() == []
