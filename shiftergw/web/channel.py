"""The server side of one HTTP connection: time limits, and errors in JSON."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import connectionDone
from twisted.web.http import HTTPChannel, datetimeToString

from shiftergw.errors import BadRequest, GatewayError, TooLarge, TooSlow
from shiftergw.web import render
from shiftergw.web.render import Answer

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from shiftergw.web.site import Request, Site

HEAD_LIMIT = 64 * 1024
"""Bytes of a request line and all headers: all logins of a user travel in one of them."""

IDLE_LIMIT = 60
"""Seconds that a connection may stay silent."""

TURN_BYTES = 2048
"""Bytes of a connection that one turn of the reactor parses: some may be expensive."""

READ_BYTES = 64 * 1024
"""Bytes that a connection reads at once; such a part of a long body is cheap to pass on."""

LEAST_RATE = 16 << 10
"""Bytes a second at which a client must send a long body or receive a long list."""

LINGER = 5.0
"""Seconds for which a refused client may continue to send; its bytes are dropped."""


class RequestChannel(HTTPChannel):
    """One connection: answers in JSON also what it cannot parse or what is too large."""

    totalHeadersSize = HEAD_LIMIT  # noqa: N815 - Twisted's name
    MAX_LENGTH = HEAD_LIMIT
    site: Site
    has_credential = False
    _is_refused = False
    _request_timer: Any = None
    _unparsed_bytes = b""
    _resume_call: Any = None
    _request_seconds = 0.0
    _turn_bytes = TURN_BYTES
    _is_held = False
    _awaits_invitation = False

    def connectionMade(self) -> None:
        """Register the connection and wait for a request."""
        super().connectionMade()
        assert self.transport is not None
        peer = getattr(self.transport.getPeer(), "host", "")
        self.site.connections.add(self, peer, getattr(self.transport, "server", None))
        self._expect_request()

    def dataReceived(self, data: bytes) -> None:
        """Parse bytes, or drop them after the client was refused."""
        if self._is_refused:
            return
        if self._unparsed_bytes or self._is_held:
            self._unparsed_bytes += data
            self._networkProducer.pauseProducing()
            return
        self._expect_request()
        size = self._turn_bytes
        self._unparsed_bytes = data[size:]
        super().dataReceived(data[:size])
        if self._unparsed_bytes:
            self._continue_later()

    def _expect_request(self) -> None:
        """Limit the time until a request is complete; further bytes do not extend it."""
        if self._request_timer is None and not self._handlingRequest:
            self._limit_request(self.site.limits.request_seconds)

    def _limit_request(self, seconds: float) -> None:
        self._request_seconds = seconds
        self._request_timer = self.callLater(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._request_timer = None
        seconds = self._request_seconds
        self.refuse(TooSlow(f"The request was not complete after {seconds:g} s."))

    @property
    def request_line(self) -> tuple[bytes, bytes]:
        """Return the method and the path, with its query, of a request whose head has arrived."""
        return self._command, self._path

    def _send100Continue(self) -> None:
        """Invite the body of a client that waits for that; a long one once its sender is known."""
        if self._is_held:
            self._awaits_invitation = True
        else:
            super()._send100Continue()

    def hold(self) -> None:
        """Read nothing more until `release`."""
        self._is_held = True
        self._networkProducer.pauseProducing()

    def release(self) -> None:
        """Continue to read after `hold`."""
        if not self._is_held:
            return
        self._is_held = False
        self.resetTimeout()
        if self._unparsed_bytes:
            self._continue_later()
        elif not self._waitingForTransport and not self._is_refused:
            self._networkProducer.resumeProducing()

    def expect_body(self, size: int) -> None:
        """Give the client time for a long body; from now on the connection is busy."""
        if self._is_refused:
            return
        self._forget_limit()
        if not self._handlingRequest:
            self._limit_request(IDLE_LIMIT + size / LEAST_RATE)
        if self._awaits_invitation:
            super()._send100Continue()
        self._awaits_invitation = False
        self._turn_bytes = READ_BYTES
        self.has_credential = True
        self.site.connections.note_busy(self)

    def _forget_limit(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def allContentReceived(self) -> None:
        """Answer a request that has arrived completely."""
        self._forget_limit()
        self._turn_bytes = TURN_BYTES
        self._awaits_invitation = False
        self.site.connections.note_busy(self)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """Wait for the next request, or close once the client has received the answer.

        Pipelined requests continue in a later turn of the reactor, and only while the client
        receives its answers. Otherwise a client that pipelines thousands of requests would delay
        all other clients, and unsent answers would fill the memory.
        """
        self.site.connections.note_waiting(self)
        pipelined_bytes = b"".join([*self._dataBuffer, self.clearLineBuffer()])
        self._dataBuffer: list[bytes] = []
        if not self.persistent:
            self._abortingCall = self.callLater(IDLE_LIMIT, self.forceAbortClient)
            self._unparsed_bytes = b""
            super().requestDone(request)
            return
        super().requestDone(request)
        self._unparsed_bytes = pipelined_bytes + self._unparsed_bytes
        if self._unparsed_bytes:
            self._continue_later()

    def resumeProducing(self) -> None:
        """Continue after the client has received most of the bytes that were sent to it."""
        super().resumeProducing()
        if self._unparsed_bytes:
            self._continue_later()

    def _continue_later(self) -> None:
        self._networkProducer.pauseProducing()
        if self._resume_call is None:
            self._resume_call = self.callLater(0, self._continue)

    def _continue(self) -> None:
        """Parse the next bytes, unless the client does not receive its answers."""
        self._resume_call = None
        if self._unparsed_bytes and not self._waitingForTransport and not self._is_held:
            data, self._unparsed_bytes = self._unparsed_bytes, b""
            self._networkProducer.resumeProducing()
            self.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection after it was closed."""
        self._forget_limit()
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        self._unparsed_bytes = b""
        self.site.connections.remove(self)
        super().connectionLost(reason)

    def make_way(self) -> None:
        """Close at once, to make room for other connections."""
        self._is_refused = True
        self._forget_limit()
        transport: Any = self.transport
        transport.abortConnection()

    def lineReceived(self, line: bytes) -> None:
        """Parse a line of the head; its delimiter counts too, since short lines cost the most."""
        self._receivedHeaderSize += len(self.delimiter)
        try:
            super().lineReceived(line)
        except GatewayError as error:
            self.refuse(error)
        except ValueError:  # a Content-Length of thousands of digits
            self._respondToBadRequestAndDisconnect()

    def rawDataReceived(self, data: bytes) -> None:
        """Receive bytes of the body or of pipelined requests; read few of the latter ahead.

        Twisted reads pipelined requests without a limit while a client does not receive its answer.
        """
        try:
            super().rawDataReceived(data)
        except GatewayError as error:
            self.refuse(error)
        if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            self._networkProducer.pauseProducing()

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        """Refuse a line that is longer than a whole head may be."""
        self.refuse(_head_too_large())

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse a head that Twisted cannot parse or that is too large."""
        if self._receivedHeaderSize > HEAD_LIMIT:
            self.refuse(_head_too_large())
        else:
            self.refuse(BadRequest("This is not an HTTP/1.1 request that the gateway reads."))

    def refuse(self, reason: GatewayError | Answer) -> None:
        """Send an error and close, but continue to read for a moment.

        A connection closed on unread bytes is reset, and the answer may be lost with it.
        """
        if self._is_refused:
            return
        self._is_refused = True
        self._forget_limit()
        self._unparsed_bytes = b""
        self.clearLineBuffer()
        self.setTimeout(None)
        if self._is_held:
            self._is_held = False
            self._networkProducer.resumeProducing()
        answer = render.refusal(reason) if isinstance(reason, GatewayError) else reason
        headers = {**headers_of(answer), b"Connection": b"close"}
        status = HTTPStatus(answer.status)
        self.writeHeaders(
            b"HTTP/1.1", b"%d" % status, status.phrase.encode("ascii"), headers.items()
        )
        self.write(answer.body)
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is None or self.isSecure():  # TLS has no half
            self.loseConnection()
        else:
            half_close()
        self._abortingCall = self.callLater(LINGER, self.forceAbortClient)


def _head_too_large() -> TooLarge:
    return TooLarge(f"The request's headers are larger than {HEAD_LIMIT // 1024} KiB.")


def headers_of(answer: Answer) -> dict[bytes, bytes]:
    """Return all headers of an answer; the length of a stream is unknown."""
    length = {b"Content-Length": b"%d" % len(answer.spool or answer.body)}
    return {
        b"Server": b"shiftergw",
        b"Date": datetimeToString(),
        b"Content-Type": answer.content_type,
        **(length if answer.stream is None else {}),
        **{name.encode("ascii"): value.encode("ascii") for name, value in answer.headers.items()},
    }
