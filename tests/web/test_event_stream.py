"""Server-sent events, through the whole HTTP server, in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from shiftergw.errors import BadRequest, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.states import State
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.event_connection import HEARTBEAT_SECONDS, STALL_SECONDS, STREAM_SECONDS
from shiftergw.web.event_stream import BATCH, MOST_OF_USER
from shiftergw.web.feed import BUSY_SHARE, OUTAGE_SECONDS, ROUND_SECONDS, SLICE
from shiftergw.web.site import Site
from tests.web.fakes import READY, FakeAuthenticator, FakeGateway, Wire, hang_up, site_of

PATH = "/api/events/mycluster/"
PULLING = ImageRecord(
    key="a1", system="mycluster", pulltag="ubuntu:24.04", status=State.PULLING, claim="c",
    status_message="Pulling layers", stage="fetch", done=1, total=9, requested_by=1000,
)  # fmt: skip
OF_BOB = replace(PULLING, key="b1", pulltag="closed:1", requested_by=1001, sealed="secret")


@dataclass
class Event:
    """One event: its name, and its data as JSON."""

    name: str
    data: Any


class Client(Wire):
    """A connection that reads events."""

    def __init__(
        self, site: Site, user: str = "ann", path: str = PATH, method: str = "GET"
    ) -> None:
        """Send a request for events."""
        super().__init__(site)
        head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nauthentication:good:{user}\r\n\r\n"
        self.head, _, rest = self.send(head.encode()).partition(b"\r\n\r\n")
        self.unread = rest
        self.transport.clear()

    def text(self) -> str:
        """Return what has arrived since the last call, without the sizes of chunks."""
        data, self.unread = self.unread + self.transport.value(), b""
        self.transport.clear()
        text = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            text += data[: int(size, 16)]
            data = data[int(size, 16) + 2 :]
        return text.decode("ascii")

    def events(self) -> list[Event]:
        """Return the events that have arrived since the last call."""
        return list(self._parse())

    def _parse(self) -> Iterator[Event]:
        for block in self.text().split("\n\n"):
            lines = [line.split(": ", 1) for line in block.splitlines() if line[0] != ":"]
            members = dict(lines)
            if "event" in members:
                yield Event(members["event"], json.loads(members["data"]))

    def pause(self) -> None:
        """Receive nothing, so that the transport pauses the site."""
        assert self.transport.producer is not None
        self.transport.producer.pauseProducing()

    def resume(self) -> None:
        """Receive again."""
        assert self.transport.producer is not None
        self.transport.producer.resumeProducing()


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def site(gateway: FakeGateway, clock: Clock) -> Site:
    """Return a site with one pull of ann, and one of bob with a login."""
    gateway.work.records = [PULLING, OF_BOB]
    return site_of(gateway, clock)


def names(client: Client) -> list[str]:
    """Return the names of the events that have arrived, and the keys of their records."""
    return [f"{event.name} {event.data.get('key', '')}".strip() for event in client.events()]


def test_a_stream_begins_with_all_work_that_its_user_may_see(site: Site) -> None:
    """The state is complete after `current`; pulls with another user's login are not in it."""
    client = Client(site)
    assert b"\r\nContent-Type: text/event-stream\r\n" in client.head
    assert b"Content-Length" not in client.head
    assert b"Cache-Control: no-store" in client.head
    begin, work, current = client.events()
    assert (begin.name, work.name, current.name) == ("begin", "work", "current")
    assert work.data == {
        "key": "a1", "type": "docker", "status": "PULLING", "image": "ubuntu:24.04",
        "status_message": "Pulling 1 of 9 bytes", "stage": "fetch", "activity": "Pulling layers",
        "done": 1, "total": 9,
    }  # fmt: skip
    assert names(Client(site, "bob")) == ["begin", "work a1", "work b1", "current"]


def test_a_client_is_told_how_to_connect_again(site: Site) -> None:
    """The first lines have the time to wait; events have ids."""
    text = Client(site).text()
    assert text.startswith("retry: 2000\nevent: begin\n")
    assert "id: 1\nevent: work\n" in text


