"""Receive the long body of a request while it arrives, as fast as its receiver takes it.

Theory of operation: once the head of the request is complete, the connection is held (nothing is
read from it) until the receiver is open. The client is authenticated in that time, so nobody else
can send a long body. Then the body is passed on in parts; the connection is held while more than
`MOST_WAITING` bytes wait for the receiver.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.errors import GatewayError
from shiftergw.web.render import Answer

if TYPE_CHECKING:
    from shiftergw.web.channel import RequestChannel

PART = 256 << 10
"""Bytes that are passed on at once; fewer only at the end of a body."""

MOST_WAITING = 2 * PART
"""Bytes of a body in memory beyond which its connection is held."""


class BodyReceiver(Protocol):
    """Receives the body of one request; its methods are called in turn."""

    async def write(self, data: bytes) -> Answer | None:
        """Take the next bytes; return an answer to refuse the rest of the body."""
        ...

    async def finish(self) -> Answer:
        """Return the answer to the request, whose body has arrived completely."""
        ...

    async def abort(self) -> None:
        """Keep what has arrived of a body whose rest will not arrive."""
        ...


class ArrivingBody:
    """The body of a request that is arriving at a connection."""

    _log = Logger()

    def __init__(
        self,
        channel: RequestChannel,
        size: int,
        opening: Coroutine[Deferred[Any], Any, BodyReceiver | Answer],
    ) -> None:
        """Expect `size` bytes; hold the connection until `opening` has returned a receiver."""
        self._channel = channel
        self._size = size
        self._parts: list[bytes] = []
        self._waiting = 0
        self._is_complete = False
        self._is_aborted = False
        self._answer: Deferred[Answer] = Deferred()
        self._wakeup: Deferred[None] | None = None
        """Fires when there are bytes to pass on, and at the end."""
        channel.hold()
        self._work = Deferred.fromCoroutine(self._receive(opening))
        self._work.addErrback(self._fail)

    def write(self, data: bytes) -> None:
        """Pass bytes on, in turn; hold the connection while many of them wait."""
        if self._answer.called or self._is_aborted:
            return
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting >= MOST_WAITING:
            self._channel.hold()
        self._wake()

    async def finish(self) -> Answer:
        """Return the answer to the request once all bytes have been passed on."""
        self._is_complete = True
        self._wake()
        return await self._answer

    def abort(self) -> None:
        """Let the receiver keep what has arrived, unless the whole body has."""
        if not self._is_complete:
            self._is_aborted = True
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None:
            wakeup, self._wakeup = self._wakeup, None
            wakeup.callback(None)

    async def _receive(self, opening: Coroutine[Deferred[Any], Any, BodyReceiver | Answer]) -> None:
        receiver = await opening
        if isinstance(receiver, Answer):
            self._refuse(receiver)
            return
        if not (self._is_complete or self._is_aborted):
            self._channel.expect_body(self._size)
        try:
            await self._pass_on(receiver)
        except BaseException:
            await receiver.abort()
            raise

    async def _pass_on(self, receiver: BodyReceiver) -> None:
        while True:
            part = self._next_part()
            self._channel.release()
            if part:
                answer = await receiver.write(part)
                if answer is not None:
                    await receiver.abort()
                    self._refuse(answer)
                    return
            elif self._is_complete:
                self._answer.callback(await receiver.finish())
                return
            elif self._is_aborted:
                await receiver.abort()
                return
            else:
                self._wakeup = Deferred()
                await self._wakeup

    def _next_part(self) -> bytes:
        """Return the next bytes to pass on: `PART` bytes, or fewer only at the end."""
        if self._waiting < PART and not (self._is_complete or self._is_aborted):
            return b""
        part = b"".join(self._parts)
        self._parts.clear()
        self._waiting = 0
        return part

    def _refuse(self, answer: Answer) -> None:
        """Answer at once; the rest of the body is not read."""
        self._answer.callback(answer)  # from now on further bytes are dropped
        if self._is_complete:
            self._channel.release()
        elif not self._is_aborted:
            self._channel.refuse(answer)

    def _fail(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("the body of a request was not received", failure)
        if not self._answer.called:
            self._answer.errback(failure)
            if not self._is_complete:
                self._answer.addErrback(lambda _: None)
                self._channel.refuse(GatewayError("Something went wrong in the gateway."))
