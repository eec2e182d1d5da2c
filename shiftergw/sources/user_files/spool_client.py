"""Fetch uploads from the gateway, for workers on other machines.

Each request is signed with the site's secret key (`Seal.sign_request`). A fetch continues behind
the bytes that are on this machine already. For https the gateway's certificate is verified as those
of all servers are: by the authorities of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from shiftergw.errors import GatewayError, ImageNotFound, PullError, RetryLater, TimedOut, printable
from shiftergw.model.records import Progress
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.head_limits import HeadTooLong
from shiftergw.plumbing.http_heads import BoundedHeads
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import abandonable, within
from shiftergw.plumbing.tls import CertificateRefused, ClientTls
from shiftergw.ports import Report

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

PIECE = 4 << 20
"""Bytes of one request, which are in memory for a moment."""

CONNECT_SECONDS = 20.0
"""The time limit for a connection to the gateway."""

PIECE_SECONDS = 120.0
"""The time limit for one request."""

TRIES = 5
"""Attempts in a row without any progress, before the worker turns to other work."""

PAUSES = Backoff(1.0, 15.0)

RETRY_SECONDS = 30.0
"""Seconds after which a pull whose gateway does not answer is tried again."""

WAIT_SECONDS = 1800.0
"""Seconds that one pull may wait altogether for the gateway."""


class _RequestInterruptedError(Exception):
    """A request without a usable answer; another attempt may succeed."""


@implementer(IAgentEndpointFactory)
class SpoolClient:
    """Fetches and removes uploads over HTTP."""

    def __init__(
        self, url: str, seal: Callable[[], Seal], threads: Threads, reactor: Reactor
    ) -> None:
        """Ask the gateway at `url`; sign requests with `seal`, which is read when it is needed."""
        self._url = url.rstrip("/")
        self._seal = seal
        self._threads = threads
        self._clock = reactor
        self._tls: ClientTls | None = None
        self._pool = HTTPConnectionPool(reactor)
        self._agent = Agent.usingEndpointFactory(reactor, self, self._pool)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return how to connect to the gateway."""
        host = uri.host.decode("ascii").strip("[]")
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._clock, host, uri.port, timeout=CONNECT_SECONDS
        )
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls.to(host), endpoint)
        return BoundedHeads(endpoint)

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.closeCachedConnections()

    async def fetch(self, system: str, file: ImageFile, target: Path, report: Report) -> None:
        """Append the bytes of an upload that are missing in the file `target`.

        Raises `RetryLater` if the gateway does not answer, `ImageNotFound` if it does not have the
        upload, `PullError` if its certificate is refused, and `NoSpace`.
        """
        offset = await self._threads.run(_prepare, target, file.size)
        failures = 0
        while offset < file.size:
            report(Progress("PULLING", offset, file.size))
            size = min(PIECE, file.size - offset)
            path = f"/api/spool/{quote(system, safe='')}/{file.id}?offset={offset}&size={size}"
            try:
                data = await self._request(b"GET", path, size)
            except _RequestInterruptedError as error:
                failures += 1
                if failures >= TRIES:
                    raise self._no_answer(error) from error
                await PAUSES.pause(failures, self._clock)
                continue
            failures = 0
            await self._threads.run(_append, target, offset, data)
            offset += size
        report(Progress("PULLING", offset, file.size))

    async def remove(self, system: str, file: ImageFile) -> None:
        """Remove an upload that is useless; one that cannot be removed now expires later."""
        path = f"/api/spool/{quote(system, safe='')}/{file.id}"
        try:
            await self._request(b"DELETE", path, None)
        except (_RequestInterruptedError, GatewayError):
            return

    async def _request(self, method: bytes, path: str, size: int | None) -> bytes:
        """Return the body of the answer to a request; it must have `size` bytes, unless None."""

        def late() -> TimedOut:
            return TimedOut(f"The gateway did not answer within {PIECE_SECONDS:g} s.")

        try:
            return await within(
                PIECE_SECONDS, self._clock, self._exchange(method, path, size), late
            )
        except (
            TimedOut,
            ConnectError,
            ConnectionClosed,
            DNSLookupError,
            ResponseFailed,
            PotentialDataLoss,
            HeadTooLong,
        ) as error:
            refusal = _certificate_refusal(error)
            if refusal is not None:
                raise self._certificate_error(refusal) from error
            raise _RequestInterruptedError(str(error) or type(error).__name__) from error

    async def _exchange(self, method: bytes, path: str, size: int | None) -> bytes:
        time = int(self._clock.seconds())
        if self._tls is None and self._url.startswith("https:"):
            self._tls = await self._threads.run(ClientTls)  # it reads the authorities
        credential = self._seal().sign_request(method.decode("ascii"), path, time)
        headers = Headers({b"authentication": [credential.encode("ascii")]})
        url = f"{self._url}{path}".encode("ascii")
        response = await abandonable(self._agent.request(method, url, headers))
        if response.length > PIECE or (size is not None and response.length != size):
            await _read(response, 0)
            self._check_status(response.code)
            raise _RequestInterruptedError(f"an answer of {printable(str(response.length), 30)}")
        content = await _read(response, PIECE)
        self._check_status(response.code)
        return content

    def _check_status(self, status: int) -> None:
        if status == HTTPStatus.OK:
            return
        if status == HTTPStatus.NOT_FOUND:
            raise ImageNotFound(
                "The gateway no longer has the upload.", remedy="Upload the file again."
            )
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise PullError(
                "The gateway does not accept this worker's request for the upload.",
                remedy="Tell the site's support: SecretKeyFile must be the same on all machines,"
                " and their clocks must agree.",
            )
        raise _RequestInterruptedError(f"status {status}")

    def _certificate_error(self, refusal: CertificateRefused) -> PullError:
        return PullError(
            "The worker cannot fetch the upload: the gateway's certificate cannot be trusted, it"
            f" {refusal.problem}.",
            remedy=f"Tell the site's support: GatewayURL leads there. {refusal.remedy}",
            detail=f"{self._url}: {refusal.certificate}",
        )

    def _no_answer(self, error: Exception) -> RetryLater:
        failure = PullError(
            "The worker cannot fetch the upload from the gateway.",
            remedy="Tell the site's support: GatewayURL must be reachable from all workers.",
            detail=f"{self._url}: {error}",
        )
        at = self._clock.seconds() + RETRY_SECONDS
        return RetryLater(at, "the gateway's uploads", failure, limit=WAIT_SECONDS)


