"""The log lines of requests, and requests whose client hangs up."""

from __future__ import annotations

import re

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent

from shiftergw.errors import Unavailable
from tests.web.fakes import FakeGateway, Reply, Wire, hang_up, site_of


def _lines(events: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events if "fields" in event]


def test_one_line_in_the_log_for_each_request(wire: Wire, events: list[LogEvent]) -> None:
    """The line has the user, the path and the status, but no credential."""
    reply = wire.ask("/api/lookup/mycluster/docker/x%0Ay/", headers=["authentication:good:ann"])
    (line,) = _lines(events)
    assert line.startswith(f"{reply.headers['x-request-id']} 192.168.1.1 ann(1000) GET ")
    assert "/api/lookup/mycluster/docker/x%0Ay/ mycluster 404" in line
    assert "good:ann" not in line


@pytest.mark.parametrize(
    ("values", "is_taken"),
    [
        (["site-7.job_1"], True), (["A" * 40], True), (["A" * 41], False), (["A" * 7], False),
        ([".hidden-id"], False), (["two words"], False), (["1a2b3c4d"] * 2, False), ([""], False),
    ],
)  # fmt: skip
def test_ids_of_clients(
    wire: Wire, gateway: FakeGateway, events: list[LogEvent], values: list[str], is_taken: bool
) -> None:
    """A well-formed id is in the answer, the log and the pull; any other is replaced by a new one.

    So a client can neither break a line nor name its request by two ids.
    """
    headers = ["authentication:good:ann", *(f"X-Request-Id: {value}" for value in values)]
    reply = wire.ask("/api/pull/mycluster/docker/a%3A1/", "POST", headers=headers)
    request_id = reply.headers["x-request-id"]
    assert (request_id == values[0]) is is_taken
    assert is_taken or re.fullmatch("[0-9a-f]{8}", request_id)
    assert _lines(events)[-1].startswith(f"{request_id} ")
    assert request_id in gateway.calls[-1]


def test_details_for_admins_are_only_in_the_log(
    wire: Wire, gateway: FakeGateway, events: list[LogEvent]
) -> None:
    """The detail of an error is in the log, on one line, and not in the answer."""
    gateway.raises = Unavailable("The store is away.", detail="db7:27017\nrefused")
    reply = wire.ask("/api/list/mycluster/")
    assert b"db7" not in reply.body
    assert _lines(events)[0].endswith("The store is away. db7:27017\\x0arefused")


def test_probes_do_not_fill_the_log(wire: Wire, events: list[LogEvent]) -> None:
    """Requests without a user are logged at debug."""
    wire.ask("/livez", headers=())
    wire.ask("/", headers=())
    assert {event["log_level"] for event in events if "fields" in event} == {LogLevel.debug}


def test_the_duration_is_in_the_log(gateway: FakeGateway, events: list[LogEvent]) -> None:
    """The duration lasts from the arrival of the request to its answer."""
    clock = Clock()
    gateway.gate = Deferred()
    wire = Wire(site_of(gateway, clock))
    assert wire.send(b"GET /readyz HTTP/1.1\r\n\r\n") == b""
    clock.advance(1.25)
    gateway.gate.callback(None)
    assert "200 (answered in 1.250 s)" in _lines(events)[0]


def test_a_hang_up_cancels_a_read(wire: Wire, gateway: FakeGateway, events: list[LogEvent]) -> None:
    """A list whose client has hung up is no longer built."""
    cancellations: list[str] = []
    gateway.gate = Deferred(lambda _: cancellations.append("list"))
    wire.send(b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n")
    hang_up(wire)
    assert cancellations == ["list"]
    assert "hung up" in _lines(events)[0]


def test_a_pull_continues_after_a_hang_up(
    wire: Wire, gateway: FakeGateway, events: list[LogEvent]
) -> None:
    """A hang-up does not cancel a pull, and is not logged as a fault."""
    gateway.gate = Deferred()
    wire.send(
        b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\n"
        b"authentication:good:ann\r\nContent-Length: 0\r\n\r\n"
    )
    hang_up(wire)
    gateway.gate.callback(None)
    assert " 200 " in _lines(events)[0]
    assert [event for event in events if event["log_level"] is LogLevel.critical] == []
    assert wire.transport.value() == b""


def test_answers_keep_their_order(wire: Wire, gateway: FakeGateway) -> None:
    """Pipelined requests of one connection are answered in their order."""
    gateway.gate = Deferred()
    ask = b"GET /api/%s/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n"
    assert wire.send(ask % b"list" + ask % b"queue") == b""
    gateway.gate.callback(None)
    first, rest = Reply.parse(wire.send(b""))
    second, rest = Reply.parse(rest)
    assert (len(first.json["list"]), len(second.json["list"]), rest) == (1, 0, b"")
