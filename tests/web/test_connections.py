"""Which of many connections are closed, and how long slow requests and readers may take."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.web import connections as rules
from shiftergw.web.channel import IDLE_LIMIT, LINGER
from shiftergw.web.connections import GRACE, RETRY_SECONDS, ConnectionLimits, ConnectionTable
from tests.patience import patient
from tests.web.fakes import FakeGateway, Reply, Wire, listening, site_of

LIMITS = ConnectionLimits(total=8, per_peer=3, request_seconds=5)


@dataclass(eq=False)
class FakeConnection:
    """A connection that records whether it was closed to make room."""

    connections: ConnectionTable
    has_credential: bool = False
    is_closed: bool = False

    def make_way(self) -> None:
        """Record that the connection closes."""
        self.is_closed = True


class FakePort:
    """A listening port that can stop accepting connections."""

    connected = True
    disconnecting = False
    numberAccepts = 100  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        """Accept connections."""
        self.reads = True

    def is_reading(self) -> bool:
        """Return whether it accepts connections."""
        return self.reads

    def stopReading(self) -> None:
        """Stop accepting connections."""
        self.reads = False

    def startReading(self) -> None:
        """Accept connections again."""
        self.reads = True


class Crowd:
    """A table of connections, a listening port, and a clock."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.clock = Clock()
        self.port = FakePort()
        self.table = ConnectionTable(limits, self.clock)

    def connect(self, peer: str, *, has_credential: bool = False) -> FakeConnection:
        """Add a connection that waits for a request."""
        connection = FakeConnection(self.table, has_credential)
        self.table.add(connection, peer, self.port)
        return connection


def test_a_peer_has_a_share() -> None:
    """Beyond its share, only the oldest waiting connection of the peer is closed."""
    crowd = Crowd()
    stranger = crowd.connect("10.0.0.9", has_credential=True)
    connections = [crowd.connect("10.0.0.1", has_credential=True) for _ in range(3)]
    crowd.table.note_busy(connections[0])
    crowd.clock.advance(GRACE)
    newest = crowd.connect("10.0.0.1", has_credential=True)
    assert [connection.is_closed for connection in [stranger, *connections, newest]] == [
        *[False, False],
        *[True, False, False],
    ]


def test_connections_without_a_credential_are_closed_first() -> None:
    """A connection with a valid credential is closed later, even if it is older."""
    crowd = Crowd()
    proven = crowd.connect("10.0.0.1", has_credential=True)
    unproven = [crowd.connect("10.0.0.1") for _ in range(2)]
    crowd.clock.advance(GRACE)
    newest = crowd.connect("10.0.0.1")
    assert [connection.is_closed for connection in [proven, *unproven, newest]] == [
        False,
        True,
        False,
        False,
    ]


def test_an_honest_burst_of_a_peer() -> None:
    """A peer may have twice its share for a moment; beyond, its oldest is closed at once."""
    crowd = Crowd(replace(LIMITS, total=100))
    connections = [crowd.connect("10.0.0.1") for _ in range(6)]
    assert not any(connection.is_closed for connection in connections)
    crowd.connect("10.0.0.1")
    assert [connection.is_closed for connection in connections] == [
        True,
        False,
        False,
        False,
        False,
        False,
    ]


def test_a_peer_whose_connections_are_all_busy() -> None:
    """The new connection itself is closed."""
    crowd = Crowd(replace(LIMITS, total=100))
    for _ in range(6):
        crowd.table.note_busy(crowd.connect("10.0.0.1"))
    assert crowd.connect("10.0.0.1").is_closed


def test_a_front_proxy_has_no_share() -> None:
    """A front proxy has no limit of its own, since many users share its address."""
    crowd = Crowd(
        ConnectionLimits.within(
            16, connections=100, per_peer=3, request_seconds=5, proxies=["10.0.0.0/30"]
        )
    )
    connections = [crowd.connect("10.0.0.1", has_credential=True) for _ in range(5)]
    ipv6_mapped = crowd.connect("::ffff:10.0.0.2", has_credential=True)
    assert not any(connection.is_closed for connection in [*connections, ipv6_mapped])
    assert ConnectionLimits().is_proxy("")  # a Unix socket


def test_a_host_has_one_share_of_all_its_addresses() -> None:
    """An IPv6 host has a whole /64; an IPv4 address may be written as IPv6."""
    crowd = Crowd(replace(LIMITS, total=100))
    first, ipv6_mapped = crowd.connect("2001:db8::1"), crowd.connect("::ffff:10.0.0.1")
    crowd.clock.advance(GRACE)
    for number in range(2, 5):
        crowd.connect(f"2001:db8::{number}", has_credential=True)
    assert first.is_closed
    assert not ipv6_mapped.is_closed
    for _ in range(3):
        crowd.connect("10.0.0.1", has_credential=True)
    assert ipv6_mapped.is_closed


def test_without_a_credential_half_may_wait() -> None:
    """Beyond half of all, connections that have waited for `GRACE` seconds are closed."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.0.{number}") for number in range(3)]
    crowd.clock.advance(GRACE)
    connections += [crowd.connect(f"10.0.1.{number}") for number in range(2)]
    assert [connection.is_closed for connection in connections] == [True, True, True, False, False]


def test_long_waiting_connections_are_closed_when_the_table_is_full() -> None:
    """Connections without a credential are closed first."""
    crowd = Crowd()
    proven = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(4)]
    unproven = [crowd.connect(f"10.0.2.{number}") for number in range(3)]
    crowd.clock.advance(GRACE)
    last = crowd.connect("10.0.3.1")
    assert all(connection.is_closed for connection in unproven)
    assert not any(connection.is_closed for connection in [*proven, last])
    assert crowd.port.is_reading()


def test_a_burst_waits_in_the_backlog() -> None:
    """If all connections are busy, the port stops accepting until there is room."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(7)]
    for connection in connections:
        crowd.table.note_busy(connection)
    last = crowd.connect("10.0.2.1", has_credential=True)
    crowd.table.note_busy(last)
    crowd.clock.pump([RETRY_SECONDS] * 5)
    assert not crowd.port.is_reading()
    assert not any(connection.is_closed for connection in [*connections, last])
    crowd.table.remove(last)
    assert crowd.port.is_reading()


