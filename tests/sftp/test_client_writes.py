"""Writes of the SFTP client: many in flight, bounded, and ended with the connection."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import OutgoingFile
from shiftergw.sftp.packets import SftpRefused, Splitter, string
from shiftergw.sftp.session import IN_FLIGHT
from tests.sftp.recorded_wire import IDLE_SECONDS, answer, blocks, error_of, start_session


def outgoing(count: int, report: Callable[[int], None] = lambda _: None) -> OutgoingFile:
    """Return a file of `count` blocks."""
    return OutgoingFile(blocks(count), 0, report)


def parse_writes(stream: bytes) -> tuple[list[int], int]:
    """Return the request numbers of the WRITEs in a stream, and the total of their bytes."""
    numbers, total = [], 0
    for kind, body in Splitter().feed(stream):
        assert kind == packets.WRITE
        numbers.append(body.number())
        assert body.string() == b"h"
        body.long()
        total += len(body.string())
    return numbers, total


def test_bytes_in_flight() -> None:
    """Bytes in flight are limited; replies in any order let the rest follow."""
    wire, clock, session = start_session()
    reports: list[int] = []
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(20, reports.append)))
    total = 0
    while not writing.called:
        numbers, length = parse_writes(bytes(wire.client_bytes))
        wire.client_bytes.clear()
        assert 0 < length <= IN_FLIGHT + 32768
        total += length
        for number in reversed(numbers):
            wire.says(answer(packets.STATUS, number, struct.pack(">L", 0)))
    assert total == reports[-1] == 20 << 20
    assert reports == sorted(reports)
    assert clock.getDelayedCalls() == []


def test_a_paused_channel() -> None:
    """Nothing is sent while the channel pauses its producer."""
    wire, _, session = start_session()
    wire.producer.pauseProducing()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(1)))
    assert wire.client_bytes == b""
    wire.producer.resumeProducing()
    numbers, length = parse_writes(bytes(wire.client_bytes))
    assert length == 1 << 20
    for number in numbers:
        wire.says(answer(packets.STATUS, number, struct.pack(">L", 0)))
    assert writing.called


def test_refused_write() -> None:
    """A refused WRITE ends the write; the session stays usable."""
    wire, _, session = start_session()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(100)))
    numbers, _ = parse_writes(bytes(wire.client_bytes))
    wire.says(answer(packets.STATUS, numbers[0], struct.pack(">L", 4) + string(b"full\n")))
    error = error_of(writing)
    assert isinstance(error, SftpRefused)
    assert str(error) == "WRITE: status 4: full\\x0a"
    assert session.usable
    session.close()


@pytest.mark.parametrize("end", ["silence", "close", "failure"])
def test_connection_that_ends_while_writing(end: str) -> None:
    """A waiting write fails when the connection ends."""
    wire, clock, session = start_session()
    writing = Deferred.fromCoroutine(session.write(b"h", outgoing(100)))
    if end == "silence":
        clock.advance(IDLE_SECONDS)
    else:
        wire.is_lost = True
        if end == "close":
            wire.closed.callback(None)
        else:
            wire.closed.errback(DeliveryFailed("The cable was cut."))
    error = error_of(writing)
    assert isinstance(error, DeliveryFailed)
    assert ("cable" in str(error)) == (end == "failure")
    assert clock.getDelayedCalls() == []


def test_round_trip() -> None:
    """The round trip is the time of the fastest reply; cancelled requests do not count."""
    wire, clock, session = start_session()
    for number, seconds in enumerate((3.0, 1.0, 2.0), 1):
        reading = Deferred.fromCoroutine(session.read(b"h", 0, 1))
        clock.advance(seconds)
        wire.says(answer(packets.DATA, number, string(b"x")))
        assert reading.called
    cancelled_read = Deferred.fromCoroutine(session.read(b"h", 0, 1))
    cancelled_read.cancel()
    assert isinstance(error_of(cancelled_read), CancelledError)
    assert session.round_trip == 1.0
    session.close()


@pytest.mark.parametrize("late", [True, False])
def test_end_in_order(late: bool) -> None:
    """`end` returns when the server exits, or after a few seconds."""
    wire, clock, session = start_session()
    ending = Deferred.fromCoroutine(session.end())
    assert (wire.has_ended, wire.is_lost, ending.called) == (True, False, False)
    if late:
        clock.advance(IDLE_SECONDS)
    else:
        wire.closed.callback(0)
    assert ending.called
    assert wire.is_lost
    assert not session.usable
    assert clock.getDelayedCalls() == []


def test_patience() -> None:
    """A sync has a longer limit than other requests."""
    extensions = string(packets.FSYNC) + string(b"1")
    _, clock, session = start_session(extensions)
    syncing = Deferred.fromCoroutine(session.sync(b"h", 3 * IDLE_SECONDS))
    clock.advance(2 * IDLE_SECONDS)
    assert not syncing.called
    clock.advance(IDLE_SECONDS)
    assert isinstance(error_of(syncing), DeliveryFailed)
