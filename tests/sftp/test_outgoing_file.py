"""Pieces of a file are distributed once each, within the limit on write-ahead."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from shiftergw.sftp.outgoing_file import REACH, InFlightWrites, OutgoingFile

BLOCK = 4 << 20
IN_REACH = REACH // BLOCK


async def blocks(*lengths: int) -> AsyncIterator[bytes]:
    """Yield blocks of zeros."""
    for length in lengths:
        yield bytes(length)


def ignore(done: int) -> None:
    """Ignore a report."""


class PieceReader:
    """A session that requests one piece at a time; `results` gets the piece or failure."""

    def __init__(self, out: OutgoingFile, longest: int = BLOCK) -> None:
        """Request the first piece."""
        self.out = out
        self.longest = longest
        self.results: list[Any] = []
        self.waiting: Deferred[Any] = Deferred()
        self.request()

    def request(self) -> None:
        """Request the next piece."""
        self.results.clear()
        self.waiting = Deferred.fromCoroutine(self.out.piece(self.longest))
        self.waiting.addBoth(self.results.append)

    @property
    def offset(self) -> int:
        """Return the offset of the piece."""
        offset: int = self.results[0][0]
        return offset

    @property
    def error(self) -> BaseException | None:
        """Return the error instead of a piece."""
        failure: Failure = self.results[0]
        return failure.value


def full_file(report: Any = ignore) -> OutgoingFile:
    """Return a file with as many bytes in flight as allowed."""
    out = OutgoingFile(blocks(*(BLOCK for _ in range(2 * IN_REACH))), 0, report)
    for _ in range(IN_REACH):
        PieceReader(out)
    return out


@given(
    lengths=st.lists(st.integers(1, BLOCK), max_size=20),
    start=st.integers(0, 1 << 40),
    longest=st.lists(st.integers(300_000, 5_000_000), min_size=1, max_size=4),
    seed=st.integers(),
)
def test_pieces(lengths: list[int], start: int, longest: list[int], seed: int) -> None:
    """With any order of requests and replies, each byte is sent once, within the limit."""
    rng = random.Random(seed)
    reports: list[int] = []
    out = OutgoingFile(blocks(*lengths), start, reports.append)
    readers = [PieceReader(out, length) for length in longest]
    in_flight: dict[int, int] = {}
    end, total = start, 0
    while readers or in_flight:
        for reader in [first for first in readers if first.results]:
            piece = reader.results[0]
            if piece is None:
                readers.remove(reader)
                continue
            offset, data = piece
            assert 0 < len(data) <= reader.longest
            assert offset not in in_flight
            in_flight[offset] = len(data)
            end, total = max(end, offset + len(data)), total + len(data)
            assert end - min(in_flight) <= REACH
            reader.results.clear()
        idle_readers = [reader for reader in readers if reader.waiting.called]
        if idle_readers and (not in_flight or rng.random() < 0.6):
            rng.choice(idle_readers).request()
        elif in_flight:
            offset = rng.choice(sorted(in_flight))
            del in_flight[offset]
            out.acknowledge(offset)
    assert end - start == total == sum(lengths)
    assert reports == sorted(reports)
    assert reports[-1:] == ([sum(lengths)] if lengths else [])


def test_reach() -> None:
    """An unacknowledged piece stops all sessions at the limit."""
    out = full_file()
    first, second = PieceReader(out), PieceReader(out, 1)
    for n in range(1, IN_REACH):
        out.acknowledge(n * BLOCK)
    assert first.results == second.results == []
    out.acknowledge(0)
    assert (first.offset, second.offset) == (REACH, REACH + BLOCK)


def test_reports_are_limited() -> None:
    """Acknowledged bytes are reported once per MiB."""
    reports: list[int] = []
    out = OutgoingFile(blocks(BLOCK), 7, reports.append)
    for _ in range(0, BLOCK, 1024):
        PieceReader(out, 1024)
    for offset in range(0, BLOCK, 1024):
        out.acknowledge(7 + offset)
    assert reports == [n << 20 for n in range(1, 5)]


def test_a_failure_ends_all_sessions() -> None:
    """Waiting and later requests raise the first error, and reports stop."""
    reports: list[int] = []
    out = full_file(reports.append)
    first_reader, second_reader = PieceReader(out), PieceReader(out)
    InFlightWrites(out).fail(ValueError("first"))
    out.stop(ValueError("second"))
    for reader in (first_reader, second_reader, PieceReader(out)):
        assert str(reader.error) == "first"
    out.acknowledge(0)
    assert reports == []


def test_cancelled() -> None:
    """A cancelled request does not consume a piece."""
    out = full_file()
    cancelled_reader, second = PieceReader(out), PieceReader(out)
    cancelled_reader.waiting.cancel()
    assert isinstance(cancelled_reader.error, CancelledError)
    assert second.results == []
    out.acknowledge(0)
    assert second.offset == REACH


def test_read_errors() -> None:
    """Pieces before a read error are distributed; the next request raises the error."""

    async def failing_blocks() -> AsyncIterator[bytes]:
        yield bytes(BLOCK)
        raise OSError("worn out")

    out = OutgoingFile(failing_blocks(), 0, ignore)
    assert PieceReader(out).offset == 0
    assert str(PieceReader(out).error) == "worn out"