def test_a_pause_ends_when_connections_have_waited_too_long() -> None:
    """Idle connections do not keep others out."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(8)]
    assert not crowd.port.is_reading()
    crowd.clock.pump([RETRY_SECONDS] * 3)
    assert crowd.port.is_reading()
    assert all(connection.is_closed for connection in connections)
    for connection in connections:
        crowd.table.remove(connection)
    assert len(crowd.table) == 0


def test_a_port_that_is_closed_is_not_opened_again() -> None:
    """A stop during a pause leaves no timer behind."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(8)]
    crowd.port.disconnecting = True
    crowd.table.remove(connections[0])
    assert not crowd.port.is_reading()
    crowd.table.close()
    assert crowd.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("descriptors", "total", "per_peer"),
    [(65536, 1000, 250), (1024, 768, 192), (160, 80, 20), (20, 10, 2), (1, 1, 1)],
)
def test_limits_follow_from_descriptors(descriptors: int, total: int, per_peer: int) -> None:
    """Some descriptors are reserved for everything else."""
    limits = ConnectionLimits.within(
        descriptors, connections=1000, per_peer=250, request_seconds=30, proxies=[]
    )
    assert (limits.total, limits.per_peer) == (total, per_peer)


# A whole site, in memory.


def _status(wire: Wire) -> int:
    return Reply.parse(wire.transport.value())[0].status


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\nContent-Length: 60000\r\n\r\n",
        b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
)
def test_a_slow_request_times_out(start: bytes) -> None:
    """Bytes that arrive now and then do not extend the limit for a complete request."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    wire.send(start)
    for _ in range(2):
        clock.advance(10)
        wire.send(b"a")
    assert wire.transport.value() == b""
    clock.advance(10)
    reply, _ = Reply.parse(wire.transport.value())
    assert (reply.status, reply.json["code"]) == (408, "too-slow")
    clock.advance(LINGER)
    assert wire.transport.disconnected


def test_a_connection_that_sends_nothing() -> None:
    """A connection without any request times out like a slow request."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    clock.advance(30)
    assert _status(wire) == 408


def test_each_request_has_the_whole_time() -> None:
    """The pause between two requests of a connection counts for neither."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    for _ in range(3):
        assert wire.ask("/api/list/mycluster/").status == 200
        clock.advance(29)
        wire.transport.clear()
        wire.send(b"GET /livez ")
        clock.advance(29)
        wire.send(b"HTTP/1.1\r\n\r\n")
        assert _status(wire) == 200


def test_a_request_that_waits_for_its_answer_is_not_slow() -> None:
    """The time that the gateway needs for its answer does not count."""
    clock = Clock()
    fake = FakeGateway()
    site = site_of(fake, clock)
    fake.gate = Deferred()
    wire = Wire(site)
    wire.send(b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n")
    clock.advance(100)
    assert wire.transport.value() == b""
    fake.gate.callback(None)
    assert _status(wire) == 200


def test_an_answer_that_the_client_does_not_read() -> None:
    """After `Connection: close`, the connection is aborted if its client does not read."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    wire.send(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert wire.transport.disconnecting  # as soon as all is written, which may be never
    clock.advance(IDLE_LIMIT)
    assert wire.transport.disconnected


# Real sockets.


@contextmanager
def half_sent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections, each with half a request."""
    connections = []
    try:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=patient(10))
            connection.sendall(b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentic")
            connections.append(connection)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def ask(port: int) -> Any:
    """Return the answer to a request of an honest client."""
    with socket.create_connection(("127.0.0.1", port), timeout=patient(30)) as connection:
        connection.sendall(
            b"GET /api/list/mycluster/ HTTP/1.1\r\nConnection: close\r\n"
            b"authentication:good:ann\r\n\r\n"
        )
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return Reply.parse(answer)[0]


async def serve(limits: ConnectionLimits, talk: Callable[[int], Any], fake: FakeGateway) -> Any:
    """Run `talk` in a thread against a site with these limits; return its result."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    async with listening(site_of(fake, reactor, limits=limits)) as port:
        return await deferToThread(talk, port)


@pytest.mark.parametrize("per_peer", [10, 1000])
@pytest_twisted.ensureDeferred
async def test_half_sent_requests_keep_no_client_out(per_peer: int) -> None:
    """Honest clients are answered although 100 half-sent requests come from their address."""

    def talk(port: int) -> list[int]:
        with half_sent(port, 100):
            return [ask(port).status for _ in range(20)]

    limits = ConnectionLimits(total=40, per_peer=per_peer)
    assert await serve(limits, talk, FakeGateway()) == [200] * 20


@pytest_twisted.ensureDeferred
async def test_many_honest_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in excess of the limit wait for their turn, and all are answered."""
    monkeypatch.setattr(rules, "GRACE", 60.0)  # a busy machine makes honest clients slow

    def talk(port: int) -> list[int]:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(ask(port).status)) for _ in range(150)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patient(60))
        return statuses

    limits = ConnectionLimits(total=50, per_peer=1000)
    assert await serve(limits, talk, FakeGateway()) == [200] * 150
