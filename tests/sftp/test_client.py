"""The SFTP client against servers that break the protocol, and OpenSSH's own."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Buffer, Channel
from shiftergw.sftp import packets
from shiftergw.sftp.client import Sftp
from shiftergw.sftp.outgoing_file import OutgoingFile
from shiftergw.sftp.packets import SftpRefused, Splitter, string
from shiftergw.sftp.session import IN_FLIGHT
from tests.delivery.far import NOBODY, connection, reactor, without_ssh

IDLE_SECONDS = 30.0
VERSION = struct.pack(">LBL", 5, packets.VERSION, 3)


class Wire:
    """A channel whose other end is the test."""

    def __init__(self) -> None:
        """Be open."""
        self.closed: Deferred[int | None] = Deferred()
        self.stderr = ""
        self.sent = bytearray()
        self.lost = False
        self.ended = False
        self.producer: Any = None
        self.says: Callable[[bytes], None] = lambda _: None

    def write(self, data: Buffer) -> None:
        """Keep what is sent."""
        self.sent += data

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Keep what is sent."""
        self.sent += b"".join(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Keep the producer."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.producer = None

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Tell the client what `says` is told."""
        self.says = data

    def end_input(self) -> None:
        """Remember it."""
        self.ended = True

    def lose(self) -> None:
        """Close at once."""
        if not self.lost:
            self.lost = True
            if not self.closed.called:
                self.closed.callback(None)


def packet(kind: int, body: bytes) -> bytes:
    """Return a packet with its number in the body."""
    return struct.pack(">LB", 1 + len(body), kind) + body


def answer(kind: int, number: int, body: bytes) -> bytes:
    """Return an answer."""
    return packets.request(kind, number, body)


def begun(extensions: bytes = b"") -> tuple[Wire, Clock, Sftp]:
    """Return a session that has been greeted; its first request has the number 1."""
    wire, clock = Wire(), Clock()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, clock, IDLE_SECONDS))
    wire.says(packet(packets.VERSION, struct.pack(">L", 3) + extensions))
    wire.sent.clear()
    session: list[Sftp] = []
    beginning.addCallback(session.append)
    return wire, clock, session[0]


def error_of(waiting: Deferred[Any]) -> BaseException:
    """Return what a Deferred failed with."""
    failures: list[Failure] = []
    waiting.addErrback(failures.append)
    (failure,) = failures
    assert failure.value is not None
    return failure.value


@pytest.mark.parametrize(
    "said",
    [
        b"Welcome to the cluster!\n",
        packet(packets.STATUS, struct.pack(">LL", 0, 4)),
        struct.pack(">LBL", 5, packets.VERSION, 2),
        struct.pack(">L", 1 << 31),
        struct.pack(">L", 0),
        packet(packets.VERSION, struct.pack(">LL", 3, 99)),
    ],
)
def test_no_sftp(said: bytes) -> None:
    """What does not greet as an SFTP server does is none, and is told so."""
    wire = Wire()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, Clock(), IDLE_SECONDS))
    wire.says(said)
    error = error_of(beginning)
    assert isinstance(error, DeliveryFailed)
    assert "is not SFTP" in error.what
    assert wire.lost


def test_silence_at_the_beginning() -> None:
    """A server that says nothing at all is given up."""
    wire, clock = Wire(), Clock()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, clock, IDLE_SECONDS))
    clock.advance(IDLE_SECONDS)
    assert "stopped answering" in str(error_of(beginning))
    assert clock.getDelayedCalls() == []


def test_end_at_the_beginning() -> None:
    """A server that ends at once is no SFTP server; what it said is for admins."""
    wire = Wire()
    wire.stderr = "This account is not available."
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, Clock(), IDLE_SECONDS))
    wire.lost = True
    wire.closed.callback(1)
    error = error_of(beginning)
    assert isinstance(error, DeliveryFailed)
    assert "not available" in error.detail


@pytest.mark.parametrize(
    "said",
    [
        answer(packets.STATUS, 7, struct.pack(">L", 0)),
        struct.pack(">L", packets.LONGEST_PACKET + 1),
        struct.pack(">LB", 1, packets.STATUS),
        b"\xff" * 100,
    ],
)
def test_broken_protocol(said: bytes) -> None:
    """Nonsense ends the session: what waits fails, and what comes after does too."""
    wire, clock, session = begun()
    waiting = Deferred.fromCoroutine(session.read(b"h", 0, 10))
    wire.says(said)
    assert isinstance(error_of(waiting), DeliveryFailed)
    assert wire.lost
    assert isinstance(error_of(Deferred.fromCoroutine(session.lstat(b"/"))), DeliveryFailed)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("data", [string(b""), string(b"x" * 11), struct.pack(">L", 1 << 20), b""])
def test_data_of_another_length(data: bytes) -> None:
    """A server that sends no bytes, or more than were asked for, does not keep the protocol."""
    wire, _, session = begun()
    waiting = Deferred.fromCoroutine(session.read(b"h", 0, 10))
    wire.says(answer(packets.DATA, 1, data))
    assert isinstance(error_of(waiting), DeliveryFailed)
    session.close()


def test_endless_handle() -> None:
    """A handle is no longer than the protocol allows: it is repeated in every WRITE."""
    wire, _, session = begun()
    opening = Deferred.fromCoroutine(session.open(b"/f", packets.FOR_READING))
    wire.says(answer(packets.HANDLE, 1, string(b"h" * 257)))
    assert isinstance(error_of(opening), DeliveryFailed)
    session.close()


@given(pieces=st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever a server says, every wait ends and nothing else than our errors comes of it."""
    wire, clock, session = begun()
    waits: list[Deferred[Any]] = [
        Deferred.fromCoroutine(session.lstat(b"/f")),
        Deferred.fromCoroutine(session.list(b"/", lambda _: True)),
        Deferred.fromCoroutine(session.open(b"/f", packets.FOR_READING)),
        Deferred.fromCoroutine(session.remove(b"/f")),
    ]
    ends: list[Any] = []
    for wait in waits:
        wait.addBoth(ends.append)
    for piece in pieces:
        wire.says(piece)
    clock.advance(IDLE_SECONDS)
    session.close()
    assert len(ends) == len(waits)
    for end in ends:
        assert not isinstance(end, Failure) or end.check(DeliveryFailed, SftpRefused)
    assert clock.getDelayedCalls() == []


@given(st.data())
def test_packets_in_pieces(data: st.DataObject) -> None:
    """However a stream is cut, the same packets come out of it."""
    bodies = data.draw(st.lists(st.binary(min_size=4, max_size=50), max_size=5))
    stream = b"".join(packet(7, body) for body in bodies)
    splitter = Splitter()
    found = []
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        found += [(kind, body.number()) for kind, body in splitter.feed(stream[:length])]
        stream = stream[length:]
    assert found == [(7, int.from_bytes(body[:4], "big")) for body in bodies]


def test_late_answer_to_a_cancelled_request() -> None:
    """An answer that nobody waits for any more is no nonsense."""
    wire, _, session = begun()
    waiting = Deferred.fromCoroutine(session.lstat(b"/f"))
    waiting.cancel()
    assert isinstance(error_of(waiting), CancelledError)
    wire.says(answer(packets.STATUS, 1, struct.pack(">L", packets.NO_SUCH_FILE)))
    assert session.usable
    session.close()


async def blocks(count: int, length: int = 1 << 20) -> AsyncIterator[bytes]:
    """Yield so many blocks."""
    for _ in range(count):
        yield bytes(length)


def outgoing(count: int, report: Callable[[int], None] = lambda _: None) -> OutgoingFile:
    """Return so many blocks on their way."""
    return OutgoingFile(blocks(count), 0, report)


def written(sent: bytes) -> tuple[list[int], int]:
    """Return the numbers of the WRITEs that were sent, and their bytes."""
    numbers, total = [], 0
    for kind, body in Splitter().feed(sent):
        assert kind == packets.WRITE
        numbers.append(body.number())
        assert body.string() == b"h"
        body.long()
        total += len(body.string())
    return numbers, total


def test_bytes_in_flight() -> None:
    """No more is sent than the limit until answers come, in whatever order, and then all is."""
    wire, clock, session = begun()
    reports: list[int] = []
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(20, reports.append)))
    total = 0
    while not writing.called:
        numbers, length = written(bytes(wire.sent))
        wire.sent.clear()
        assert 0 < length <= IN_FLIGHT + 32768
        total += length
        for number in reversed(numbers):
            wire.says(answer(packets.STATUS, number, struct.pack(">L", 0)))
    assert total == reports[-1] == 20 << 20
    assert reports == sorted(reports)
    assert clock.getDelayedCalls() == []


