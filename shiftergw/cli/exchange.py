"""Send one request to a gateway and read its answer, within a time limit.

What goes wrong is raised as one of the command line's own errors, which know the exit code.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet import error as internet_error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    ProxyAgent,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from shiftergw.cli.exits import Busy, Misused, NoGateway, Refused, Stop
from shiftergw.cli.proxy import proxy_for
from shiftergw.errors import amount, printable
from shiftergw.plumbing.http_heads import BoundedHeads, HeadTooLong
from shiftergw.plumbing.tls import CertificateRefused, ClientTls

CONNECT_LIMIT = 10.0

ANSWER_BYTES = 256_000_000
"""More than the longest list of images: what is longer is no gateway's answer."""

ERROR_TEXT_LIMIT = 1000
_OK = 200


@implementer(IAgentEndpointFactory)
class Exchange:
    """Requests to gateways, each over a connection of its own."""

    def __init__(self, reactor: Any) -> None:
        """Connect with `reactor`."""
        self._reactor = reactor
        self._tls: ClientTls | None = None

    async def ask(
        self, method: str, base: str, tail: str, *, credential: str, body: str, limit: float
    ) -> Any:
        """Return the JSON of the answer of the gateway at `base`, None if it is not JSON.

        Raises `NoGateway` if no answer comes within `limit` seconds, `Busy` if the gateway says
        that it cannot do it now, and `Refused` or `Misused` if it refuses.
        """
        asking = Deferred.fromCoroutine(self._ask(method, base, tail, credential, body))
        return await self._limited(base, asking, limit)

    async def _ask(self, method: str, base: str, tail: str, credential: str, body: str) -> Any:
        http, headers = self._way_to(base)
        headers.addRawHeader("authentication", credential)
        headers.addRawHeader("Content-Type", "application/json")
        response = await http.request(
            method,
            base + tail,
            headers=headers,
            data=body.encode() if method == "POST" else None,
            allow_redirects=False,
        )
        content = await _content_of(response)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if response.code != _OK:
            raise _refused(base, response.code, answer)
        return answer

    def _way_to(self, base: str) -> tuple[HTTPClient, Headers]:
        """Return who carries requests there, and what the proxy, if any, wants to read."""
        pool = HTTPConnectionPool(self._reactor, persistent=False)
        proxy = proxy_for(base, os.environ)
        if proxy is None:
            agent = Agent.usingEndpointFactory(self._reactor, self, pool)
            return HTTPClient(agent), Headers()
        endpoint = HostnameEndpoint(
            self._reactor, proxy.host.encode("idna"), proxy.port, timeout=CONNECT_LIMIT
        )
        headers = Headers()
        if proxy.authorization:
            headers.addRawHeader("Proxy-Authorization", proxy.authorization)
        return HTTPClient(ProxyAgent(BoundedHeads(endpoint), self._reactor, pool)), headers

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return how to connect to a gateway; for https its certificate is verified."""
        host = uri.host.decode("ascii").strip("[]")
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, uri.port, timeout=CONNECT_LIMIT
        )
        if uri.scheme == b"https":
            self._tls = self._tls or ClientTls()
            endpoint = wrapClientTLS(self._tls.to(host), endpoint)
        return BoundedHeads(endpoint)

    async def _limited(self, base: str, asking: Deferred[Any], limit: float) -> Any:
        """Return what `asking` returns; turn what treq raises into `NoGateway`.

        What a request raises that is cancelled depends on how far it was: `DNSLookupError` too.
        """
        late = cancelled = False

        def expire() -> None:
            nonlocal late
            late = True
            asking.cancel()

        def cancel(_: Deferred[Any]) -> None:
            nonlocal cancelled
            cancelled = True
            asking.cancel()

        answer: Deferred[Any] = Deferred(cancel)
        asking.addBoth(lambda result: None if answer.called else answer.callback(result))
        expiry = self._reactor.callLater(limit, expire)
        try:
            return await answer
        except Exception as error:
            if cancelled:
                raise CancelledError from error
            if isinstance(error, Stop):
                raise
            if late:
                raise silent(base, f"did not answer within {limit:.0f} s.") from error
            raise silent(base, f"cannot be reached: {_why(error)}") from error
        finally:
            if expiry.active():
                expiry.cancel()


def _content_of(response: Any) -> Deferred[bytes]:
    """Return the body of an answer; fail with `_TooLongError` beyond what a gateway sends."""
    content = _Content()
    response.deliverBody(content)
    return content.whole


class _TooLongError(Exception):
    """An answer is longer than `ANSWER_BYTES`."""


class _Content(Protocol):
    """Collects a body."""

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._stop())
        self._pieces: list[bytes] = []
        self._size = 0

    def _stop(self) -> None:
        transport: Any = self.transport
        transport.stopProducing()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= ANSWER_BYTES:
            self._pieces.append(data)
        elif not self.whole.called:
            self._pieces.clear()
            self._stop()
            self.whole.errback(_TooLongError())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)


def silent(base: str, why: str) -> NoGateway:
    """Return the error for a gateway that gives no answer of a gateway."""
    return NoGateway(f"The gateway {host_of(base)} {why}")


def host_of(base: str) -> str:
    """Return host and port of a gateway's URL, for a message."""
    return printable(urlsplit(base).netloc.rpartition("@")[2])


def _why(error: Exception) -> str:
    if isinstance(error, internet_error.ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(error, _TooLongError):
        return f"its answer is longer than {amount(ANSWER_BYTES)}: is it a gateway?"
    if isinstance(error, HeadTooLong):
        return f"it sent {error}: is it a gateway?"
    if isinstance(error, ResponseFailed):
        for reason in error.reasons:
            if isinstance(reason.value, CertificateRefused):
                return f"{reason.value}. {reason.value.remedy}"
        return "the connection broke."
    return printable(str(error) or type(error).__name__)


def _refused(base: str, status: int, answer: Any) -> Stop:
    text = answer.get("error") if isinstance(answer, dict) else None
    if not text:
        return silent(base, f"answers with HTTP status {status}: is it a gateway?")
    said = printable(str(text), ERROR_TEXT_LIMIT)
    if status in {401, 403, 404}:
        return Refused(said)
    if 400 <= status < 500 and status != 429:  # noqa: PLR2004
        return Misused(said)
    return Busy(f"The gateway {host_of(base)} cannot do this now: {said}")
