"""Twisted's HTTP server, restricted to what clients of the gateway can read.

`twisted.web` answers some requests itself: with HTML for errors, with a bare status line or a
closed connection for what it cannot parse, and it limits all headers to 16 KiB. Here every answer
is JSON with its length, and heads and bodies of up to 64 KiB are read. The time until a request is
complete and the time until its answer is received are limited; `web.connections` limits the number
of connections.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource

from shiftergw.errors import BadRequest, TooLarge
from shiftergw.model.uploads import CHUNK_LIMIT
from shiftergw.web.bodies import ArrivingBody, BodyReceiver
from shiftergw.web.channel import IDLE_LIMIT, LEAST_RATE, RequestChannel, headers_of
from shiftergw.web.connections import ConnectionLimits, ConnectionTable
from shiftergw.web.event_connection import EventConnection
from shiftergw.web.render import Answer
from shiftergw.web.spool import Spool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

BODY_LIMIT = 64 * 1024
"""Bytes of a body; two lists of 1000 ids have 22 KiB."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request before anything is decoded; `peer` is the address of the client.

    `credentials` are the values of the header `authentication`, which has munge credentials;
    `request_ids` are those of `X-Request-Id`. `is_secure` tells that the client uses TLS.
    """

    method: bytes
    path: bytes
    query: bytes = b""
    credentials: tuple[bytes, ...] = ()
    body: bytes = b""
    peer: str = ""
    authorization: tuple[bytes, ...] = ()
    request_ids: tuple[bytes, ...] = ()
    headers: Headers = field(default_factory=Headers)
    is_secure: bool = False

    def header(self, name: str) -> str:
        """Return the values of a header, with commas between them; "" if it is absent."""
        values = self.headers.getRawHeaders(name.encode("ascii"), ())
        return ", ".join(value.decode("latin-1") for value in values)


class Application(Protocol):
    """Answers calls; raises nothing but a cancellation."""

    def __call__(self, call: Call) -> Coroutine[Deferred[Any], Any, Answer]:
        """Return the answer to a call."""
        ...

    def only_reads(self, call: Call) -> bool:
        """Return whether a call changes nothing, so that it ends when its client hangs up."""
        ...

    def takes_long_body(self, call: Call) -> bool:
        """Return whether the body of a call may be long; then it is received by `open_body`."""
        ...

    def open_body(
        self, call: Call, size: int
    ) -> Coroutine[Deferred[Any], Any, BodyReceiver | Answer]:
        """Prepare for a long body of `size` bytes; return its receiver, or a refusal.

        Raises nothing but a cancellation. The call itself is then answered by the receiver.
        """
        ...

    def close(self) -> None:
        """Finish, after the last listener was closed."""
        ...


_NO_CREDENTIAL = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND})
"""Statuses of answers that do not show whether the credential is valid."""


def _body_too_large() -> TooLarge:
    return TooLarge(f"The request's body is larger than {BODY_LIMIT // 1024} KiB.")


class Request(server.Request):
    """One request, which the site's `Application` answers once it is complete."""

    channel: RequestChannel
    _body_size = 0
    _long_body: ArrivingBody | None = None

    def gotLength(self, length: int | None) -> None:
        """Prepare for the body once the head is complete; raise `TooLarge` or `BadRequest`."""
        channel = self.channel
        self.method, self.uri = channel.request_line
        self.path = self.uri.partition(b"?")[0]
        application = channel.site.application
        # Only PUT has a long body, so that look-ups do not pay for this question.
        call = self._call() if self.method == b"PUT" else None
        if call is None or not application.takes_long_body(call):
            super().gotLength(length)
            return
        if not length:
            raise BadRequest("A chunk of an upload needs a Content-Length, and at least one byte.")
        if length > CHUNK_LIMIT:
            raise TooLarge(f"A chunk of an upload has at most {CHUNK_LIMIT >> 20} MiB.")
        self.content = io.BytesIO()
        self._long_body = ArrivingBody(channel, length, application.open_body(call, length))

    def connectionLost(self, reason: Failure) -> None:
        """Let the receiver of a long body keep what has arrived of it."""
        if self._long_body is not None:
            self._long_body.abort()
        super().connectionLost(reason)

    def handleContentChunk(self, data: bytes) -> None:
        """Keep bytes of the body; raise `TooLarge` beyond `BODY_LIMIT`."""
        if self._long_body is not None:
            self._long_body.write(data)
            return
        self._body_size += len(data)
        if self._body_size > BODY_LIMIT:
            raise _body_too_large()
        super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Process a request that has arrived completely.

        Twisted's method also parses forms and the query. Only some versions can leave that out.
        """
        assert self.content is not None
        self.content.seek(0)
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.process()

    def process(self) -> None:
        """Answer the request.

        A call that only reads is cancelled when its client hangs up; a change is carried through.
        """
        assert self.content is not None
        call = replace(self._call(), body=self.content.read())
        hang_ups: list[Failure] = []
        application = self.channel.site.application
        if self._long_body is None:
            working = Deferred.fromCoroutine(application(call))
        else:
            working = Deferred.fromCoroutine(self._long_body.finish())

        def note_hang_up(reason: Failure) -> None:
            hang_ups.append(reason)
            if application.only_reads(call):
                working.cancel()

        def send(answer: Answer) -> None:
            if not hang_ups:
                if call.credentials and answer.status not in _NO_CREDENTIAL:
                    self.channel.has_credential = True
                self._send(answer)
            elif answer.spool is not None:
                answer.spool.close()
            elif answer.stream is not None:
                answer.stream.close()

        self.notifyFinish().addErrback(note_hang_up)
        working.addCallback(send)
        working.addErrback(lambda failure: failure.trap(CancelledError) and None)
        working.addErrback(lambda failure: self._log.failure("no answer sent", failure))

    def _call(self) -> Call:
        """Return the call of this request, without its body."""
        return Call(
            self.method,
            self.path,
            self.uri.partition(b"?")[2],
            tuple(self.requestHeaders.getRawHeaders(b"authentication", ())),
            peer=getattr(self.client, "host", ""),
            authorization=tuple(self.requestHeaders.getRawHeaders(b"authorization", ())),
            request_ids=tuple(self.requestHeaders.getRawHeaders(b"x-request-id", ())),
            headers=self.requestHeaders,
            is_secure=self.isSecure(),
        )

    def _send(self, answer: Answer) -> None:
        self.setResponseCode(answer.status)
        for name, value in headers_of(answer).items():
            self.setHeader(name, value)
        if "ETag" in answer.headers:
            self.setETag(answer.headers["ETag"].encode("ascii"))  # a client may have this answer
        if answer.stream is not None:
            self._send_events(answer.stream)
        elif answer.spool is None:
            self.write(answer.body)
            self.finish()
        else:
            self._send_file(answer.spool)

    def _send_events(self, stream: EventConnection) -> None:
        """Send events until the stream ends or the client hangs up."""
        if self.method == b"HEAD":
            stream.close()
            self.write(b"")
            self.finish()
            return
        self.notifyFinish().addErrback(lambda _: stream.abandon())
        stream.start(self)

    def _send_file(self, body: Spool) -> None:
        """Send a file as the client receives it; each piece and the whole have a time limit."""
        if self.method == b"HEAD":
            body.close()
            self.write(b"")
            self.finish()
            return
        limit = self.channel.callLater(IDLE_LIMIT, self.channel.forceAbortClient)
        seconds = IDLE_LIMIT + len(body) / LEAST_RATE
        total = self.channel.callLater(seconds, self.channel.forceAbortClient)

        def extend_limit(data: bytes) -> bytes:
            if limit.active():
                limit.reset(IDLE_LIMIT)
            return data

        def finish(result: object) -> None:
            for call in (limit, total):
                if call.active():
                    call.cancel()
            body.close()
            if not isinstance(result, Failure):  # a failure means that the client hung up
                self.finish()

        FileSender().beginFileTransfer(body.open(), self, extend_limit).addBoth(finish)


class Site(server.Site):
    """The gateway's web site."""

    protocol: Callable[[], Any] = RequestChannel
    requestFactory = Request  # noqa: N815 - Twisted's name

    def __init__(
        self, application: Application, clock: IReactorTime, limits: ConnectionLimits | None = None
    ) -> None:
        super().__init__(Resource(), timeout=IDLE_LIMIT, reactor=clock)
        self.application = application
        self.limits = limits or ConnectionLimits()
        self.connections = ConnectionTable(self.limits, clock)

    def getContentFile(self, length: int | None) -> io.BytesIO:
        """Return a buffer for the body; raise `TooLarge` if `Content-Length` is too large."""
        if length is not None and length > BODY_LIMIT:
            raise _body_too_large()
        return io.BytesIO()

    def startFactory(self) -> None:
        """Open no access log; `web.journal` logs requests."""

    def stopFactory(self) -> None:
        """Close the connections and the application after the last listener."""
        self.connections.close()
        self.application.close()

    def log(self, request: Any) -> None:
        """Log nothing: see `startFactory`."""
