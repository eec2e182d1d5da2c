"""A file on its way: who gets which piece of it, and when."""

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
    """Hear a report."""


class Asker:
    """Somebody who asks for a piece at a time; `got` is what he was told, once he is."""

    def __init__(self, out: OutgoingFile, longest: int = BLOCK) -> None:
        """Ask at once."""
        self.out = out
        self.longest = longest
        self.got: list[Any] = []
        self.waiting: Deferred[Any] = Deferred()
        self.ask()

    def ask(self) -> None:
        """Ask for the next one."""
        self.got.clear()
        self.waiting = Deferred.fromCoroutine(self.out.piece(self.longest))
        self.waiting.addBoth(self.got.append)

    @property
    def offset(self) -> int:
        """Return where the piece belongs."""
        offset: int = self.got[0][0]
        return offset

    @property
    def error(self) -> BaseException | None:
        """Return what he was told instead."""
        failure: Failure = self.got[0]
        return failure.value


def full(report: Any = ignore) -> OutgoingFile:
    """Return a file of which as much is under way as may be."""
    out = OutgoingFile(blocks(*(BLOCK for _ in range(2 * IN_REACH))), 0, report)
    for _ in range(IN_REACH):
        Asker(out)
    return out


@given(
    lengths=st.lists(st.integers(1, BLOCK), max_size=20),
    start=st.integers(0, 1 << 40),
    longest=st.lists(st.integers(300_000, 5_000_000), min_size=1, max_size=4),
    seed=st.integers(),
)
def test_pieces(lengths: list[int], start: int, longest: list[int], seed: int) -> None:
    """However many ask, and whichever is answered when, each byte goes once, within the reach."""
    chance = random.Random(seed)
    reports: list[int] = []
    out = OutgoingFile(blocks(*lengths), start, reports.append)
    askers = [Asker(out, length) for length in longest]
    under_way: dict[int, int] = {}
    end, total = start, 0
    while askers or under_way:
        for asker in [one for one in askers if one.got]:
            piece = asker.got[0]
            if piece is None:
                askers.remove(asker)
                continue
            offset, data = piece
            assert 0 < len(data) <= asker.longest
            assert offset not in under_way
            under_way[offset] = len(data)
            end, total = max(end, offset + len(data)), total + len(data)
            assert end - min(under_way) <= REACH
            asker.got.clear()
        quiet = [asker for asker in askers if asker.waiting.called]
        if quiet and (not under_way or chance.random() < 0.6):
            chance.choice(quiet).ask()
        elif under_way:
            offset = chance.choice(sorted(under_way))
            del under_way[offset]
            out.acknowledge(offset)
    assert end - start == total == sum(lengths)
    assert reports == sorted(reports)
    assert reports[-1:] == ([sum(lengths)] if lengths else [])


def test_reach() -> None:
    """One piece without an answer keeps all from going further than the reach."""
    out = full()
    one, other = Asker(out), Asker(out, 1)
    for n in range(1, IN_REACH):
        out.acknowledge(n * BLOCK)
    assert one.got == other.got == []
    out.acknowledge(0)
    assert (one.offset, other.offset) == (REACH, REACH + BLOCK)


def test_reports_are_not_too_many() -> None:
    """What is answered is told each time that it is a good deal more."""
    reports: list[int] = []
    out = OutgoingFile(blocks(BLOCK), 7, reports.append)
    for _ in range(0, BLOCK, 1024):
        Asker(out, 1024)
    for offset in range(0, BLOCK, 1024):
        out.acknowledge(7 + offset)
    assert reports == [n << 20 for n in range(1, 5)]


def test_one_that_fails_ends_the_others() -> None:
    """Whoever waits, and whoever asks later, gets the first error; nothing more is told."""
    reports: list[int] = []
    out = full(reports.append)
    waiting, behind = Asker(out), Asker(out)
    InFlightWrites(out).fail(ValueError("first"))
    out.stop(ValueError("second"))
    for asker in (waiting, behind, Asker(out)):
        assert str(asker.error) == "first"
    out.acknowledge(0)
    assert reports == []


def test_cancelled() -> None:
    """Whoever is cancelled while he waits takes nothing with him."""
    out = full()
    cancelled, other = Asker(out), Asker(out)
    cancelled.waiting.cancel()
    assert isinstance(cancelled.error, CancelledError)
    assert other.got == []
    out.acknowledge(0)
    assert other.offset == REACH


def test_source_that_cannot_be_read() -> None:
    """What reading raises, whoever asked for the piece gets; what was read before is handed out."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(BLOCK)
        raise OSError("worn out")

    out = OutgoingFile(broken(), 0, ignore)
    assert Asker(out).offset == 0
    assert str(Asker(out).error) == "worn out"
