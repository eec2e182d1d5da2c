"""Data that waits for a server's window is bounded by its producer, and sent in order."""

from __future__ import annotations

import pytest

from shiftergw.ssh.outgoing_data import HIGH_WATER, OutgoingData


class RecordingProducer:
    """A producer that records how it is controlled."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        """Record a pause."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """Record that data was requested."""
        self.calls.append("resume")

    def stopProducing(self) -> None:
        """Record the end."""
        self.calls.append("stop")


def take(outgoing: OutgoingData, length: int) -> bytes:
    """Return the next bytes."""
    buffer = bytearray(length)
    outgoing.fill(memoryview(buffer))
    return bytes(buffer)


def test_pieces_are_sent_in_order_and_in_any_length() -> None:
    """Packets need not end where the pieces end; empty pieces do not count."""
    outgoing = OutgoingData()
    outgoing.append([b"abc", b"", memoryview(b"defg"), bytearray(b"h")])
    assert (outgoing.size, take(outgoing, 2), take(outgoing, 3)) == (8, b"ab", b"cde")
    outgoing.append([b"ij"])
    assert (outgoing.size, take(outgoing, 5), outgoing.size) == (5, b"fghij", 0)


def test_a_streaming_producer_is_paused_and_resumed_once() -> None:
    """The producer is paused at the limit, and resumed when less than half of that waits."""
    outgoing, producer = OutgoingData(), RecordingProducer()
    outgoing.register(producer, streaming=True)
    outgoing.refill()
    outgoing.append([bytes(HIGH_WATER - 1)])
    assert producer.calls == []
    outgoing.append([b"12"])
    outgoing.append([b"3"])
    assert producer.calls == ["pause"]
    take(outgoing, HIGH_WATER // 2 + 2)
    outgoing.refill()
    assert producer.calls == ["pause"]
    take(outgoing, 1)
    outgoing.refill()
    outgoing.refill()
    assert producer.calls == ["pause", "resume"]


def test_a_pull_producer_is_asked_each_time() -> None:
    """The producer is asked for data whenever there is room, and never paused."""
    outgoing, producer = OutgoingData(), RecordingProducer()
    outgoing.register(producer, streaming=False)
    outgoing.refill()
    outgoing.refill()
    outgoing.append([bytes(HIGH_WATER)])
    outgoing.refill()
    assert producer.calls == ["resume", "resume"]


def test_the_end_stops_the_producer() -> None:
    """Waiting data is forgotten; a producer that has left is not stopped."""
    outgoing, producer = OutgoingData(), RecordingProducer()
    outgoing.register(producer, streaming=True)
    outgoing.append([b"abc"])
    outgoing.drop()
    assert (outgoing.size, producer.calls) == (0, ["stop"])
    outgoing.register(producer, streaming=True)
    outgoing.unregister()
    outgoing.drop()
    assert producer.calls == ["stop"]


def test_there_is_one_producer() -> None:
    """A second producer would be paused and resumed for data of the first."""
    outgoing = OutgoingData()
    outgoing.register(RecordingProducer(), streaming=True)
    with pytest.raises(RuntimeError, match="one producer"):
        outgoing.register(RecordingProducer(), streaming=True)
