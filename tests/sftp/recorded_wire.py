"""A channel that records the data of an SFTP client, and the packets of its server."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.plumbing.channel import Buffer
from shiftergw.sftp import packets
from shiftergw.sftp.client import Sftp

IDLE_SECONDS = 30.0


class Wire:
    """A channel that records the data of the client; `says` passes data to the client."""

    def __init__(self) -> None:
        """Open the channel."""
        self.closed: Deferred[int | None] = Deferred()
        self.stderr = ""
        self.client_bytes = bytearray()
        self.is_lost = False
        self.has_ended = False
        self.producer: Any = None
        self.says: Callable[[bytes], None] = lambda _: None

    def write(self, data: Buffer) -> None:
        """Record sent data."""
        self.client_bytes += data

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Record sent data."""
        self.client_bytes += b"".join(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Store the producer."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.producer = None

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Store the receiver of the client as `says`."""
        self.says = data

    def end_input(self) -> None:
        """Record the end of the input."""
        self.has_ended = True

    def lose(self) -> None:
        """Close at once."""
        if not self.is_lost:
            self.is_lost = True
            if not self.closed.called:
                self.closed.callback(None)


def packet(kind: int, body: bytes) -> bytes:
    """Return a packet; the body includes the request number."""
    return struct.pack(">LB", 1 + len(body), kind) + body


def answer(kind: int, number: int, body: bytes) -> bytes:
    """Return a reply."""
    return packets.request(kind, number, body)


def start_session(extensions: bytes = b"") -> tuple[Wire, Clock, Sftp]:
    """Return a session after the greeting; its first request has the number 1."""
    wire, clock = Wire(), Clock()
    beginning = Deferred.fromCoroutine(Sftp.begin(wire, clock, IDLE_SECONDS))
    wire.says(packet(packets.VERSION, struct.pack(">L", 3) + extensions))
    wire.client_bytes.clear()
    session: list[Sftp] = []
    beginning.addCallback(session.append)
    return wire, clock, session[0]


def error_of(waiting: Deferred[Any]) -> BaseException:
    """Return the error of a Deferred that has failed."""
    failures: list[Failure] = []
    waiting.addErrback(failures.append)
    (failure,) = failures
    assert failure.value is not None
    return failure.value


async def blocks(count: int, length: int = 1 << 20) -> AsyncIterator[bytes]:
    """Yield `count` blocks."""
    for _ in range(count):
        yield bytes(length)
