"""Who makes way when there are many connections, and what slow requests and readers get."""

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
from shiftergw.web.connections import GRACE, LOOK_AGAIN, ConnectionLimits, ConnectionTable
from tests.patience import patient
from tests.web.fakes import FakeGateway, Reply, Wire, listening, site_of

LIMITS = ConnectionLimits(total=8, per_peer=3, request_seconds=5)


@dataclass(eq=False)
class FakeConnection:
    """Remembers whether it made way."""

    connections: ConnectionTable
    has_credential: bool = False
    is_closed: bool = False

    def make_way(self) -> None:
        """Note it."""
        self.is_closed = True


class FakePort:
    """A listening port that can pause."""

    connected = True
    disconnecting = False
    numberAccepts = 100  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        """Read."""
        self.reads = True

    def is_reading(self) -> bool:
        """Return whether it accepts connections."""
        return self.reads

    def stopReading(self) -> None:
        """Pause."""
        self.reads = False

    def startReading(self) -> None:
        """Go on."""
        self.reads = True


class Crowd:
    """Connections, and a clock."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        """Begin without any."""
        self.clock = Clock()
        self.port = FakePort()
        self.all = ConnectionTable(limits, self.clock)

    def connect(self, peer: str, *, has_credential: bool = False) -> FakeConnection:
        """Add one that waits for a request."""
        connection = FakeConnection(self.all, has_credential)
        self.all.add(connection, peer, self.port)
        return connection


def test_a_peer_has_a_share() -> None:
    """Beyond it the oldest of the peer that waits makes way, and nobody else."""
    crowd = Crowd()
    other = crowd.connect("10.0.0.9", has_credential=True)
    connections = [crowd.connect("10.0.0.1", has_credential=True) for _ in range(3)]
    crowd.all.work(connections[0])
    crowd.clock.advance(GRACE)
    newest = crowd.connect("10.0.0.1", has_credential=True)
    assert [one.is_closed for one in [other, *connections, newest]] == [
        *[False, False],
        *[True, False, False],
    ]


def test_a_valid_credential_is_kept_longer() -> None:
    """Of a peer those make way first that have shown no credential."""
    crowd = Crowd()
    proven = crowd.connect("10.0.0.1", has_credential=True)
    unproven = [crowd.connect("10.0.0.1") for _ in range(2)]
    crowd.clock.advance(GRACE)
    newest = crowd.connect("10.0.0.1")
    assert [one.is_closed for one in [proven, *unproven, newest]] == [False, True, False, False]


def test_an_honest_burst_of_a_peer() -> None:
    """It may have twice its share for a moment; then the oldest that waits makes way at once."""
    crowd = Crowd(replace(LIMITS, total=100))
    connections = [crowd.connect("10.0.0.1") for _ in range(6)]
    assert not any(one.is_closed for one in connections)
    crowd.connect("10.0.0.1")
    assert [one.is_closed for one in connections] == [True, False, False, False, False, False]


def test_a_peer_whose_requests_all_work() -> None:
    """Then the new connection itself makes way."""
    crowd = Crowd(replace(LIMITS, total=100))
    for _ in range(6):
        crowd.all.work(crowd.connect("10.0.0.1"))
    assert crowd.connect("10.0.0.1").is_closed


def test_a_front_proxy_has_no_share() -> None:
    """Many users are behind one address there."""
    crowd = Crowd(
        ConnectionLimits.within(
            16, connections=100, per_peer=3, request_seconds=5, proxies=["10.0.0.0/30"]
        )
    )
    connections = [crowd.connect("10.0.0.1", has_credential=True) for _ in range(5)]
    mapped = crowd.connect("::ffff:10.0.0.2", has_credential=True)
    assert not any(one.is_closed for one in [*connections, mapped])
    assert ConnectionLimits().is_proxy("")  # a Unix socket


def test_a_host_has_one_share_of_all_its_addresses() -> None:
    """A /64 of IPv6 is one host's; an IPv4 address may be written as IPv6."""
    crowd = Crowd(replace(LIMITS, total=100))
    first, mapped = crowd.connect("2001:db8::1"), crowd.connect("::ffff:10.0.0.1")
    crowd.clock.advance(GRACE)
    for number in range(2, 5):
        crowd.connect(f"2001:db8::{number}", has_credential=True)
    assert first.is_closed
    assert not mapped.is_closed
    for _ in range(3):
        crowd.connect("10.0.0.1", has_credential=True)
    assert mapped.is_closed


