"""Twisted's HTTP server, held to what our clients can read.

`twisted.web` answers much by itself: HTML for errors, a bare status line or a closed connection
for what it cannot parse, 16 KiB for all headers. Here every answer is ours, JSON with its length;
heads and bodies up to 64 KiB are read and no byte more is kept. A request has a limit of time until
it is whole, an answer one until it is taken; how many connections there may be is in `connections`.
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
from twisted.web.resource import Resource

from shiftergw.errors import TooLarge
from shiftergw.web.channel import IDLE_LIMIT, Channel, headers_of
from shiftergw.web.connections import ConnectionLimits, Connections
from shiftergw.web.render import Answer
from shiftergw.web.spool import Spool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

BODY_LIMIT = 64 * 1024
"""Bytes of a body: two lists of 1000 ids are 22 KiB."""

LEAST_RATE = 16 << 10
"""Bytes a second that a client takes of a long list at least: all lists share their room."""


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


_NO_CREDENTIAL = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND})
"""Statuses of answers that say nothing about whether the credential is valid."""


def _body_too_large() -> TooLarge:
    return TooLarge(f"The request's body is larger than {BODY_LIMIT // 1024} KiB.")


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
            if call.credentials and answer.status not in _NO_CREDENTIAL:
                self.channel.has_credential = True
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
        for name, value in headers_of(answer).items():
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
            if limit.active():
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

    def __init__(
        self, answers: Answers, clock: IReactorTime, limits: ConnectionLimits | None = None
    ) -> None:
        """Answer with `answers`."""
        super().__init__(Resource(), timeout=IDLE_LIMIT, reactor=clock)
        self.answers = answers
        self.limits = limits or ConnectionLimits()
        self.connections = Connections(self.limits, clock)

    def getContentFile(self, length: int | None) -> io.BytesIO:
        """Return where a body goes; raise `TooLarge` before it is sent if it says so itself."""
        if length is not None and length > BODY_LIMIT:
            raise _body_too_large()
        return io.BytesIO()

    def startFactory(self) -> None:
        """Open no access log: there is one line of our own for each request."""

    def stopFactory(self) -> None:
        """Pass on that the last listener is gone."""
        self.connections.close()
        self.answers.closed()

    def log(self, request: Any) -> None:
        """Log nothing: see `startFactory`."""
