"""The SFTP client with servers that violate the protocol, and with OpenSSH's server."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
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
from shiftergw.plumbing.channel import Channel
from shiftergw.sftp import packets
from shiftergw.sftp.client import Sftp
from shiftergw.sftp.packets import SftpRefused, Splitter, string
from tests.delivery.far import UNUSED_ACCOUNT, connection, without_ssh
from tests.installed_reactor import reactor
from tests.sftp.recorded_wire import IDLE_SECONDS, Wire, answer, error_of, packet, start_session


@pytest.mark.parametrize(
    "output",
    [
        b"Welcome to the cluster!\n",
        packet(packets.STATUS, struct.pack(">LL", 0, 4)),
        struct.pack(">LBL", 5, packets.VERSION, 2),
        struct.pack(">L", 1 << 31),
        struct.pack(">L", 0),
        packet(packets.VERSION, struct.pack(">LL", 3, 99)),
    ],
)
def test_no_sftp(output: bytes) -> None:
    """A wrong greeting raises an error that names SFTP."""
    wire = Wire()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, Clock(), IDLE_SECONDS))
    wire.says(output)
    error = error_of(beginning)
    assert isinstance(error, DeliveryFailed)
    assert "is not SFTP" in error.what
    assert wire.is_lost


def test_silence_at_the_beginning() -> None:
    """A server without a greeting fails after the idle limit."""
    wire, clock = Wire(), Clock()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, clock, IDLE_SECONDS))
    clock.advance(IDLE_SECONDS)
    assert "stopped answering" in str(error_of(beginning))
    assert clock.getDelayedCalls() == []


def test_end_at_the_beginning() -> None:
    """A server that exits at once raises an error with its standard error."""
    wire = Wire()
    wire.stderr = "This account is not available."
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, Clock(), IDLE_SECONDS))
    wire.is_lost = True
    wire.closed.callback(1)
    error = error_of(beginning)
    assert isinstance(error, DeliveryFailed)
    assert "not available" in error.detail


@pytest.mark.parametrize(
    "output",
    [
        answer(packets.STATUS, 7, struct.pack(">L", 0)),
        struct.pack(">L", packets.LONGEST_PACKET + 1),
        struct.pack(">LB", 1, packets.STATUS),
        b"\xff" * 100,
    ],
)
def test_broken_protocol(output: bytes) -> None:
    """Invalid data ends the session: open and later requests fail."""
    wire, clock, session = start_session()
    waiting = Deferred.fromCoroutine(session.read(b"h", 0, 10))
    wire.says(output)
    assert isinstance(error_of(waiting), DeliveryFailed)
    assert wire.is_lost
    assert isinstance(error_of(Deferred.fromCoroutine(session.lstat(b"/"))), DeliveryFailed)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("data", [string(b""), string(b"x" * 11), struct.pack(">L", 1 << 20), b""])
def test_data_of_another_length(data: bytes) -> None:
    """A server that sends no bytes, or too many, violates the protocol."""
    wire, _, session = start_session()
    waiting = Deferred.fromCoroutine(session.read(b"h", 0, 10))
    wire.says(answer(packets.DATA, 1, data))
    assert isinstance(error_of(waiting), DeliveryFailed)
    session.close()


def test_endless_handle() -> None:
    """A handle longer than the protocol allows is refused; each WRITE would repeat it."""
    wire, _, session = start_session()
    opening = Deferred.fromCoroutine(session.open(b"/f", packets.FOR_READING))
    wire.says(answer(packets.HANDLE, 1, string(b"h" * 257)))
    assert isinstance(error_of(opening), DeliveryFailed)
    session.close()


@given(pieces=st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes(pieces: list[bytes]) -> None:
    """With any data from a server, every request ends, at worst with our own errors."""
    wire, clock, session = start_session()
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
    """Packets are parsed, however the stream is split."""
    bodies = data.draw(st.lists(st.binary(min_size=4, max_size=50), max_size=5))
    stream = b"".join(packet(7, body) for body in bodies)
    splitter = Splitter()
    results = []
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        results += [(kind, body.number()) for kind, body in splitter.feed(stream[:length])]
        stream = stream[length:]
    assert results == [(7, int.from_bytes(body[:4], "big")) for body in bodies]


def test_late_answer_to_a_cancelled_request() -> None:
    """The reply to a cancelled request is ignored."""
    wire, _, session = start_session()
    waiting = Deferred.fromCoroutine(session.lstat(b"/f"))
    waiting.cancel()
    assert isinstance(error_of(waiting), CancelledError)
    wire.says(answer(packets.STATUS, 1, struct.pack(">L", packets.NO_SUCH_FILE)))
    assert session.usable
    session.close()


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
    """Without OpenSSH's rename, the target is removed only after a refused rename."""
    wire, _, session = start_session()
    renaming = Deferred.fromCoroutine(session.rename(b"/a", b"/b"))
    for number, (request, status) in enumerate(steps, 1):
        ((kind, _),) = Splitter().feed(bytes(wire.client_bytes))
        assert kind == request
        wire.client_bytes.clear()
        if status is None:
            wire.says(answer(packets.ATTRS, number, struct.pack(">L", 0)))
        else:
            wire.says(answer(STATUS, number, struct.pack(">L", status)))
    assert renaming.called
    assert wire.client_bytes == b""
    session.close()


