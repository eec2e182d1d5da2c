"""Bound the response heads that Twisted's HTTP client reads.

Twisted bounds a line (16 kB), but neither their number, nor the 1xx responses before the one that
counts: a server that sends header lines without end fills the memory. A connection made through
`BoundedHeads` is aborted instead.
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
    """An endpoint whose connections, made for `twisted.web.client`, have bounded heads.

    Their requests fail with `HeadTooLong` beyond.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect by `endpoint`."""
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        """Return the connected protocol; fail as the endpoint does."""
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addCallback(_bound)


def _bound(connection: Any) -> Any:
    head = _Head(connection)
    # The pool keeps the connection object itself, so its methods are replaced on the object.
    connection.request = head.request
    connection.dataReceived = head.receive
    return connection


class _Head:
    """Counts what arrives on one connection between a request and its response."""

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
        """Send a request, and return the response as soon as its head has arrived."""
        self._waiting = True
        self._requests += 1
        self._bytes = self._lines = self._line = 0
        response: Deferred[Any] = self._send(request)
        return response.addBoth(self._answered)

    def receive(self, data: bytes) -> None:
        """Pass received bytes on, and abort the connection if the head goes on too long."""
        requests = self._requests
        self._pass_on(data)
        # The response fires while the last byte of its head is passed on; and if its body ends
        # there, too, the next request may be on its way by now.
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

    def _answered(self, result: Any) -> Any:
        self._waiting = False
        return Failure(HeadTooLong()) if self._too_long else result