def test_changes_arrive_within_a_second(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """Only what has changed is sent; a heartbeat of a worker is no change."""
    client = Client(site)
    client.events()
    gateway.work.records = [replace(PULLING, last_heartbeat=5.0), OF_BOB]
    clock.advance(ROUND_SECONDS)
    assert client.events() == []
    gateway.work.records = [replace(PULLING, done=8), OF_BOB]
    clock.advance(ROUND_SECONDS)
    (event,) = client.events()
    assert (event.name, event.data["done"]) == ("work", 8)


def test_the_end_of_a_pull(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """A pull ends with the id of its image, for those who may read it."""
    ann, bob = Client(site), Client(site, "bob")
    ann.events(), bob.events()
    gateway.work.records = []
    gateway.work.ends = {"a1": replace(READY, private=True, user_acl=(1000,))}
    clock.advance(ROUND_SECONDS)
    (end,) = ann.events()
    assert (end.name, end.data) == (
        "end",
        {"key": "a1", "type": "docker", "status": "READY", "id": READY.id, "image": "ubuntu:24.04"},
    )
    assert names(bob) == ["gone a1", "gone b1"]


def test_a_failure_stays_until_it_is_forgotten(
    site: Site, gateway: FakeGateway, clock: Clock
) -> None:
    """A failure is a row with its cause; a pull that failed by a login is gone for others."""
    ann, bob = Client(site), Client(site, "bob")
    ann.events(), bob.events()
    failure = replace(PULLING, status=State.FAILURE, cause="No such tag.", own_failure=True)
    gateway.work.records = [failure, OF_BOB]
    clock.advance(ROUND_SECONDS)
    (event,) = ann.events()
    assert (event.data["status"], event.data["cause"]) == ("FAILURE", "No such tag.")
    assert names(bob) == ["gone a1"]
    gateway.work.records = [OF_BOB]
    clock.advance(ROUND_SECONDS)
    assert names(ann) == ["gone a1"]
    assert names(bob) == []


def test_the_events_of_one_image(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """A path that names an image leaves out all others; an invalid name is refused."""
    client = Client(site, path=f"{PATH}docker/ubuntu%3A24.04/")
    custom_client = Client(site, path=f"{PATH}custom/ubuntu:24.04")
    assert names(client) == ["begin", "work a1", "current"]
    assert names(custom_client) == ["begin", "current"]
    gateway.work.records = [PULLING, replace(PULLING, key="c1", pulltag="other:1")]
    clock.advance(ROUND_SECONDS)
    assert names(client) == []
    gateway.raises = BadRequest("This is no name.")
    assert Client(site, path=f"{PATH}docker/:/").head.startswith(b"HTTP/1.1 400 ")


def test_one_reader_serves_all_clients(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """The store is read once a second, whatever the number of clients, and not without any."""
    clients = [Client(site) for _ in range(10)]
    gateway.work.reads = 0
    for done in range(5):
        gateway.work.records = [replace(PULLING, done=2 + done)]
        clock.advance(ROUND_SECONDS)
    assert gateway.work.reads == 5
    assert all(names(client).count("work a1") == 6 for client in clients)
    for client in clients:
        hang_up(client)
    clock.advance(100)
    assert gateway.work.reads == 5
    assert names(Client(site)) == ["begin", "work a1", "current"]


def test_the_reactor_has_turns_between_many_clients(
    site: Site, gateway: FakeGateway, clock: Clock
) -> None:
    """Look-ups do not wait until all clients are told; one may hang up meanwhile."""
    clients = [Client(site) for _ in range(SLICE + 3)]
    for client in clients:
        client.events()
    gateway.work.records = [replace(PULLING, done=5), OF_BOB]
    counts: list[int] = []

    def look_at_clients() -> None:
        counts.extend(len(client.events()) for client in clients)
        hang_up(clients[-1])

    clock.callLater(ROUND_SECONDS, look_at_clients)  # right after the first slice
    clock.advance(ROUND_SECONDS)
    assert counts == [1] * SLICE + [0] * 3
    assert [len(client.events()) for client in clients] == [0] * SLICE + [1, 1, 0]


def test_a_slow_client_gets_the_newest_state(
    site: Site, gateway: FakeGateway, clock: Clock
) -> None:
    """A client that has not received for a while gets only the newest state of each pull."""
    client = Client(site)
    client.events()
    client.pause()
    for done in range(2, 9):
        gateway.work.records = [replace(PULLING, done=done), OF_BOB]
        clock.advance(ROUND_SECONDS)
    assert client.text() == ""
    client.resume()
    (event,) = client.events()
    assert event.data["done"] == 8


def test_a_slow_client_gets_the_end(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """A pull that begins and ends meanwhile is not mentioned; one that was seen ends."""
    client = Client(site)
    client.events()
    client.pause()
    gateway.work.records = [PULLING, replace(PULLING, key="c1")]
    clock.advance(ROUND_SECONDS)
    gateway.work.records = []
    gateway.work.ends = {"a1": READY}
    clock.advance(ROUND_SECONDS)
    client.resume()
    assert names(client) == ["end a1"]


def test_a_client_that_receives_nothing_is_disconnected(site: Site, clock: Clock) -> None:
    """A connection that stands still for a minute is closed, and its room is free."""
    client = Client(site)
    client.pause()
    clock.pump([HEARTBEAT_SECONDS] * round(STALL_SECONDS / HEARTBEAT_SECONDS))
    assert client.transport.disconnected


def test_a_silent_stream_shows_that_it_lives(site: Site, clock: Clock) -> None:
    """Every 15 seconds without an event a comment is sent."""
    client = Client(site)
    client.events()
    clock.pump([1.0] * round(HEARTBEAT_SECONDS))
    assert client.text() == ": alive\n\n"
    clock.pump([1.0] * round(HEARTBEAT_SECONDS))
    assert client.text() == ": alive\n\n"


def test_a_stream_ends_with_its_credential(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """After five minutes the answer is complete, and the connection takes the next request."""
    client = Client(site)
    client.events()
    clock.pump([10.0] * round(STREAM_SECONDS / 10))
    assert client.transport.value().endswith(b"0\r\n\r\n")
    client.transport.clear()
    assert client.ask("/livez").status == 200
    gateway.work.reads = 0
    clock.advance(10)
    assert gateway.work.reads == 0


def test_large_states_are_sent_in_batches(site: Site, gateway: FakeGateway, clock: Clock) -> None:
    """No turn of the reactor sends everything; `current` comes after the last record."""
    number = 2 * BATCH + 1
    gateway.work.records = [replace(PULLING, key=f"{n:04}") for n in range(number)]
    client = Client(site)
    event_names = names(client)
    assert (len(event_names), event_names[-1]) == (number + 2, "current")
    late = Client(site)
    assert len(names(late)) == number + 2


def test_users_have_a_limit(site: Site) -> None:
    """One stream too many of a user is refused; those of others are not, nor the next one later."""
    clients = [Client(site) for _ in range(MOST_OF_USER)]
    assert Client(site).head.startswith(b"HTTP/1.1 429 ")
    assert Client(site, "bob").head.startswith(b"HTTP/1.1 200 ")
    hang_up(clients[0])
    assert Client(site).head.startswith(b"HTTP/1.1 200 ")


def test_all_streams_leave_connections_for_others(gateway: FakeGateway, clock: Clock) -> None:
    """Streams may have half of the connections."""
    site = site_of(gateway, clock, limits=ConnectionLimits(total=4))
    streams = [Client(site), Client(site, "bob")]
    assert Client(site, "bob").head.startswith(b"HTTP/1.1 503 ")
    hang_up(streams[1])
    assert Client(site, "bob").head.startswith(b"HTTP/1.1 200 ")


def test_head_opens_no_stream(site: Site, gateway: FakeGateway) -> None:
    """HEAD gets the headers; nothing is read, and nothing stays open."""
    for _ in range(MOST_OF_USER + 1):
        client = Client(site, method="HEAD")
        assert b"Content-Type: text/event-stream" in client.head
        assert client.transport.value() == b""
    assert gateway.work.reads == 0


def test_a_credential_is_needed(site: Site) -> None:
    """A caller without a valid credential is refused as on other routes."""
    wire = Wire(site)
    assert wire.ask(PATH, headers=("authentication:bad",)).status == 401
    assert wire.ask(PATH, method="POST").status == 405


def test_an_outage_of_the_store_ends_no_stream(
    site: Site, gateway: FakeGateway, clock: Clock, events: list[LogEvent]
) -> None:
    """Events go on when the store is back; the log says it once, and a fault ends nothing."""
    client = Client(site)
    client.events()
    gateway.work.raises = Unavailable("The store is away.")
    clock.advance(ROUND_SECONDS)
    clock.pump([OUTAGE_SECONDS] * 2)
    warnings = [event for event in events if "error" in event]
    assert len(warnings) == 1
    gateway.work.raises = ValueError("a fault")
    clock.advance(OUTAGE_SECONDS)
    gateway.work.raises = None
    gateway.work.records = [replace(PULLING, done=3)]
    clock.advance(OUTAGE_SECONDS)
    assert "work a1" in names(client)


def test_a_slow_store_is_read_less_often(
    site: Site, gateway: FakeGateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes a tenth of the time at most."""
    client = Client(site)
    client.events()
    times = iter([10.0, 12.0])
    monkeypatch.setattr(clock, "seconds", lambda: next(times, 12.0))
    clock.rightNow = 12.0
    clock.advance(0)
    gateway.work.reads = 0
    clock.rightNow += 2 * BUSY_SHARE - 1
    clock.advance(0)
    assert gateway.work.reads == 0


def test_a_client_may_hang_up_at_any_time(
    site: Site, gateway: FakeGateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may do so before the first read ends, while paused, and before the answer."""
    gateway.work.gate = Deferred()
    hang_up(Client(site))
    gateway.work.gate = None
    client = Client(site)
    client.pause()
    client.pause()
    assert client.transport.producer is not None
    client.transport.producer.stopProducing()
    hang_up(client)
    user: Deferred[None] = Deferred()
    authenticate = FakeAuthenticator.authenticate

    async def authenticate_late(*arguments: Any) -> Session:
        with suppress(CancelledError):
            await user
        return await authenticate(*arguments)

    monkeypatch.setattr(FakeAuthenticator, "authenticate", authenticate_late)
    hang_up(Client(site))
    monkeypatch.undo()
    clock.advance(10)
    gateway.work.reads = 0
    clients = [Client(site) for _ in range(MOST_OF_USER)]  # nothing is left of the others
    assert names(clients[-1]) == ["begin", "work a1", "current"]


def test_the_end_of_the_site_ends_all_streams(site: Site) -> None:
    """At a stop the answers are complete."""
    client = Client(site)
    client.events()
    site.stopFactory()
    assert client.transport.value().endswith(b"0\r\n\r\n")