@pytest.mark.parametrize("status", [packets.PERMISSION_DENIED, packets.UNSUPPORTED])
def test_no_rename_at_all(status: int) -> None:
    """If the server refuses every rename, nothing is removed."""
    wire, _, session = start_session(string(packets.POSIX_RENAME) + string(b"1"))
    renaming = Deferred.fromCoroutine(session.rename(b"/a", b"/b"))
    for number in (1, 2):
        wire.says(answer(STATUS, number, struct.pack(">L", status)))
    error = error_of(renaming)
    assert isinstance(error, SftpRefused)
    assert (error.request, error.status) == ("RENAME", status)
    kinds = [kind for kind, _ in Splitter().feed(bytes(wire.client_bytes))]
    assert kinds == [packets.EXTENDED, packets.RENAME]
    session.close()


def test_listing_without_eof() -> None:
    """An empty reply also ends a listing, since some servers send no EOF."""
    wire, _, session = start_session()
    listing = Deferred.fromCoroutine(session.list(b"/a", lambda _: True))
    wire.says(answer(packets.HANDLE, 1, string(b"h")))
    entry = string(b"name") + string(b"long") + struct.pack(">L", 0)
    wire.says(answer(packets.NAME, 2, struct.pack(">L", 1) + entry))
    wire.says(answer(packets.NAME, 3, struct.pack(">L", 0)))
    kinds = [kind for kind, _ in Splitter().feed(bytes(wire.client_bytes))]
    assert kinds == [packets.OPENDIR, packets.READDIR, packets.READDIR, packets.CLOSE]
    wire.says(answer(STATUS, 4, struct.pack(">L", packets.OK)))
    results: list[object] = []
    listing.addCallback(results.append)
    assert results == [[(b"name", packets.Attributes())]]
    session.close()


@asynccontextmanager
async def real_session(directory: Path) -> AsyncIterator[Sftp]:
    """Open a session with OpenSSH's server."""
    over = connection(UNUSED_ACCOUNT, without_ssh(directory))
    channel: Channel = await over.open_subsystem("sftp")
    try:
        yield await Sftp.begin(channel, reactor, IDLE_SECONDS)
    finally:
        await over.close()


@pytest_twisted.ensureDeferred
async def test_reads_through(tmp_path: Path) -> None:
    """A file of any length is read back in order."""
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    async with real_session(tmp_path / "bin") as session:
        handle = await session.open(bytes(tmp_path / "file"), packets.FOR_READING)
        results = bytearray()
        await session.read_through(handle, len(content), results.extend)
        assert results == content
        assert await session.read(handle, len(content) - 5, 10) == content[-5:]
        await session.close_handle(handle)


@pytest_twisted.ensureDeferred
async def test_long_directory(tmp_path: Path) -> None:
    """A directory that needs many packets is listed completely, with selected names."""
    place = tmp_path / "many"
    place.mkdir()
    for n in range(3000):
        (place / f"{n}-{'x' * 100}").touch()
    async with real_session(tmp_path / "bin") as session:
        results = await session.list(bytes(place), lambda name: name.startswith(b"1"))
    assert {name for name, _ in results} == {
        path.name.encode() for path in place.iterdir() if path.name.startswith("1")
    }
    with suppress(DeliveryFailed):
        await session.lstat(b"/")
    assert not session.usable
