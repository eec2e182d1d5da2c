"""An SFTP session over any channel, with many requests in flight and a limit on every wait.

Requests are numbered, and replies come in any order. The session ends if the server sends no reply
for `idle_seconds` while requests are open, or violates the protocol. All open and later requests
then fail.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Self

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import SystemUnavailable, stopped_answering
from shiftergw.sftp import packets
from shiftergw.sftp.open_requests import OpenRequests, Reply, WriteRequest
from shiftergw.sftp.outgoing_file import CopiedRange, InFlightWrites, OutgoingFile
from shiftergw.sftp.packets import (
    PacketBody,
    SftpRefused,
    Splitter,
    not_sftp,
    protocol_error,
    string,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from shiftergw.plumbing.channel import Channel

IN_FLIGHT = 8 << 20
"""The limit on the unacknowledged bytes of a file in one session."""

_PACKET = 32768  # of SSH; every SFTP server accepts a WRITE of this length
_LONG_WRITE = 7 * _PACKET
_END_SECONDS = 5.0  # for the server to exit after the end of its input


@implementer(IPushProducer)
class SftpSession:
    """A session; `begin` makes one. Methods raise `SftpRefused` and `DeliveryFailed`.

    Methods can be cancelled; the replies to their requests are then ignored.
    """

    def __init__(self, channel: Channel, clock: IReactorTime, idle_seconds: float) -> None:
        """Use an open channel; end the session if no reply arrives for `idle_seconds`."""
        self._channel = channel
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._splitter = Splitter()
        self._requests = OpenRequests(clock, idle_seconds, self._on_silence)
        self.extensions: Mapping[bytes, bytes] = {}
        self._flights: set[InFlightWrites] = set()
        self._is_paused = False
        self._error: DeliveryFailed | None = None
        self.longest_write = _PACKET
        self._server_exit: Deferred[None] | None = None
        self.round_trip = inf
        """Seconds from a request to its reply, for the fastest reply."""

    @classmethod
    async def begin(
        cls,
        channel: Channel,
        clock: IReactorTime,
        idle_seconds: float,
        like: SftpSession | None = None,
    ) -> Self:
        """Start a session; on failure close the channel.

        The limits of the server are queried, or copied from `like`, a session with that server.
        """
        session = cls(channel, clock, idle_seconds)
        try:
            await session._begin(like)
        except BaseException:
            session.close()
            raise
        return session

    async def _begin(self, like: SftpSession | None) -> None:
        greeting: Deferred[None] = Deferred()
        self._requests.greeting = greeting
        self._channel.closed.addCallbacks(self._on_exit, self._on_failure)
        self._channel.receive(self._on_data)
        self._channel.registerProducer(self, True)
        self._requests.watch()
        self._channel.write(packets.hello())
        await greeting
        if like is not None:
            self.longest_write = like.longest_write
        elif packets.LIMITS in self.extensions:
            with suppress(SftpRefused):
                kind, body = await self.request(packets.EXTENDED, string(packets.LIMITS))
                longest = packets.expect(packets.EXTENDED_REPLY, kind, body).longest_write()
                # Zero means no limit, but promises nothing: OpenSSH accepts packets of 256 KiB.
                self.longest_write = min(longest, _LONG_WRITE) if longest else _PACKET

    @property
    def usable(self) -> bool:
        """Return whether the session has not ended."""
        return self._error is None

    def close(self) -> None:
        """End the session at once; open requests fail."""
        self._fail(DeliveryFailed("The connection to the system was closed."))

    async def end(self) -> None:
        """Close the server's input and wait until the server has exited, a few seconds at most."""
        if self._error is None:
            server_exit: Deferred[None] = Deferred()
            self._server_exit = server_exit
            self._channel.end_input()
            timeout = self._clock.callLater(_END_SECONDS, self.close)
            try:
                await server_exit
            finally:
                if timeout.active():
                    timeout.cancel()

    async def write(self, handle: bytes, outgoing: OutgoingFile, copy_source: bytes = b"") -> None:
        """Write pieces of a file to its end; return when all of these are acknowledged.

        Several sessions may write the same file; an error in one of them fails all. The server
        copies each `CopiedRange` from the open file `copy_source`. It replies that it did also if
        that file is too short or the disk is full, so the caller must prove the written file.
        """
        longest = self.longest_write
        if longest == _LONG_WRITE:  # so that a WRITE fills its SSH packets exactly
            longest -= packets.write_overhead(handle)
        flight = InFlightWrites(outgoing)
        self._flights.add(flight)
        try:
            while True:
                if self._is_paused or flight.byte_count >= IN_FLIGHT:
                    await self._until(flight, IN_FLIGHT * 3 // 4)
                self._check(flight)
                piece = await outgoing.piece(longest)
                if piece is None:
                    break
                self._write(flight, handle, copy_source, *piece)
            while flight.byte_count:
                await self._until(flight, 0)
            self._check(flight)
        except BaseException as error:
            outgoing.stop(error)
            raise
        finally:
            self._flights.discard(flight)

    def _write(
        self,
        flight: InFlightWrites,
        handle: bytes,
        copy_source: bytes,
        offset: int,
        piece: memoryview | CopiedRange,
    ) -> None:
        request = WriteRequest.of_piece(flight, offset, piece)
        number = self._requests.add(request)
        flight.byte_count += request.weight
        length = len(piece)
        if isinstance(piece, CopiedRange):
            place = piece.source_offset, length
            self._channel.write(packets.copy_request(number, copy_source, *place, handle, offset))
        else:
            head = packets.write_head(number, handle, offset, length)
            self._channel.writeSequence((head, piece))

    def _check(self, flight: InFlightWrites) -> None:
        if self._error is not None:
            raise copy.copy(self._error)
        if flight.error is not None:
            raise flight.error

    async def _until(self, flight: InFlightWrites, byte_count: int) -> None:
        """Wait until at most `byte_count` bytes are in flight and the channel is not paused."""
        self._check(flight)
        await flight.wait(byte_count)

    # The channel's producer

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        for flight in list(self._flights):
            flight.wake(is_paused=self._is_paused)

    def stopProducing(self) -> None:
        self._is_paused = False

    # Requests and replies

    async def request(self, kind: int, body: bytes, patience: float = 0) -> tuple[int, PacketBody]:
        """Send a request; return type and body of its reply, or raise `SftpRefused`.

        The reply may take `patience` seconds, if that is longer than the idle limit.
        """
        if self._error is not None:
            raise copy.copy(self._error)
        answer: Deferred[Reply] = Deferred(lambda _: self._requests.ignore(number))
        number = self._requests.add(answer, patience)
        start = self._clock.seconds()
        self._channel.write(packets.request(kind, number, body))
        try:
            reply = await answer
        except SftpRefused as refusal:
            refusal.request = packets.NAMES.get(kind, "")
            raise
        self.round_trip = min(self.round_trip, self._clock.seconds() - start)
        return reply

    def _on_data(self, data: bytes) -> None:
        try:
            for kind, body in self._splitter.feed(data):
                if self._error is not None:
                    return
                if self._requests.greeting is not None:
                    self._on_greeting(kind, body)
                else:
                    self._on_answer(kind, body)
        except DeliveryFailed as error:
            self._fail(error if self._requests.greeting is None else not_sftp(error.detail))
        else:
            self._requests.watch()

    def _on_greeting(self, kind: int, body: PacketBody) -> None:
        if kind != packets.VERSION or body.number() < 3:  # noqa: PLR2004 - the only version
            raise protocol_error(f"type {kind} as the first answer, or a version before 3")
        self.extensions = body.extensions()
        greeting, self._requests.greeting = self._requests.greeting, None
        assert greeting is not None
        if not greeting.called:
            greeting.callback(None)

    def _on_answer(self, kind: int, body: PacketBody) -> None:
        waiting = self._requests.take(body.number())
        refusal = body.status() if kind == packets.STATUS else None
        if refusal is not None and refusal.status == packets.OK:
            refusal = None
        if isinstance(waiting, WriteRequest):
            if kind != packets.STATUS:
                raise protocol_error(f"type {kind} as the answer to a {waiting.name}")
            if refusal is not None:
                refusal.request = waiting.name
            waiting.flight.settle(waiting.offset, waiting.weight, refusal)
            waiting.flight.wake(is_paused=self._is_paused)
        elif waiting is not None:
            if refusal is not None:
                waiting.errback(refusal)
            else:
                waiting.callback((kind, body))

    # The end

    def _on_silence(self) -> None:
        detail = f"an SFTP request without an answer for {self._idle_seconds:g} s or more"
        self._fail(stopped_answering(detail))

    def _on_exit(self, status: int | None) -> None:
        message = f": {self._channel.stderr}" if self._channel.stderr else ""
        detail = f"the SFTP server ended (status {status}){message}"
        self._fail(
            not_sftp(detail)
            if self._requests.greeting is not None
            else SystemUnavailable("The system broke the connection.", detail=detail)
        )

    def _on_failure(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            error = DeliveryFailed("The connection to the system broke.", detail=repr(error))
        self._fail(error)

    def _fail(self, error: DeliveryFailed) -> None:
        """End the session, once."""
        if self._error is not None:
            return
        self._error = error
        requests = self._requests.end()
        self._channel.unregisterProducer()
        self._channel.lose()
        for request in requests:
            if not request.called:
                request.errback(copy.copy(error))
        for flight in list(self._flights):
            flight.fail(copy.copy(error))
            flight.wake(is_paused=self._is_paused)
        if self._server_exit is not None:
            server_exit, self._server_exit = self._server_exit, None
            server_exit.callback(None)
