"""Limit the size of the response heads that Twisted's HTTP client reads.

Twisted limits the length of a line, to 16 kB, which some signed URLs exceed, but neither the number
of lines nor the 1xx responses before the final response: a server that sends header lines without
end exhausts the memory. A connection made through `BoundedHeads` is aborted beyond the limits of
`head_limits.py` instead.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.plumbing.head_limits import MAX_BYTES, MAX_LINE, MAX_LINES, HeadTooLong


@implementer(IStreamClientEndpoint)
class BoundedHeads:
    """An endpoint for `twisted.web.client` whose requests fail with `HeadTooLong` beyond limits."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect through `endpoint`."""
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        """Return the connected protocol, or the failure of the endpoint."""
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addCallback(_limit_heads)


def _limit_heads(connection: Any) -> Any:
    head = _Head(connection)
    # The pool keeps the connection object, so its methods are replaced on this object.
    connection.request = head.request
    connection.dataReceived = head.receive
    return connection


class _Head:
    """Counts the bytes and lines that arrive on a connection between request and response."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pass_on = connection.dataReceived
        self._send = connection.request
        self._waiting = False
        self._requests = 0
        self._too_long = False
        self._bytes = 0
        self._lines = 0
        self._line = 0

    def request(self, request: Any) -> Deferred[Any]:
        """Send a request; return the response as soon as its head has arrived."""
        self._waiting = True
        self._requests += 1
        self._bytes = self._lines = self._line = 0
        response: Deferred[Any] = self._send(request)
        # Twisted makes a parser for each request; if it exceeds its own limit on lines, it ends the
        # connection without a reason. Without this attribute that limit holds.
        parser = getattr(self._connection, "_parser", None)
        if parser is not None:
            parser.MAX_LENGTH = MAX_BYTES
        return response.addBoth(self._end_head)

    def receive(self, data: bytes) -> None:
        """Pass received bytes on, and abort the connection if the head is too long."""
        requests = self._requests
        self._pass_on(data)
        # The response fires while the last byte of its head is passed on. If its body ends there
        # too, the next request may already be sent by now.
        if not self._waiting or self._requests != requests:
            return
        self._bytes += len(data)
        self._lines += data.count(b"\n")
        end = data.rfind(b"\n") + 1
        self._line = len(data) - end + (0 if end else self._line)
        if self._bytes > MAX_BYTES or self._lines > MAX_LINES or self._line > MAX_LINE:
            self._too_long = True
            self._waiting = False
            self._connection.abort()

    def _end_head(self, result: Any) -> Any:
        self._waiting = False
        return Failure(HeadTooLong()) if self._too_long else result