def test_channel_that_is_full() -> None:
    """Nothing is sent while the channel takes no more."""
    wire, _, session = begun()
    wire.producer.pauseProducing()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(1)))
    assert wire.sent == b""
    wire.producer.resumeProducing()
    numbers, length = written(bytes(wire.sent))
    assert length == 1 << 20
    for number in numbers:
        wire.says(answer(packets.STATUS, number, struct.pack(">L", 0)))
    assert writing.called


def test_refused_write() -> None:
    """The first WRITE that is refused ends the writing; the session goes on."""
    wire, _, session = begun()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(100)))
    numbers, _ = written(bytes(wire.sent))
    wire.says(answer(packets.STATUS, numbers[0], struct.pack(">L", 4) + string(b"full\n")))
    error = error_of(writing)
    assert isinstance(error, SftpRefused)
    assert str(error) == "WRITE: status 4: full\\x0a"
    assert session.usable
    session.close()


@pytest.mark.parametrize("end", ["silence", "close", "failure"])
def test_connection_that_ends_while_writing(end: str) -> None:
    """A writer that waits is told that the connection is gone."""
    wire, clock, session = begun()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(100)))
    if end == "silence":
        clock.advance(IDLE_SECONDS)
    else:
        wire.lost = True
        if end == "close":
            wire.closed.callback(None)
        else:
            wire.closed.errback(DeliveryFailed("The cable was cut."))
    error = error_of(writing)
    assert isinstance(error, DeliveryFailed)
    assert ("cable" in str(error)) == (end == "failure")
    assert clock.getDelayedCalls() == []


