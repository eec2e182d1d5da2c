"""HTTP with one registry: redirects, limits on every wait, bodies of bounded size.

Redirects are followed here and not by Twisted, because each step is judged: by https alone, never
down to http, never to an address that is not public, and never with credentials that were for
another origin. A location that is itself configured with http, or that lies in a private network,
may be what it is, and no more than that.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http_headers import Headers

from shiftergw import __version__
from shiftergw.errors import RegistryUnavailable, RegistryUntrusted, printable
from shiftergw.oci.challenge import parse_retry_after
from shiftergw.plumbing.timing import abandonable, within
from shiftergw.sources.registry.body import Body, Pace
from shiftergw.sources.registry.connections import Connections
from shiftergw.sources.registry.failures import error_text, network_failure
from shiftergw.sources.registry.location import Location, WebOrigin, target_of
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.retry import LONGEST_RETRY_AFTER, Interrupted, UnprovenEnd

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.sources.registry.admission import Admission

REDIRECTS = 5
ERROR_LIMIT = 64 << 10
"""Bytes that are read of an answer whose body only explains its status."""

_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_SLOW_DOWN = 429
_TRANSIENT = frozenset({408, _SLOW_DOWN, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a registry may take, in seconds; `rate` in bytes per second.

    `connect` for a connection attempt, `header` until a response head, `redirects` until the head
    at the end of all redirects, `idle` between two bytes of a body, `document` for a body that
    fits into memory (manifest, configuration, token), `documents` for all manifests and the
    configuration of one image, `explanation` for a body that explains a status.
    In each `window` at least `rate` bytes per second of a body must arrive, in each
    `document_window` of one that fits into memory, and in each `probe_window` where bodies of this
    kind were too slow a moment ago; a rate of 0 is no limit.
    """

    connect: float = 30.0
    header: float = 60.0
    redirects: float = 120.0
    idle: float = 60.0
    document: float = 120.0
    documents: float = 600.0
    explanation: float = 10.0
    rate: float = 10_000.0
    window: float = 60.0
    document_window: float = 3.0
    probe_window: float = 1.5


def needs_length(_: bytes) -> bool:
    """Accept no body whose end HTTP does not vouch for: nothing proves that it is whole."""
    return False


def is_json(content: bytes) -> bool:
    """Return whether a body parses as a JSON object or array, which no beginning of one does."""
    try:
        return isinstance(json.loads(content), dict | list)
    except (ValueError, RecursionError):
        return False


class _EnoughError(Exception):
    """The body is longer than we read."""


