"""Copies within the server: the extension `copy-data` of OpenSSH, and servers that lie about it."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.client import Sftp
from shiftergw.sftp.outgoing_file import COPY_BYTES, COPY_REACH, CopiedRange, OutgoingFile
from shiftergw.sftp.packets import SftpRefused, Splitter, string
from shiftergw.sftp.parallel_write import ParallelWrite
from tests.delivery.far import IDLE_SECONDS, UNUSED_ACCOUNT, connection, without_ssh
from tests.installed_reactor import reactor
from tests.sftp.recorded_wire import Wire, answer, error_of, start_session
from tests.sftp.test_client import real_session

MIB = 1 << 20


async def stream(*blocks: bytes | CopiedRange) -> AsyncIterator[bytes | CopiedRange]:
    """Yield the blocks of a file."""
    for block in blocks:
        yield block


def outgoing(
    *blocks: bytes | CopiedRange, report: Callable[[int], None] = lambda _: None, offset: int = 0
) -> OutgoingFile:
    """Return a file that is put together from blocks."""
    return OutgoingFile(stream(*blocks), offset, report, COPY_REACH)


def parse_copies(wire: Wire) -> list[tuple[int, int, int, int]]:
    """Return number, source offset, length and offset of each copy that the client asked for."""
    copies = []
    for kind, body in Splitter().feed(bytes(wire.client_bytes)):
        assert kind == packets.EXTENDED
        number = body.number()
        assert (body.string(), body.string()) == (b"copy-data", b"source")
        source_offset, length = body.long(), body.long()
        assert body.string() == b"h"
        copies.append((number, source_offset, length, body.long()))
        assert not body.has_more()
    wire.client_bytes.clear()
    return copies


def confirm(wire: Wire, number: int, status: int = packets.OK) -> None:
    """Reply to a request."""
    wire.says(answer(packets.STATUS, number, struct.pack(">L", status)))


def test_copies_in_flight() -> None:
    """A long range is copied in several requests, of which few are in flight."""
    wire, clock, session = start_session()
    reports: list[int] = []
    length = 2 * COPY_REACH + 5
    file = outgoing(CopiedRange(1000, length), report=reports.append, offset=7)
    writing = Deferred.fromCoroutine(session.write(b"h", file, b"source"))
    copies: list[tuple[int, int]] = []
    while not writing.called:
        requests = parse_copies(wire)
        assert 0 < sum(length for _, _, length, _ in requests) <= COPY_REACH
        for number, source_offset, length_of_copy, offset in reversed(requests):
            assert source_offset - 1000 == offset - 7
            assert 0 < length_of_copy <= COPY_BYTES
            copies.append((offset, length_of_copy))
            confirm(wire, number)
    copies.sort()
    assert copies[0][0] == 7
    assert all(a + n == b for (a, n), (b, _) in pairwise(copies))
    assert sum(n for _, n in copies) == length == reports[-1]
    assert clock.getDelayedCalls() == []


def test_many_short_copies() -> None:
    """The number of requests in flight is limited, also for copies of a byte."""
    wire, _, session = start_session()
    file = outgoing(*(CopiedRange(2 * n, 1) for n in range(10_000)))
    Deferred.fromCoroutine(session.write(b"h", file, b"source")).addErrback(lambda _: None)
    assert 100 < len(parse_copies(wire)) <= 256
    session.close()


@pytest.mark.parametrize("status", [packets.FAILURE, packets.UNSUPPORTED])
def test_refusal(status: int) -> None:
    """A refused copy ends the write, and the error names the request."""
    wire, _, session = start_session()
    file = outgoing(CopiedRange(0, 3), b"data", CopiedRange(9, 1))
    writing = Deferred.fromCoroutine(session.write(b"h", file, b"source"))
    confirm(wire, 1, status)
    error = error_of(writing)
    assert isinstance(error, SftpRefused)
    assert (error.status, error.request) == (status, "copy-data")
    assert session.usable
    session.close()


def test_another_reply_than_a_status() -> None:
    """Another reply violates the protocol, and the error names the request."""
    wire, _, session = start_session()
    file = outgoing(CopiedRange(0, 3))
    writing = Deferred.fromCoroutine(session.write(b"h", file, b"source"))
    wire.says(answer(packets.DATA, 1, string(b"abc")))
    assert "copy-data" in str(getattr(error_of(writing), "detail", ""))
    assert not session.usable


def test_a_copy_without_a_length() -> None:
    """A request to copy nothing is never sent: to the server it means all of the rest."""
    with pytest.raises(ValueError, match="needs a length"):
        packets.copy_request(1, b"source", 0, 0, b"h", 0)


async def write_file(session: Sftp, target: Path, source: Path, file: OutgoingFile) -> None:
    """Put a file together on the server, with copies from another file."""
    copy_source = await session.open(bytes(source), packets.FOR_READING)
    handle = await session.open(bytes(target), packets.FOR_WRITING | packets.CREATE)
    await session.write(handle, file, copy_source)
    await session.close_handle(handle)
    await session.close_handle(copy_source)


@pytest_twisted.ensureDeferred
async def test_server_of_openssh(tmp_path: Path) -> None:
    """OpenSSH's server copies ranges between the pieces that are sent."""
    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(9 * MIB)
    source.write_bytes(content)
    blocks: tuple[bytes | CopiedRange, ...] = (
        b"head", CopiedRange(5, COPY_BYTES + 100_001), b"x" * MIB, CopiedRange(0, 1), b"end",
    )  # fmt: skip
    async with real_session(tmp_path / "bin") as session:
        assert packets.COPY_DATA in session.extensions
        await write_file(session, target, source, outgoing(*blocks))
    copied_content = content[5 : 5 + COPY_BYTES + 100_001]
    assert target.read_bytes() == b"head" + copied_content + b"x" * MIB + content[:1] + b"end"


