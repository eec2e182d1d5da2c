"""Twisted's HTTP server, held to what our clients can read.

`twisted.web` answers much by itself: HTML for errors, a bare status line or a closed connection
for what it cannot parse, 16 KiB for all headers. Here every answer is ours, JSON with its length;
heads and bodies up to 64 KiB are read and no byte more is kept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.resource import Resource

from shiftergw.errors import BadRequest, GatewayError, TooLarge
from shiftergw.web import render
from shiftergw.web.render import Answer
from shiftergw.web.spool import Spool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

HEAD_LIMIT = 64 * 1024
"""Bytes of a request line and all headers: all logins of a user travel in one of them."""

BODY_LIMIT = 64 * 1024
"""Bytes of a body: two lists of 1000 ids are 22 KiB."""

IDLE_LIMIT = 60
"""Seconds that a connection may stay silent."""

LEAST_RATE = 16 << 10
"""Bytes a second that a client takes of a long list at least: all lists share their room."""

LINGER = 5.0
"""Seconds for which a refused requester may go on sending; what he sends is dropped."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in: nothing is decoded yet. `peer` is the address it came from."""

    method: bytes
    path: bytes
    query: bytes = b""
    credentials: tuple[bytes, ...] = ()
    body: bytes = b""
    peer: str = ""


class Answers(Protocol):
    """Whoever knows the answer to a call; never raises anything but a cancellation."""

    def __call__(self, call: Call) -> Coroutine[Deferred[Any], Any, Answer]:
        """Return the answer."""
        ...

    def only_reads(self, call: Call) -> bool:
        """Say whether nobody but its requester cares how a call ends."""
        ...

    def closed(self) -> None:
        """Take note that nobody listens for calls any more."""
        ...


class Channel(HTTPChannel):
    """One connection: refuses in JSON what cannot be parsed or is too large."""

    totalHeadersSize = HEAD_LIMIT  # noqa: N815 - Twisted's name
    MAX_LENGTH = HEAD_LIMIT
    site: Site
    _refused = False

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, or drop them once the requester has been refused."""
        if not self._refused:
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head."""
        try:
            super().lineReceived(line)
        except GatewayError as error:
            self._refuse(error)
        except ValueError:  # a Content-Length of thousands of digits
            self._respondToBadRequestAndDisconnect()

    def rawDataReceived(self, data: bytes) -> None:
        """Take bytes of the body."""
        try:
            super().rawDataReceived(data)
        except GatewayError as error:
            self._refuse(error)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        """Refuse a line that alone is larger than a head may be."""
        self._refuse(_head_too_large())

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse; Twisted calls this for whatever it cannot parse, and for too large a head."""
        if self._receivedHeaderSize > HEAD_LIMIT:
            self._refuse(_head_too_large())
        else:
            self._refuse(BadRequest("This is not an HTTP/1.1 request that the gateway reads."))

    def _refuse(self, error: GatewayError) -> None:
        """Answer and say goodbye, but go on reading for a moment.

        A connection closed on unread bytes is reset, and the answer may be lost with it.
        """
        if self._refused:
            return
        self._refused = True
        self.clearLineBuffer()
        self.setTimeout(None)
        answer = render.refusal(error)
        headers = {**_headers(answer), b"Connection": b"close"}
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


def _body_too_large() -> TooLarge:
    return TooLarge(f"The request's body is larger than {BODY_LIMIT // 1024} KiB.")


def _headers(answer: Answer) -> dict[bytes, bytes]:
    """Return the headers of an answer, in full."""
    return {
        b"Server": b"shiftergw",
        b"Date": datetimeToString(),
        b"Content-Type": answer.content_type,
        b"Content-Length": b"%d" % len(answer.spool or answer.body),
        **{name.encode("ascii"): value.encode("ascii") for name, value in answer.headers.items()},
    }


class Request(server.Request):
    """One request, given whole to the site's `Answers`."""

    channel: Channel
    _received = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Keep bytes of the body; raise `TooLarge` at the first one too many."""
        self._received += len(data)
        if self._received > BODY_LIMIT:
            raise _body_too_large()
        super().handleContentChunk(data)

    def process(self) -> None:
        """Have the request answered.

        A read ends when its requester hangs up; what changes something outlives him.
        """
        assert self.content is not None
        call = Call(
            self.method,
            self.path,
            self.uri.partition(b"?")[2],
            tuple(self.requestHeaders.getRawHeaders(b"authentication", ())),
            self.content.read(),
            getattr(self.client, "host", ""),
        )
        gone: list[Failure] = []
        answers = self.channel.site.answers
        working = Deferred.fromCoroutine(answers(call))

        def hung_up(reason: Failure) -> None:
            gone.append(reason)
            if answers.only_reads(call):
                working.cancel()

        def send(answer: Answer) -> None:
            if not gone:
                self._send(answer)
            elif answer.spool is not None:
                answer.spool.close()

        self.notifyFinish().addErrback(hung_up)
        working.addCallback(send)
        working.addErrback(lambda failure: failure.trap(CancelledError) and None)
        working.addErrback(lambda failure: self._log.failure("no answer sent", failure))

    def _send(self, answer: Answer) -> None:
        self.setResponseCode(answer.status)
        for name, value in _headers(answer).items():
            self.setHeader(name, value)
        if answer.spool is None:
            self.write(answer.body)
            self.finish()
        else:
            self._send_file(answer.spool)

    def _send_file(self, body: Spool) -> None:
        """Send as fast as the client takes it, which has a limit for each piece and for all."""
        if self.method == b"HEAD":
            body.close()
            self.write(b"")
            self.finish()
            return
        limit = self.channel.callLater(IDLE_LIMIT, self.channel.forceAbortClient)
        seconds = IDLE_LIMIT + len(body) / LEAST_RATE
        total = self.channel.callLater(seconds, self.channel.forceAbortClient)

        def taken(data: bytes) -> bytes:
            limit.reset(IDLE_LIMIT)
            return data

        def ended(result: object) -> None:
            for call in (limit, total):
                if call.active():
                    call.cancel()
            body.close()
            if not isinstance(result, Failure):  # he has hung up otherwise
                self.finish()

        FileSender().beginFileTransfer(body.open(), self, taken).addBoth(ended)


class Site(server.Site):
    """The gateway's web site."""

    protocol: Callable[[], Any] = Channel
    requestFactory = Request  # noqa: N815 - Twisted's name

    def __init__(self, answers: Answers, clock: IReactorTime) -> None:
        """Answer with `answers`."""
        super().__init__(
            Resource(), timeout=IDLE_LIMIT, reactor=clock, parsePOSTFormSubmission=False
        )
        self.answers = answers

    def getContentFile(self, length: int | None) -> io.BytesIO:
        """Return where a body goes; raise `TooLarge` before it is sent if it says so itself."""
        if length is not None and length > BODY_LIMIT:
            raise _body_too_large()
        return io.BytesIO()

    def startFactory(self) -> None:
        """Open no access log: there is one line of our own for each request."""

    def stopFactory(self) -> None:
        """Pass on that the last listener is gone."""
        self.answers.closed()

    def log(self, request: Any) -> None:
        """Log nothing: see `startFactory`."""
