"""HTTP with one registry: redirects, limits on every wait, bodies of bounded size.

Redirects are followed here and not by Twisted, because each step is judged: by https alone, never
down to http, never to an address that is not public, and never with credentials that were for
another origin. A location that is itself configured with http, or that lies in a private network,
may be what it is, and no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http_headers import Headers

from shiftergw import __version__
from shiftergw.errors import RegistryUntrusted, printable
from shiftergw.oci.challenge import parse_retry_after
from shiftergw.oci.rate_limits import parse_rate_limit
from shiftergw.plumbing.timing import abandonable, within
from shiftergw.sources.registry.connections import Connections
from shiftergw.sources.registry.failures import (
    STORE_REFUSALS,
    TRANSIENT_STATUSES,
    network_failure,
    status_failure,
    store_refusal,
)
from shiftergw.sources.registry.local_files import LocationTls
from shiftergw.sources.registry.location import Location, WebOrigin, target_of
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import BodyReader, Limits
from shiftergw.sources.registry.retry import LONGEST_RETRY_AFTER, Interruption, InterruptionKind

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from shiftergw.model.requests import RegistryLogin
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.sources.registry.admission import Admission

REDIRECTS = 10
"""Redirects that are followed for one request: as many as Go's clients follow."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _Answer(NamedTuple):
    """A response, the place that sent it, and whether that is a store which refuses a blob."""

    response: IResponse
    place: WebOrigin
    is_store_refusal: bool