def _certificate_refusal(error: BaseException) -> CertificateRefused | None:
    """Return the refused certificate among the reasons that Twisted's client wraps, if any."""
    if isinstance(error, CertificateRefused):
        return error
    reasons = (_certificate_refusal(reason.value) for reason in getattr(error, "reasons", ()))
    return next(filter(None, reasons), None)


class _Body(Protocol):
    """Collects at most `limit` bytes of a body for `completion`; a longer one is cut off."""

    def __init__(self, limit: int) -> None:
        self.completion: Deferred[bytes] = Deferred(lambda _: self._cut_off())
        self._limit = limit
        self._content = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._content += data
        if len(self._content) > self._limit:
            self._cut_off()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.completion.called:
            return
        if reason.check(ResponseDone) or len(self._content) > self._limit:
            self.completion.callback(bytes(self._content[: self._limit]))
        else:
            self.completion.errback(reason)

    def _cut_off(self) -> None:
        producer: Any = self.transport
        producer.stopProducing()


async def _read(response: IResponse, limit: int) -> bytes:
    """Return the body of an answer, which is closed behind `limit` bytes."""
    body = _Body(limit)
    response.deliverBody(body)
    return await abandonable(body.completion)


def _prepare(target: Path, size: int) -> int:
    """Create the file, or return how many bytes it has; one that is too long is emptied."""
    with _disk_errors():
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            present = os.fstat(descriptor).st_size
            if present > size:
                os.ftruncate(descriptor, 0)
                present = 0
            return present
        finally:
            os.close(descriptor)


def _append(target: Path, offset: int, data: bytes) -> None:
    with _disk_errors(), open(target, "r+b") as file:  # noqa: PTH123
        file.seek(offset)
        file.write(data)


def _disk_errors() -> AbstractContextManager[None]:
    return translated_disk_errors(
        "The worker's disk for uploads is full.",
        lambda _: PullError("The worker cannot write to its directory of uploads."),
    )