def test_round_trip() -> None:
    """The time to the answer that came soonest is known; what was cancelled has none."""
    wire, clock, session = begun()
    for number, seconds in enumerate((3.0, 1.0, 2.0), 1):
        reading = Deferred.fromCoroutine(session.read(b"h", 0, 1))
        clock.advance(seconds)
        wire.says(answer(packets.DATA, number, string(b"x")))
        assert reading.called
    cancelled = Deferred.fromCoroutine(session.read(b"h", 0, 1))
    cancelled.cancel()
    assert isinstance(error_of(cancelled), CancelledError)
    assert session.round_trip == 1.0
    session.close()


@pytest.mark.parametrize("late", [True, False])
def test_end_in_order(late: bool) -> None:
    """A session ends when its server does, or when that takes too long."""
    wire, clock, session = begun()
    ending = Deferred.fromCoroutine(session.end())
    assert (wire.ended, wire.lost, ending.called) == (True, False, False)
    if late:
        clock.advance(IDLE_SECONDS)
    else:
        wire.closed.callback(0)
    assert ending.called
    assert wire.lost
    assert not session.usable
    assert clock.getDelayedCalls() == []


def test_patience() -> None:
    """A sync may take longer than other requests, and no longer than that."""
    extensions = string(packets.FSYNC) + string(b"1")
    _, clock, session = begun(extensions)
    syncing = Deferred.fromCoroutine(session.sync(b"h", 3 * IDLE_SECONDS))
    clock.advance(2 * IDLE_SECONDS)
    assert not syncing.called
    clock.advance(IDLE_SECONDS)
    assert isinstance(error_of(syncing), DeliveryFailed)


STATUS = packets.STATUS
RENAMES: dict[str, list[tuple[int, int | None]]] = {
    # Requests, and the status of the answer; None: attributes.
    "nothing there": [(packets.RENAME, packets.OK)],
    "another file there": [
        (packets.RENAME, packets.FAILURE),
        (packets.LSTAT, None),
        (packets.LSTAT, None),
        (packets.REMOVE, packets.OK),
        (packets.RENAME, packets.OK),
    ],
}