class Transport(BodyReader):
    """Sends requests to one location and, checked, to where its answers lead."""

    def __init__(
        self,
        reactor: Reactor,
        location: Location,
        proxies: Proxies,
        limits: Limits,
        admission: Admission | None = None,
        tls: LocationTls | None = None,
    ) -> None:
        """Open nothing; raise `ConfigurationError` for a location that cannot be used.

        `admission` holds requests back to hosts that could not be reached lately. Without `tls` the
        files of the location are read, which blocks for a short time.
        """
        super().__init__(location.title, reactor, limits, admission)
        self.location = location.name
        self._connections = Connections(
            reactor, location, proxies, limits.connect, tls or LocationTls.of(location)
        )

    def with_subject(self, subject: str) -> Transport:
        """Return this transport with other words for the server at the beginning of errors."""
        transport = copy(self)
        transport.subject = subject
        return transport

    def close(self) -> Deferred[None]:
        """Close the connections that wait for further requests."""
        return self._connections.close()

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None = None,
        content: bytes | None = None,
        login: RegistryLogin | None = None,
    ) -> IResponse:
        """Return the answer at the end of all redirects; its body is still to be read.

        `authorization` is for the origin of `url` alone. The secrets of `login`, which it or
        `content` may have, are left out of errors. Raises `Interruption` for what may go
        better the next time (some statuses among it), and `RegistryUntrusted`.
        """
        end = self.clock.seconds() + self.limits.redirects
        follow = partial(self._follow, method, url)
        answer = await follow(headers, authorization, content, end, login)
        if answer.is_store_refusal:
            # The signed URL may have expired, or a cache may have repeated an old one. The registry
            # signs a new one; a store that refuses that one refuses all.
            await self.explanation(answer.response)
            headers = {**headers, "Cache-Control": "no-cache"}
            answer = await follow(headers, authorization, content, end, login)
        if answer.is_store_refusal:
            text = await self.explanation(answer.response, login)
            raise store_refusal(self.subject, answer.place.host, answer.response.code, text)
        return answer.response

    async def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        content: bytes | None,
        end: float,
        login: RegistryLogin | None,
    ) -> _Answer:
        """Return the answer at the end of all redirects, which must arrive until the time `end`."""
        first_url = url = target_of(url, url)
        origin = WebOrigin.of(url)
        for _ in range(REDIRECTS + 1):
            place = WebOrigin.of(url)
            self._connections.check(place)
            if place != origin:
                authorization = None
            seconds = min(self.limits.header, max(0.0, end - self.clock.seconds()))
            response = await self._send(method, url, headers, authorization, content, seconds)
            is_registry = place == origin or _is_registry_url(url)
            if response.code in TRANSIENT_STATUSES:
                raise await self._status_error(response, place, login, is_registry=is_registry)
            if response.code not in _REDIRECTS:
                is_store = not is_registry and _is_registry_url(first_url)
                return _Answer(response, place, is_store and response.code in STORE_REFUSALS)
            await self.explanation(response)  # read, so that the connection can serve again
            if content is not None:
                raise RegistryUntrusted(f"{self.subject} redirects a request that holds a login.")
            url = self._target(url, response)
        raise RegistryUntrusted(f"{self.subject} redirects more than {REDIRECTS} times.")

    def _target(self, url: str, response: IResponse) -> str:
        reference = field(response, "Location") or ""
        try:
            target = target_of(url, reference)
        except ValueError as error:
            raise RegistryUntrusted(
                f"{self.subject} redirects to something that is no URL.",
                detail=printable(reference),
            ) from error
        if url.startswith("https:") and not target.startswith("https:"):
            raise RegistryUntrusted(f"{self.subject} redirects from https to http.")
        return target

    async def _send(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str],
        authorization: str | None,
        content: bytes | None,
        seconds: float,
    ) -> IResponse:
        place = WebOrigin.of(url)
        headers = Headers()
        for name, value in fields.items():
            headers.setRawHeaders(name, [value])
        headers.setRawHeaders("Host", [place.host_field])
        headers.setRawHeaders("User-Agent", [f"shiftergw/{__version__}"])
        headers.setRawHeaders("Accept-Encoding", ["identity"])
        if authorization is not None:
            headers.setRawHeaders("Authorization", [authorization])
        if self._admission is None:
            return await self._answer(place, method, url, headers, content, seconds)
        async with self._admission.host(place.authority):
            return await self._answer(place, method, url, headers, content, seconds)

    async def _answer(
        self,
        place: WebOrigin,
        method: str,
        url: str,
        headers: Headers,
        content: bytes | None,
        seconds: float,
    ) -> IResponse:
        try:
            answer = abandonable(self._connections.send(method, url, headers, content))
            return await within(seconds, self.clock, answer, lambda: self._no_answer(seconds))
        except CancelledError:
            raise
        except Exception as error:
            raise network_failure(self.subject, place.authority, error) from error

    def _no_answer(self, seconds: float) -> Interruption:
        what = f"{self.subject} does not answer within {seconds:.0f} s."
        # After slow redirects the rest of their time may be too short for any host.
        kind = (
            InterruptionKind.UNREACHABLE
            if seconds >= self.limits.header
            else InterruptionKind.BRIEF
        )
        return Interruption(what, why="no answer", kind=kind)

    async def _status_error(
        self,
        response: IResponse,
        place: WebOrigin,
        login: RegistryLogin | None,
        *,
        is_registry: bool,
    ) -> Interruption:
        value = field(response, "Retry-After")
        text = await self.explanation(response, login)
        seconds = None if value is None else parse_retry_after(value, self.clock.seconds())
        if seconds is not None:
            seconds = min(seconds, LONGEST_RETRY_AFTER)
        host = place.host
        code = response.code
        limit = parse_rate_limit(partial(field, response))
        if code == HTTPStatus.TOO_MANY_REQUESTS and limit is not None:
            text = f"{text}; {limit}" if text else str(limit)
            if seconds is None and limit.reset is not None:
                seconds = min(float(limit.reset), LONGEST_RETRY_AFTER)
        return status_failure(self.subject, host, code, text, seconds, is_registry=is_registry)


def _is_registry_url(url: str) -> bool:
    """Return whether a URL is of the API of a registry.

    A registry may redirect to another one, whose API lies below `/v2/`, too. Other hosts store
    blobs: they know no logins, and their limits are not the registry's.
    """
    return urlsplit(url).path.startswith("/v2/")


def place_of(response: IResponse) -> WebOrigin:
    """Return the place that sent a response: after redirects it need not be the registry."""
    return WebOrigin.of(response.request.absoluteURI.decode("ascii"))


def field(response: IResponse, name: str) -> str | None:
    """Return the first field of this name of an answer's header; bytes beyond ASCII are escaped."""
    values = response.headers.getRawHeaders(name.encode("ascii"))
    return values[0].decode("ascii", "backslashreplace") if values else None
