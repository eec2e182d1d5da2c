"""Requests to gateways by Twisted's HTTP client, for commands that send several at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet import error as internet_error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError, RequestTransmissionFailed
from twisted.web.client import (
    URI,
    Agent,
    ContentDecoderAgent,
    FileBodyProducer,
    GzipDecoder,
    HTTPConnectionPool,
    ProxyAgent,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from shiftergw.cli import exchange
from shiftergw.cli.exchange import CONNECT_LIMIT, document_of, headers_of, host_in, uri_of
from shiftergw.cli.exits import Stop
from shiftergw.cli.gateway_errors import (
    CONNECTION_BROKE,
    NOT_HTTP,
    NOTHING_LISTENS,
    UNKNOWN_HOST,
    answer_too_long,
    head_too_long,
    late,
    unreachable,
)
from shiftergw.cli.proxy import GatewayProxy, proxy_for
from shiftergw.errors import printable
from shiftergw.plumbing.head_limits import HeadTooLong
from shiftergw.plumbing.http_heads import BoundedHeads
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.tls import CertificateRefused, ClientTls

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

P = ParamSpec("P")
T = TypeVar("T")


@implementer(IAgentEndpointFactory)
class TwistedExchange:
    """An `Exchange` whose waits need a running reactor."""

    def __init__(self, reactor: Reactor) -> None:
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
        body: str | bytes,
        limit: float,
        head_limit: float | None = None,
    ) -> Any:
        """Return the answer of a gateway, as `Exchange` says."""
        proxy = proxy_for(base, os.environ)
        timeout = AnswerTimeout(self._reactor, limit, head_limit or limit)
        headers = Headers()
        for name, value in headers_of(credential, proxy, body).items():
            headers.addRawHeader(name, value)
        body_content = body.encode() if isinstance(body, str) else body
        content = FileBodyProducer(BytesIO(body_content)) if body_content else None

        async def answer() -> Any:
            agent = self._agent(proxy)
            uri = uri_of(base, tail)
            response = await agent.request(method.encode(), uri, headers, content)
            timeout.begin_body()
            body_bytes = await _body_of(response)
            location = b"".join(response.headers.getRawHeaders(b"location", ())[:1])
            return document_of(base, proxy, response.code, location.decode("latin-1"), body_bytes)

        try:
            return await timeout.result_of(Deferred.fromCoroutine(answer()))
        except (Stop, CancelledError):
            raise
        except TimeoutError as error:
            raise late(base, proxy, timeout.limit) from error
        except Exception as error:
            raise unreachable(base, proxy, _reason(error)) from error

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a function that blocks, as `Exchange` says."""
        threads = with_threads(self._reactor)
        pool = threads.getThreadPool()
        result: T = await deferToThreadPool(threads, pool, function, *args, **kwargs)
        return result

    def seconds(self) -> float:
        """Return the time of the reactor."""
        return float(self._reactor.seconds())

    def _agent(self, proxy: GatewayProxy | None) -> Any:
        pool = HTTPConnectionPool(self._reactor, persistent=False)
        agent: Any
        if proxy is None:
            agent = Agent.usingEndpointFactory(self._reactor, self, pool)
        else:
            endpoint = HostnameEndpoint(
                self._reactor, proxy.host, proxy.port, timeout=CONNECT_LIMIT
            )
            agent = ProxyAgent(BoundedHeads(endpoint), self._reactor, pool)
        return ContentDecoderAgent(agent, [(b"gzip", GzipDecoder)])

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return how to connect to a gateway; for https its certificate is verified."""
        host = host_in(uri.host.decode("ascii"))
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, host, uri.port, timeout=CONNECT_LIMIT
        )
        if uri.scheme == b"https":
            self._tls = self._tls or ClientTls()
            endpoint = wrapClientTLS(self._tls.to(host), endpoint)
        return BoundedHeads(endpoint)


class AnswerTimeout:
    """The time limits on one answer: first on its head, then on all of it."""

    def __init__(self, reactor: Reactor, limit: float, head_limit: float) -> None:
        """Allow `limit` seconds for an answer, and no more than `head_limit` for its head."""
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

        The exception of a cancelled request depends on how far it was: `DNSLookupError`, for
        example. So a cancellation of this method always raises `CancelledError`.
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


class _AnswerTooLong(Exception):
    """The body of an answer is longer than a gateway's."""


def _reason(error: Exception) -> str:
    """Return why a request has failed, in words for the user."""
    if isinstance(error, ResponseFailed | RequestTransmissionFailed):
        return _reason_of_broken(error)
    if isinstance(error, internet_error.ConnectionRefusedError):
        return NOTHING_LISTENS
    if isinstance(error, internet_error.DNSLookupError):
        return UNKNOWN_HOST
    if isinstance(error, HeadTooLong):
        return head_too_long(error)
    if isinstance(error, _AnswerTooLong):
        return answer_too_long(exchange.ANSWER_BYTES)
    return printable(str(error) or type(error).__name__)


def _reason_of_broken(error: ResponseFailed | RequestTransmissionFailed) -> str:
    """Return why the connection of a request has ended early."""
    for reason in error.reasons:
        if isinstance(reason.value, CertificateRefused):
            return f"{reason.value}. {reason.value.remedy}"
        if isinstance(reason.value, ParseError):
            return NOT_HTTP
    return CONNECTION_BROKE


def _body_of(response: Any) -> Deferred[bytes]:
    """Return the body of an answer; fail with `_AnswerTooLong` beyond `ANSWER_BYTES`."""
    receiver = _BodyReceiver()
    response.deliverBody(receiver)
    return receiver.body


class _BodyReceiver(Protocol):
    """Collects a body."""

    def __init__(self) -> None:
        self.body: Deferred[bytes] = Deferred(lambda _: self._stop())
        self._pieces: list[bytes] = []
        self._size = 0

    def _stop(self) -> None:
        transport: Any = self.transport
        transport.stopProducing()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= exchange.ANSWER_BYTES:
            self._pieces.append(data)
        elif not self.body.called:
            self._pieces.clear()
            self._stop()
            self.body.errback(_AnswerTooLong())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.body.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.body.callback(b"".join(self._pieces))
        else:
            self.body.errback(reason)