class Transport:
    """Sends requests to one location and, checked, to where its answers lead."""

    def __init__(
        self,
        reactor: Reactor,
        location: Location,
        proxies: Proxies,
        limits: Limits,
        admission: Admission | None = None,
    ) -> None:
        """Open nothing; raise `ConfigurationError` for a location that cannot be used.

        `admission` holds requests back to hosts that could not be reached lately.
        """
        self._admission = admission
        self.who = f"The registry {location.name!r}"
        self.location = location.name
        self.clock = reactor
        self.limits = limits
        self._connections = Connections(reactor, location, proxies, limits.connect)

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
    ) -> IResponse:
        """Return the answer at the end of all redirects; its body is still to be read.

        `authorization` is for the origin of `url` alone. Raises `Interrupted` for what may go
        better the next time (some statuses among it), and `RegistryUntrusted`.
        """
        origin = WebOrigin.of(url)
        end = self.clock.seconds() + self.limits.redirects
        for _ in range(REDIRECTS + 1):
            here = WebOrigin.of(url)
            self._connections.check(here)
            if here != origin:
                authorization = None
            seconds = min(self.limits.header, max(0.0, end - self.clock.seconds()))
            response = await self._send(method, url, headers, authorization, content, seconds)
            if response.code in _TRANSIENT:
                raise await self._interrupted(response, is_registry=_is_registry(url, origin))
            if response.code not in _REDIRECTED:
                return response
            await self.explanation(response)  # read, so that the connection can serve again
            if content is not None:
                raise RegistryUntrusted(f"{self.who} redirects a request that holds a login.")
            url = self._target(url, response)
        raise RegistryUntrusted(f"{self.who} redirects more than {REDIRECTS} times.")

    def _target(self, url: str, response: IResponse) -> str:
        asked = field(response, "Location") or ""
        try:
            target = target_of(url, asked)
        except ValueError as error:
            raise RegistryUntrusted(
                f"{self.who} redirects to something that is no URL.", detail=printable(asked)
            ) from error
        if url.startswith("https:") and not target.startswith("https:"):
            raise RegistryUntrusted(f"{self.who} redirects from https to http.")
        return target

    async def _send(
        self,
        method: str,
        url: str,
        wanted: Mapping[str, str],
        authorization: str | None,
        content: bytes | None,
        seconds: float,
    ) -> IResponse:
        here = WebOrigin.of(url)
        headers = Headers()
        for name, value in wanted.items():
            headers.setRawHeaders(name, [value])
        headers.setRawHeaders("Host", [here.host_field])
        headers.setRawHeaders("User-Agent", [f"shiftergw/{__version__}"])
        headers.setRawHeaders("Accept-Encoding", ["identity"])
        if authorization is not None:
            headers.setRawHeaders("Authorization", [authorization])
        if self._admission is None:
            return await self._answer(here, method, url, headers, content, seconds)
        async with self._admission.host(here.authority):
            return await self._answer(here, method, url, headers, content, seconds)

    async def _answer(
        self,
        here: WebOrigin,
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
            raise network_failure(self.who, here.authority, error) from error

    def _no_answer(self, seconds: float) -> Interrupted:
        what = f"{self.who} does not answer within {seconds:.0f} s."
        # After slow redirects the rest of their time may be too short for any host.
        has_full_time = seconds >= self.limits.header
        return Interrupted(what, why="no answer", unreachable=has_full_time)

    async def _interrupted(self, response: IResponse, *, is_registry: bool) -> Interrupted:
        asked = field(response, "Retry-After")
        said = await self.explanation(response)
        slow_down = response.code == _SLOW_DOWN
        what = "asked to slow down" if slow_down else f"answered with status {response.code}"
        seconds = None if asked is None else parse_retry_after(asked, self.clock.seconds())
        return Interrupted(
            f"{self.who} {what}{': ' if said else '.'}{said}",
            retry_after=None if seconds is None else min(seconds, LONGEST_RETRY_AFTER),
            why="rate limit" if slow_down else f"status {response.code}",
            limited=slow_down and is_registry,
        )

    async def stream(
        self, response: IResponse, take: Callable[[bytes], object], sink: Any = None
    ) -> None:
        """Give a response's body to `take`; `sink` is registered as the one that may pause it.

        Raises `Interrupted` unless the body is known to be whole, `RetryLater`, and what `take`
        raises.
        """
        limits = self.limits
        pace = Pace(limits.idle, limits.rate, limits.window)
        body = Body(take, self.clock, pace, self.who)
        if sink is not None:
            sink.registerProducer(body, True)
        try:
            async with self._paced(response, "layers", limits.window) as body.first_window:
                body.read(response)
                await body.proven.wait()
                if body.ended.called:
                    await body.ended
                    return
            await body.ended
        finally:
            if not body.ended.called:
                body.ended.addErrback(lambda failure: failure.trap(CancelledError))
                body.ended.cancel()
            if sink is not None:
                sink.unregisterProducer()

    @asynccontextmanager
    async def _paced(self, response: IResponse, kind: str, window: float) -> AsyncIterator[float]:
        """Admit the reading of a body, as `Admission.pace`; close it if it is not admitted.

        Yields the first window of the body: a probe occupies a worker, so it has little time.
        """
        if self._admission is None:
            yield window
            return
        admitted = False
        try:
            async with self._admission.pace(kind) as probes:
                admitted = True
                yield min(window, self.limits.probe_window) if probes else window
        finally:
            if not admitted:
                self.discard(response)

    async def read(
        self, response: IResponse, limit: int, is_whole: Callable[[bytes], bool] = needs_length
    ) -> bytes:
        """Return the body of a document, of a longer one the first `limit` + 1 bytes.

        If the body ends with its connection, without a length, `is_whole` decides by the bytes
        whether anything is missing: see `needs_length` and `is_json`. Raises `Interrupted` if the
        connection breaks or brings too little, `RetryLater`, and `RegistryUnavailable` if the body
        takes too long.
        """
        limits = self.limits
        pace = Pace(limits.idle, limits.rate, limits.document_window, limits.document)
        async with self._paced(response, "documents", limits.document_window) as window:
            return await self._content(response, limit, pace, is_whole, window)

    async def _content(
        self,
        response: IResponse,
        limit: int,
        pace: Pace,
        is_whole: Callable[[bytes], bool],
        first_window: float | None = None,
    ) -> bytes:
        content = io.BytesIO()

        def keep(data: bytes) -> None:
            content.write(data)
            if content.tell() > limit:
                raise _EnoughError

        with suppress(_EnoughError):
            body = Body(keep, self.clock, pace, self.who)
            body.first_window = first_window
            try:
                await body.read(response)
            except UnprovenEnd:
                if not is_whole(content.getvalue()):
                    raise
        return content.getvalue()[: limit + 1]

    async def explanation(self, response: IResponse) -> str:
        """Return the messages in the body of an error; "" if there are none, or it is slow."""
        try:
            pace = Pace(self.limits.idle, total=self.limits.explanation)
            body = await self._content(response, ERROR_LIMIT, pace, lambda _: True)
        except RegistryUnavailable:  # the status alone has to do
            return ""
        return error_text(body)

    def discard(self, response: IResponse) -> None:
        """Close a response whose body nobody wants."""
        body = Body(len, self.clock, Pace(self.limits.idle), self.who)
        body.ended.addErrback(lambda failure: failure.trap(CancelledError, Interrupted))
        body.stopProducing()
        body.read(response)


def _is_registry(url: str, origin: WebOrigin) -> bool:
    """Return whether a request that began at `origin` has ended at a registry, or a token service.

    A registry may redirect to another one, whose API lies below `/v2/`, too. Other hosts store
    blobs: they know no logins, and their limits are not the registry's.
    """
    return WebOrigin.of(url) == origin or urlsplit(url).path.startswith("/v2/")


def field(response: IResponse, name: str) -> str | None:
    """Return the first field of this name of an answer's header; bytes beyond ASCII are escaped."""
    values = response.headers.getRawHeaders(name.encode("ascii"))
    return values[0].decode("ascii", "backslashreplace") if values else None