@pytest_twisted.ensureDeferred
async def test_several_sessions(tmp_path: Path) -> None:
    """Further sessions open the file to copy from, too, and copy while the first is held up."""
    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(3 * COPY_BYTES)
    source.write_bytes(content)
    target.touch()
    over = connection(UNUSED_ACCOUNT, without_ssh(tmp_path / "bin"))
    done: list[int] = []

    async def begin() -> Sftp:
        return await Sftp.begin(await over.open_subsystem("sftp"), reactor, IDLE_SECONDS)

    try:
        first = await begin()
        copy_source = await first.open(bytes(source), packets.FOR_READING)
        handle = await first.open(bytes(target), packets.FOR_WRITING)
        first.pauseProducing()
        file = outgoing(b"head", CopiedRange(1, 3 * COPY_BYTES - 1), b"end", report=done.append)
        write = ParallelWrite(begin, bytes(target), file, bytes(source))
        writing = Deferred.fromCoroutine(write.run(first, handle, 2, copy_source))
        while not done or done[-1] < len(content) + 6:
            await pause(0.01, reactor)
        first.resumeProducing()
        await writing
    finally:
        await over.close()
    assert target.read_bytes() == b"head" + content[1:] + b"end"


@pytest_twisted.ensureDeferred
async def test_success_proves_nothing(tmp_path: Path) -> None:
    """OpenSSH's server confirms a copy of more bytes than the source has, and copies these."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"short")
    async with real_session(tmp_path / "bin") as session:
        await write_file(session, target, source, outgoing(CopiedRange(2, 1000)))
    assert target.read_bytes() == b"ort"


@pytest_twisted.ensureDeferred
async def test_a_file_is_not_copied_into_itself(tmp_path: Path) -> None:
    """OpenSSH's server refuses two handles of one path."""
    target = tmp_path / "target"
    target.write_bytes(b"content")
    async with real_session(tmp_path / "bin") as session:
        with pytest.raises(SftpRefused) as caught:
            await write_file(session, target, target, outgoing(CopiedRange(0, 3)))
    assert (caught.value.status, caught.value.request) == (packets.FAILURE, "copy-data")
    assert target.read_bytes() == b"content"
