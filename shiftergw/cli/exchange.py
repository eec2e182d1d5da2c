"""Send one request to a gateway and read its answer, within a time limit.

What goes wrong is raised as one of the command line's own errors, which know the exit code.
"""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    ContentDecoderAgent,
    FileBodyProducer,
    GzipDecoder,
    HTTPConnectionPool,
    ProxyAgent,
    ResponseDone,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from shiftergw.cli.exits import Stop
from shiftergw.cli.gateway_errors import AnswerTooLong, late, refused, unreachable
from shiftergw.cli.proxy import Proxy, proxy_for
from shiftergw.plumbing.http_heads import BoundedHeads
from shiftergw.plumbing.tls import ClientTls

CONNECT_LIMIT = 10.0

_URI = "%:/?#[]@!$&'()*+,;="
"""ASCII punctuation of a URI, besides what is always unreserved (RFC 3986, section 2)."""

ANSWER_BYTES = 256_000_000
"""More than the longest list of images: what is longer is no gateway's answer."""


@implementer(IAgentEndpointFactory)
class Exchange:
    """Requests to gateways, each over a connection of its own."""

    def __init__(self, reactor: Any) -> None:
        """Connect with `reactor`."""
        self._reactor = reactor
        self._tls: ClientTls | None = None

    async def ask(
        self,
        method: str,
        base: str,
        tail: str,
        *,
        credential: str,
        body: str,
        limit: float,
        head_limit: float | None = None,
    ) -> Any:
        """Return the JSON of the answer of the gateway at `base`, None if it is not JSON.

        Raises `NoGateway` if no answer is complete within `limit` seconds, or none has begun within
        `head_limit` (None: no such limit), `Busy` if the gateway says that it cannot do it now, and
        `Refused` or `Misused` if it refuses.
        """
        proxy = proxy_for(base, os.environ)
        waiting = _Waiting(self._reactor, limit, head_limit or limit)
        headers = Headers()
        headers.addRawHeader("authentication", credential)
        headers.addRawHeader("Content-Type", "application/json")
        content = FileBodyProducer(BytesIO(body.encode())) if body else None

        async def answer() -> Any:
            agent = self._agent(proxy, headers)
            uri = uri_of(base, tail)
            response = await agent.request(method.encode(), uri, headers, content)
            waiting.begin_body()
            document = _parsed(await _content_of(response))
            if response.code != HTTPStatus.OK:
                location = b"".join(response.headers.getRawHeaders(b"location", ())[:1])
                raise refused(base, proxy, response.code, location.decode("latin-1"), document)
            return document

        try:
            return await waiting.result_of(Deferred.fromCoroutine(answer()))
        except (Stop, CancelledError):
            raise
        except TimeoutError as error:
            raise late(base, proxy, waiting.limit) from error
        except Exception as error:
            raise unreachable(base, proxy, error) from error

    def _agent(self, proxy: Proxy | None, headers: Headers) -> Any:
        """Return what sends requests, and add the login of the proxy to their `headers`."""
        pool = HTTPConnectionPool(self._reactor, persistent=False)
        agent: Any
        if proxy is None:
            agent = Agent.usingEndpointFactory(self._reactor, self, pool)
        else:
            endpoint = HostnameEndpoint(
                self._reactor, proxy.host, proxy.port, timeout=CONNECT_LIMIT
            )
            if proxy.authorization:
                headers.addRawHeader("Proxy-Authorization", proxy.authorization)
            agent = ProxyAgent(BoundedHeads(endpoint), self._reactor, pool)
        return ContentDecoderAgent(agent, [(b"gzip", GzipDecoder)])

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return how to connect to a gateway; for https its certificate is verified."""
        # The zone of an IPv6 address is written `%25eth0` in a URL (RFC 6874), or as it is.
        host = uri.host.decode("ascii").strip("[]").replace("%25", "%")
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, uri.port, timeout=CONNECT_LIMIT
        )
        if uri.scheme == b"https":
            self._tls = self._tls or ClientTls()
            endpoint = wrapClientTLS(self._tls.to(host), endpoint)
        return BoundedHeads(endpoint)


class _Waiting:
    """The limits of time for one answer: first for its head, then for all of it."""

    def __init__(self, reactor: Any, limit: float, head_limit: float) -> None:
        """Give an answer `limit` seconds, and its head no more than `head_limit`."""
        self._reactor = reactor
        self._end = reactor.seconds() + limit
        self._whole = limit
        self.limit = min(limit, head_limit)
        """The limit in seconds that applies now."""
        self._expiry: Any = None

    def begin_body(self) -> None:
        """Note that the head has arrived."""
        self.limit = self._whole
        self._expiry.reset(max(0, self._end - self._reactor.seconds()))

    async def result_of(self, request: Deferred[Any]) -> Any:
        """Return the result of a request; raise `TimeoutError` once a limit is reached.

        What a cancelled request raises depends on how far it was: `DNSLookupError`, for example.
        So a cancellation of this method always raises `CancelledError`.
        """
        is_late = is_cancelled = False

        def expire() -> None:
            nonlocal is_late
            is_late = True
            request.cancel()

        def cancel(_: Deferred[Any]) -> None:
            nonlocal is_cancelled
            is_cancelled = True
            request.cancel()

        result: Deferred[Any] = Deferred(cancel)
        self._expiry = self._reactor.callLater(self.limit, expire)
        request.addBoth(lambda value: None if result.called else result.callback(value))
        try:
            return await result
        except Exception as error:
            if is_cancelled:
                raise CancelledError from error
            if is_late and not isinstance(error, Stop):
                raise TimeoutError from error
            raise
        finally:
            if self._expiry.active():
                self._expiry.cancel()


def uri_of(base: str, tail: str) -> bytes:
    """Return the URI of `tail` below a gateway's base URL, in ASCII as HTTP has it (RFC 3987)."""
    parts = urlsplit(base)
    host = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna")
    path = base.partition("://")[2][len(parts.netloc) :] + tail
    return b"%b://%b%b" % (parts.scheme.encode(), host, quote(path, safe=_URI).encode())


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _content_of(response: Any) -> Deferred[bytes]:
    """Return the body of an answer; fail with `AnswerTooLong` beyond what a gateway sends."""
    content = _Content()
    response.deliverBody(content)
    return content.whole


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
            self.whole.errback(AnswerTooLong(ANSWER_BYTES))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)
