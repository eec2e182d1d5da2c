"""Sending files with SCP, to receivers that follow the protocol and to others that violate it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.delivery.proof import time_limit
from shiftergw.delivery.scp import IN_FLIGHT, ScpSink
from shiftergw.errors import DeliveryFailed
from shiftergw.sftp.packets import SftpRefused
from tests.sftp.recorded_wire import Wire, blocks, error_of

IDLE_SECONDS = 30.0
SIZE = 2_500_000
HEAD = b"C0600 2500000 image\n"


class Sending:
    """A file of `size` bytes that is sent to a receiver played by the test."""

    def __init__(self, size: int = SIZE, *, readable_blocks: int = 100) -> None:
        """Send a file of which this number of blocks of 1 MiB can be read."""
        self.wire, self.clock = Wire(), Clock()
        self.reports: list[int] = []
        self.sink = ScpSink(size, self.reports.append, IDLE_SECONDS)
        self.sink.attach(self.wire, self.clock)
        self.mark = "".join(self.sink.frame.command("")[4:6])
        self.wire.says(f"{self.mark}\n".encode())
        self.done = Deferred.fromCoroutine(self.sink.send(blocks(readable_blocks)))

    def error(self) -> BaseException:
        """Return the error of the sending; check that no timer is left."""
        error = error_of(self.done)
        assert self.clock.getDelayedCalls() == []
        return error

    def end(self, status: int | None) -> None:
        """End the program with an exit status; None: it was killed."""
        if status is not None:
            self.wire.says(f"{self.mark} {status}\n".encode())
        self.wire.is_lost = True
        self.wire.closed.callback(status)


def test_a_file() -> None:
    """A file is announced, sent when the receiver is ready, and complete after its last reply."""
    sending = Sending()
    assert sending.wire.client_bytes == b""
    sending.wire.says(b"\0")
    assert sending.wire.client_bytes == HEAD
    sending.wire.says(b"\0")
    assert sending.wire.client_bytes == HEAD + bytes(SIZE) + b"\0"
    assert sending.reports == []
    sending.wire.says(b"\0")
    assert sending.done.called
    assert sending.reports == [SIZE]
    assert sending.wire.producer is None
    assert sending.clock.getDelayedCalls() == []


def test_an_empty_file() -> None:
    """An empty file can be sent."""
    sending = Sending(0)
    for _ in range(3):
        sending.wire.says(b"\0")
    assert sending.wire.client_bytes == b"C0600 0 image\n\0"
    assert sending.done.called


def test_reports_exclude_bytes_in_flight() -> None:
    """Bytes that may still be in a buffer are not reported."""
    size = 3 * IN_FLIGHT
    sending = Sending(size)
    sending.wire.says(b"\0")
    sending.sink.pauseProducing()
    sending.wire.says(b"\0")
    head = len(sending.wire.client_bytes)
    for _ in range(size >> 18):
        sending.wire.producer.resumeProducing()
        sending.wire.producer.pauseProducing()
        if sending.done.called:
            break
    sending.wire.producer.resumeProducing()
    assert len(sending.wire.client_bytes) == head + size + 1
    assert sending.reports == sorted(sending.reports)
    assert all(report <= size - IN_FLIGHT for report in sending.reports)
    sending.wire.says(b"\0")
    assert sending.reports[-1] == size


def test_channel_that_is_full() -> None:
    """Nothing is sent while the channel is full, within the time limit."""
    sending = Sending()
    sending.wire.says(b"\0")
    sending.sink.pauseProducing()
    sending.wire.says(b"\0")
    assert sending.wire.client_bytes == HEAD
    sending.clock.advance(IDLE_SECONDS - 1)
    sending.sink.resumeProducing()
    assert sending.wire.client_bytes == HEAD + bytes(SIZE) + b"\0"
    assert not sending.done.called
    sending.done.addErrback(lambda _: None)
    sending.done.cancel()


def test_sink_that_takes_nothing() -> None:
    """A receiver that takes no bytes within the time limit is given up."""
    sending = Sending()
    sending.wire.says(b"\0")
    sending.sink.pauseProducing()
    sending.wire.says(b"\0")
    sending.clock.advance(IDLE_SECONDS)
    assert "stopped answering" in str(sending.error())


@pytest.mark.parametrize("answers", [0, 1])
def test_silence(answers: int) -> None:
    """A receiver that does not reply before the file is given up."""
    sending = Sending()
    sending.wire.says(bytes(answers))
    sending.clock.advance(IDLE_SECONDS)
    assert "stopped answering" in str(sending.error())


def test_silence_at_the_end() -> None:
    """The last reply may take the time that a slow disk needs, and no longer."""
    sending = Sending()
    sending.wire.says(b"\0")
    sending.wire.says(b"\0")
    sending.clock.advance(IDLE_SECONDS + time_limit(SIZE) - 1)
    assert not sending.done.called
    sending.clock.advance(1)
    assert "stopped answering" in str(sending.error())


@pytest.mark.parametrize("answers", [0, 1, 2])
@pytest.mark.parametrize("kind", [b"\1", b"\2"])
def test_refusal(answers: int, kind: bytes) -> None:
    """An error line of the receiver refuses the file at any time; its text is in the error."""
    sending = Sending()
    for _ in range(answers):
        sending.wire.says(b"\0")
    sending.wire.says(kind + b"scp: /f: No space")
    assert not sending.done.called
    sending.wire.says(b" left\n\0\0\0")
    error = sending.error()
    assert isinstance(error, SftpRefused)
    assert str(error) == "status 4: scp: /f: No space left"


@pytest.mark.parametrize(
    "reply",
    [
        b"\0\0",
        b"Welcome!\n",
        b"\0x",
        b"\3",
        b"\1" + b"x" * 3000,
        b"\x00\x01" + b"x" * 3000,
        b"\xff",
    ],
)
def test_nonsense(reply: bytes) -> None:
    """Replies that are invalid, early or endless violate the protocol."""
    sending = Sending()
    sending.wire.says(reply)
    error = sending.error()
    assert isinstance(error, DeliveryFailed)
    assert "violates the SCP protocol" in error.what
    assert sending.wire.is_lost


def test_answer_before_the_last_byte() -> None:
    """A receiver that confirms a file before its last byte violates the protocol."""
    sending = Sending()
    sending.wire.says(b"\0")
    sending.sink.pauseProducing()
    sending.wire.says(b"\0")
    sending.wire.says(b"\0")
    assert "violates the SCP protocol" in str(sending.error())


@pytest.mark.parametrize("answers", [0, 1, 2])
@pytest.mark.parametrize("status", [0, 1, 104, None])
def test_end_before_the_last_answer(answers: int, status: int | None) -> None:
    """A program that ends early raises an error by its exit status."""
    sending = Sending()
    for _ in range(answers):
        sending.wire.says(b"\0")
    sending.wire.stderr = "no such thing"
    sending.end(status)
    error = sending.error()
    assert isinstance(error, DeliveryFailed if status == 0 else SftpRefused)
    assert status == 0 or "no such thing" in str(error) or status is None


def test_end_while_the_channel_is_full() -> None:
    """A channel that ends stops its producer; the waiting caller gets the reason."""
    sending = Sending()
    sending.wire.says(b"\0")
    sending.sink.pauseProducing()
    sending.wire.says(b"\0")
    sending.wire.producer.stopProducing()
    assert not sending.done.called
    sending.wire.is_lost = True
    sending.wire.closed.errback(DeliveryFailed("The cable was cut."))
    assert "cable" in str(sending.error())


def test_source_that_is_too_short() -> None:
    """A source that became shorter raises `OSError`."""
    sending = Sending(readable_blocks=1)
    sending.wire.says(b"\0")
    sending.wire.says(b"\0")
    assert isinstance(sending.error(), OSError)


def test_cancelled() -> None:
    """A caller that waits for a reply can be cancelled."""
    sending = Sending()
    sending.done.cancel()
    assert isinstance(sending.error(), CancelledError)


@given(pieces=st.lists(st.binary(max_size=20) | st.sampled_from([b"\0", b"\1x\n"]), max_size=8))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever a receiver sends, the sending ends with success or with an expected error."""
    sending = Sending()
    ends: list[Any] = []
    sending.done.addBoth(ends.append)
    for piece in pieces:
        sending.wire.says(piece)
    sending.clock.advance(IDLE_SECONDS)
    sending.clock.advance(IDLE_SECONDS + time_limit(SIZE))
    (end,) = ends
    assert not isinstance(end, Failure) or end.check(DeliveryFailed, SftpRefused)
    assert sending.clock.getDelayedCalls() == []