@pytest.mark.parametrize("steps", RENAMES.values(), ids=RENAMES)
def test_rename_of_old_servers(steps: list[tuple[int, int | None]]) -> None:
    """Without OpenSSH's rename another file is removed once it is in the way, and not before."""
    wire, _, session = begun()
    renaming = Deferred.fromCoroutine(session.rename(b"/a", b"/b"))
    for number, (request, status) in enumerate(steps, 1):
        ((kind, _),) = Splitter().feed(bytes(wire.sent))
        assert kind == request
        wire.sent.clear()
        if status is None:
            wire.says(answer(packets.ATTRS, number, struct.pack(">L", 0)))
        else:
            wire.says(answer(STATUS, number, struct.pack(">L", status)))
    assert renaming.called
    assert wire.sent == b""
    session.close()


@pytest.mark.parametrize("status", [packets.PERMISSION_DENIED, packets.UNSUPPORTED])
def test_no_rename_at_all(status: int) -> None:
    """Nothing is removed where the server refuses every rename."""
    wire, _, session = begun(string(packets.POSIX_RENAME) + string(b"1"))
    renaming = Deferred.fromCoroutine(session.rename(b"/a", b"/b"))
    for number in (1, 2):
        wire.says(answer(STATUS, number, struct.pack(">L", status)))
    error = error_of(renaming)
    assert isinstance(error, SftpRefused)
    assert (error.request, error.status) == ("RENAME", status)
    kinds = [kind for kind, _ in Splitter().feed(bytes(wire.sent))]
    assert kinds == [packets.EXTENDED, packets.RENAME]
    session.close()


def test_listing_without_eof() -> None:
    """A listing ends with an empty answer, too: some servers send no EOF."""
    wire, _, session = begun()
    listing = Deferred.fromCoroutine(session.list(b"/a", lambda _: True))
    wire.says(answer(packets.HANDLE, 1, string(b"h")))
    entry = string(b"name") + string(b"long") + struct.pack(">L", 0)
    wire.says(answer(packets.NAME, 2, struct.pack(">L", 1) + entry))
    wire.says(answer(packets.NAME, 3, struct.pack(">L", 0)))
    kinds = [kind for kind, _ in Splitter().feed(bytes(wire.sent))]
    assert kinds == [packets.OPENDIR, packets.READDIR, packets.READDIR, packets.CLOSE]
    wire.says(answer(STATUS, 4, struct.pack(">L", packets.OK)))
    results: list[object] = []
    listing.addCallback(results.append)
    assert results == [[(b"name", packets.Attributes())]]
    session.close()


@asynccontextmanager
async def real_session(directory: Path) -> AsyncIterator[Sftp]:
    """Give a session with OpenSSH's server."""
    over = connection(NOBODY, without_ssh(directory))
    channel: Channel = await over.open_subsystem("sftp")
    try:
        yield await Sftp.begin(channel, reactor, IDLE_SECONDS)
    finally:
        await over.close()


@pytest_twisted.ensureDeferred
async def test_reads_through(tmp_path: Path) -> None:
    """A file is read back in order, whatever its length."""
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    async with real_session(tmp_path / "bin") as session:
        handle = await session.open(bytes(tmp_path / "file"), packets.FOR_READING)
        found = bytearray()
        await session.read_through(handle, len(content), found.extend)
        assert found == content
        assert await session.read(handle, len(content) - 5, 10) == content[-5:]
        await session.close_handle(handle)


@pytest_twisted.ensureDeferred
async def test_long_directory(tmp_path: Path) -> None:
    """A directory of many packets is listed whole, as far as its names are wanted."""
    place = tmp_path / "many"
    place.mkdir()
    for n in range(3000):
        (place / f"{n}-{'x' * 100}").touch()
    async with real_session(tmp_path / "bin") as session:
        found = await session.list(bytes(place), lambda name: name.startswith(b"1"))
    assert {name for name, _ in found} == {
        path.name.encode() for path in place.iterdir() if path.name.startswith("1")
    }
    with suppress(DeliveryFailed):
        await session.lstat(b"/")
    assert not session.usable