def test_without_a_credential_half_may_wait() -> None:
    """Of all peers together: those that have done so for long make way for the new one."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.0.{number}") for number in range(3)]
    crowd.clock.advance(GRACE)
    connections += [crowd.connect(f"10.0.1.{number}") for number in range(2)]
    assert [one.is_closed for one in connections] == [True, True, True, False, False]


def test_what_has_waited_for_long_makes_way_where_all_is_full() -> None:
    """Those without a credential first."""
    crowd = Crowd()
    proven = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(4)]
    unproven = [crowd.connect(f"10.0.2.{number}") for number in range(3)]
    crowd.clock.advance(GRACE)
    last = crowd.connect("10.0.3.1")
    assert all(one.is_closed for one in unproven)
    assert not any(one.is_closed for one in [*proven, last])
    assert crowd.port.is_reading()


def test_a_burst_waits_in_the_backlog() -> None:
    """Where all work, nobody is refused: the port pauses until there is room."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(7)]
    for connection in connections:
        crowd.all.work(connection)
    last = crowd.connect("10.0.2.1", has_credential=True)
    crowd.all.work(last)
    crowd.clock.pump([LOOK_AGAIN] * 5)
    assert not crowd.port.is_reading()
    assert not any(one.is_closed for one in [*connections, last])
    crowd.all.remove(last)
    assert crowd.port.is_reading()


def test_a_pause_ends_when_somebody_has_waited_for_long() -> None:
    """Idle connections do not keep others out."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(8)]
    assert not crowd.port.is_reading()
    crowd.clock.pump([LOOK_AGAIN] * 3)
    assert crowd.port.is_reading()
    assert all(one.is_closed for one in connections)
    for connection in connections:
        crowd.all.remove(connection)
    assert len(crowd.all) == 0


def test_a_port_that_is_closed_is_not_opened_again() -> None:
    """A stop during a pause leaves nothing behind."""
    crowd = Crowd()
    connections = [crowd.connect(f"10.0.1.{number}", has_credential=True) for number in range(8)]
    crowd.port.disconnecting = True
    crowd.all.remove(connections[0])
    assert not crowd.port.is_reading()
    crowd.all.close()
    assert crowd.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("descriptors", "most", "per_peer"),
    [(65536, 1000, 250), (1024, 768, 192), (160, 80, 20), (20, 10, 2), (1, 1, 1)],
)
def test_limits_follow_from_descriptors(descriptors: int, most: int, per_peer: int) -> None:
    """Descriptors stay in reserve for everything else."""
    limits = ConnectionLimits.within(
        descriptors, connections=1000, per_peer=250, request_seconds=30, proxies=[]
    )
    assert (limits.total, limits.per_peer) == (most, per_peer)


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
def test_a_byte_now_and_then_does_not_keep_a_connection(start: bytes) -> None:
    """A head, a body and a chunk have a limit of time in all."""
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
    """It has as long as a request has."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    clock.advance(30)
    assert _status(wire) == 408


def test_each_request_has_the_whole_time() -> None:
    """A pause between two requests of a connection counts to none."""
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
    """What the gateway takes is not the client's."""
    clock = Clock()
    fake = FakeGateway()
    site = site_of(fake, clock)
    fake.held = Deferred()
    wire = Wire(site)
    wire.send(b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n")
    clock.advance(100)
    assert wire.transport.value() == b""
    fake.held.callback(None)
    assert _status(wire) == 200


def test_an_answer_that_is_not_taken() -> None:
    """A client that asks to close and does not read is cut off."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    wire.send(b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert wire.transport.disconnecting  # as soon as all is written, which may be never
    clock.advance(IDLE_LIMIT)
    assert wire.transport.disconnected


# Real sockets.


@contextmanager
def half_sent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections with half a request each, one after the other."""
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
        received = b""
        while data := connection.recv(65536):
            received += data
    return Reply.parse(received)[0]


async def serve(limits: ConnectionLimits, talk: Callable[[int], Any], fake: FakeGateway) -> Any:
    """Return what `talk` returns in a thread, against a site with these limits."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    async with listening(site_of(fake, reactor, limits=limits)) as port:
        return await deferToThread(talk, port)


@pytest.mark.parametrize("per_peer", [10, 1000])
@pytest_twisted.ensureDeferred
async def test_half_sent_requests_shut_nobody_out(per_peer: int) -> None:
    """100 of them, from the address of the honest clients: these are answered all the same."""

    def talk(port: int) -> list[int]:
        with half_sent(port, 100):
            return [ask(port).status for _ in range(20)]

    limits = ConnectionLimits(total=40, per_peer=per_peer)
    assert await serve(limits, talk, FakeGateway()) == [200] * 20


@pytest_twisted.ensureDeferred
async def test_many_honest_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than connections are allowed: all wait their turn, and are answered."""
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
