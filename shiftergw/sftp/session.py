"""An SFTP client over any channel: many requests under way, and an end to every wait.

Requests are numbered and answered in any order. A server that answers nothing for a while although
it was asked is given up; one that breaks the protocol too. Then everything that waits fails, and so
does everything that comes after: the session is over.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Self

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Away, stopped_answering
from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import InFlightWrites, OutgoingFile
from shiftergw.sftp.packets import PacketBody, SftpRefused, Splitter, malformed, string

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from shiftergw.plumbing.channel import Channel

IN_FLIGHT = 8 << 20
"""Bytes of a file that a session has sent and that are not yet answered, at most."""

_PACKET = 32768  # of SSH; every SFTP server takes a WRITE that long
_LONG_WRITE = 7 * _PACKET
_LONGEST_HANDLE = 256  # by the draft
_END_SECONDS = 5.0  # in which a server that has nothing more to do ends

_Waiting = Deferred[tuple[int, PacketBody]] | tuple[InFlightWrites, int, int]


@implementer(IPushProducer)
class SftpSession:
    """A session; `begin` makes one. Methods raise `SftpRefused` and `DeliveryFailed`.

    Paths are bytes. A method that is cancelled leaves its answer to be ignored.
    """

    def __init__(self, channel: Channel, clock: IReactorTime, idle_seconds: float) -> None:
        """Speak over a channel that is open; give it up when an answer is so late."""
        self._channel = channel
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._patience: dict[int, float] = {}
        self._timer: Any = None
        self._splitter = Splitter()
        self._number = 0
        self._waiting: dict[int, _Waiting | None] = {}
        self._hello: Deferred[None] | None = None
        self.extensions: Mapping[bytes, bytes] = {}
        self._flights: set[InFlightWrites] = set()
        self._paused = False
        self._error: DeliveryFailed | None = None
        self.longest_write = _PACKET
        self._gone: Deferred[None] | None = None
        self.round_trip = inf
        """Seconds to the answer that came soonest."""

    @classmethod
    async def begin(
        cls,
        channel: Channel,
        clock: IReactorTime,
        idle_seconds: float,
        like: SftpSession | None = None,
    ) -> Self:
        """Greet the server; the channel is lost if that fails.

        Learn what the server can do, unless there is a session with the same one.
        """
        session = cls(channel, clock, idle_seconds)
        try:
            await session._begin(like)
        except BaseException:
            session.close()
            raise
        return session

    async def _begin(self, like: SftpSession | None) -> None:
        self._hello = Deferred()
        self._channel.closed.addCallbacks(self._on_exit, self._on_failure)
        self._channel.receive(self._on_data)
        self._channel.registerProducer(self, True)
        self._watch()
        self._channel.write(packets.hello())
        await self._hello
        if like is not None:
            self.longest_write = like.longest_write
        elif packets.LIMITS in self.extensions:
            with suppress(SftpRefused):
                self.longest_write = await self._longest_write()

    async def _longest_write(self) -> int:
        kind, body = await self.ask(packets.EXTENDED, string(packets.LIMITS))
        expect(packets.EXTENDED_REPLY, kind, body)
        body.long()
        body.long()
        longest = body.long()
        # Zero is no limit, and no promise either: OpenSSH takes packets of 256 KiB.
        return min(longest, _LONG_WRITE) if longest else _PACKET

    @property
    def usable(self) -> bool:
        """Say whether the session is not over."""
        return self._error is None

    def close(self) -> None:
        """End the session and whatever it still does."""
        self._fail(DeliveryFailed("The connection to the system was closed."))

    async def end(self) -> None:
        """End the session in order: return when the server has ended its own, or is too slow."""
        if self._error is None:
            gone: Deferred[None] = Deferred()
            self._gone = gone
            self._channel.end_input()
            late = self._clock.callLater(_END_SECONDS, self.close)
            try:
                await gone
            finally:
                if late.active():
                    late.cancel()

    async def write(self, handle: bytes, outgoing: OutgoingFile) -> None:
        """Write pieces of a file until there are no more; return when all of these are answered.

        Several sessions may write the same file: where one fails, all do.
        """
        longest = self.longest_write
        if longest == _LONG_WRITE:  # then it fills packets of SSH to the last byte
            longest -= packets.write_overhead(handle)
        flight = InFlightWrites(outgoing)
        self._flights.add(flight)
        try:
            while True:
                if self._paused or flight.under_way >= IN_FLIGHT:
                    await self._until(flight, IN_FLIGHT * 3 // 4)
                self._check(flight)
                piece = await outgoing.piece(longest)
                if piece is None:
                    break
                self._write(flight, handle, *piece)
            while flight.under_way:
                await self._until(flight, 0)
            self._check(flight)
        except BaseException as error:
            outgoing.stop(error)
            raise
        finally:
            self._flights.discard(flight)

    def _write(self, flight: InFlightWrites, handle: bytes, offset: int, piece: memoryview) -> None:
        number = self._sent((flight, offset, len(piece)))
        flight.under_way += len(piece)
        head = packets.write_head(number, handle, offset, len(piece))
        self._channel.writeSequence((head, piece))

    def _check(self, flight: InFlightWrites) -> None:
        if self._error is not None:
            raise copy.copy(self._error)
        if flight.error is not None:
            raise flight.error

    async def _until(self, flight: InFlightWrites, under_way: int) -> None:
        """Wait until no more than this is under way, and the channel takes more."""
        self._check(flight)
        flight.until = under_way
        flight.waiting = Deferred()
        await flight.waiting

    def _wake(self, flight: InFlightWrites) -> None:
        ready = flight.under_way <= flight.until and not (self._paused and flight.until)
        if ready or flight.error is not None:
            flight.wake()

    # The channel's producer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        for flight in list(self._flights):
            self._wake(flight)

    def stopProducing(self) -> None:
        self._paused = False

    # Requests and answers

    async def handle(self, kind: int, body: bytes) -> bytes:
        """Ask for what is answered with a handle."""
        answer, rest = await self.ask(kind, body)
        handle = expect(packets.HANDLE, answer, rest).string()
        if len(handle) > _LONGEST_HANDLE:
            raise malformed(f"a handle of {len(handle)} bytes")
        return handle

    async def extended(self, name: bytes, body: bytes, patience: float = 0) -> None:
        """Ask for what the protocol of old does not have; the server need not have it either."""
        if name not in self.extensions:
            raise SftpRefused(packets.UNSUPPORTED, name.decode())
        try:
            await self.do(packets.EXTENDED, string(name) + body, patience)
        except SftpRefused as refused:
            refused.request = name.decode()
            raise

    async def do(self, kind: int, body: bytes, patience: float = 0) -> None:
        """Ask for what is answered with no more than a status."""
        answer, _ = await self.ask(kind, body, patience)
        if answer != packets.STATUS:
            raise malformed(f"type {answer} where a status was expected")

    async def ask(self, kind: int, body: bytes, patience: float = 0) -> tuple[int, PacketBody]:
        """Send a request and return type and body of its answer; raise what its status says.

        The answer may take `patience` seconds, if that is more than the idle limit.
        """
        if self._error is not None:
            raise copy.copy(self._error)
        answer: Deferred[tuple[int, PacketBody]] = Deferred(lambda _: self._ignore(number))
        number = self._sent(answer)
        if patience:
            self._patience[number] = patience
            self._watch()
        asked = self._clock.seconds()
        self._channel.write(packets.request(kind, number, body))
        try:
            found = await answer
        except SftpRefused as refused:
            refused.request = packets.NAMES.get(kind, "")
            raise
        self.round_trip = min(self.round_trip, self._clock.seconds() - asked)
        return found

    def _sent(self, what: _Waiting) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._waiting[self._number] = what
        if self._timer is None:
            self._watch()
        return self._number

    def _ignore(self, number: int) -> None:
        self._waiting[number] = None

    def _on_data(self, data: bytes) -> None:
        try:
            for kind, body in self._splitter.feed(data):
                if self._error is not None:
                    return
                if self._hello is not None:
                    self._on_hello(kind, body)
                else:
                    self._on_answer(kind, body)
        except DeliveryFailed as error:
            self._fail(error if self._hello is None else _no_sftp(error.detail))
        else:
            self._watch()

    def _on_hello(self, kind: int, body: PacketBody) -> None:
        if kind != packets.VERSION or body.number() < 3:  # noqa: PLR2004 - the only version
            raise malformed(f"type {kind} as the first answer, or a version before 3")
        self.extensions = body.extensions()
        waiting, self._hello = self._hello, None
        assert waiting is not None
        if not waiting.called:
            waiting.callback(None)

    def _on_answer(self, kind: int, body: PacketBody) -> None:
        number = body.number()
        if number not in self._waiting:
            raise malformed(f"an answer to request {number}, which was not made")
        waiting = self._waiting.pop(number)
        self._patience.pop(number, None)
        refused = body.status() if kind == packets.STATUS else None
        if refused is not None and refused.status == packets.OK:
            refused = None
        if isinstance(waiting, tuple):
            if kind != packets.STATUS:
                raise malformed(f"type {kind} as the answer to a WRITE")
            flight, offset, length = waiting
            if refused is not None:
                refused.request = packets.NAMES[packets.WRITE]
            flight.settle(offset, length, refused)
            self._wake(flight)
        elif waiting is not None:
            if refused is not None:
                waiting.errback(refused)
            else:
                waiting.callback((kind, body))

    # The end

    def _watch(self) -> None:
        """Wait for the next answer, if one is due."""
        if self._error is None and (self._waiting or self._hello is not None):
            seconds = max([self._idle_seconds, *self._patience.values()])
            if self._timer is None:
                self._timer = self._clock.callLater(seconds, self._on_silence)
            else:
                self._timer.reset(seconds)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_silence(self) -> None:
        self._timer = None
        detail = f"an SFTP request without an answer for {self._idle_seconds:g} s or more"
        self._fail(stopped_answering(detail))

    def _on_exit(self, status: int | None) -> None:
        said = f": {self._channel.stderr}" if self._channel.stderr else ""
        detail = f"the SFTP server ended (status {status}){said}"
        self._fail(
            _no_sftp(detail)
            if self._hello is not None
            else Away("The system broke the connection.", detail=detail)
        )

    def _on_failure(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            error = DeliveryFailed("The connection to the system broke.", detail=repr(error))
        self._fail(error)

    def _fail(self, error: DeliveryFailed) -> None:
        """Be over, once."""
        if self._error is not None:
            return
        self._error = error
        waiting, self._waiting = self._waiting, {}
        hello, self._hello = self._hello, None
        self._watch()
        self._channel.unregisterProducer()
        self._channel.lose()
        for one in [hello, *waiting.values()]:
            if isinstance(one, Deferred) and not one.called:
                one.errback(copy.copy(error))
        for flight in list(self._flights):
            flight.fail(copy.copy(error))
            self._wake(flight)
        if self._gone is not None:
            gone, self._gone = self._gone, None
            gone.callback(None)


def _no_sftp(detail: str) -> DeliveryFailed:
    return DeliveryFailed(
        "The system's answer is not SFTP.",
        remedy="Tell the site's support: the account on the system must have SFTP, and its"
        " start-up files must print nothing.",
        detail=detail,
    )


def expect(wanted: int, kind: int, body: PacketBody) -> PacketBody:
    """Return the body of an answer if it is of the wanted type."""
    if kind != wanted:
        raise malformed(f"type {kind} where {wanted} was expected")
    return body
