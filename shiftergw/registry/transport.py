"""HTTP with one registry: redirects, limits on every wait, bodies of bounded size.

Redirects are followed here and not by Twisted, because each step is judged: by https alone, never
down to http, never to an address that is not public, and never with credentials that were for
another origin. A location that is itself configured with http, or that lies in a private network,
may be what it is, and no more than that.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http_headers import Headers

from shiftergw import __version__
from shiftergw.errors import RegistryUntrusted, printable
from shiftergw.oci.challenge import parse_retry_after
from shiftergw.plumbing.timing import abandonable, within
from shiftergw.registry.body import Body
from shiftergw.registry.connections import Connections
from shiftergw.registry.failures import error_text, network_failure
from shiftergw.registry.location import Location, WebOrigin, target_of
from shiftergw.registry.proxy import Proxies
from shiftergw.registry.retry import Interrupted

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

REDIRECTS = 5
ERROR_LIMIT = 64 << 10
"""Bytes that are read of an answer whose body only explains its status."""

_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_SLOW_DOWN = 429
_TRANSIENT = frozenset({408, _SLOW_DOWN, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: one connection attempt; until an answer's header; between two bytes of a body."""

    connect: float = 30.0
    header: float = 60.0
    idle: float = 60.0


class _EnoughError(Exception):
    """The body is longer than we read."""


class Transport:
    """Sends requests to one location and, checked, to where its answers lead."""

    def __init__(self, reactor: Any, location: Location, proxies: Proxies, limits: Limits) -> None:
        """Open nothing; raise `ConfigurationError` for a location that cannot be used."""
        self.who = f"The registry {location.name!r}"
        self.location = location.name
        self._clock = reactor
        self._limits = limits
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
        for _ in range(REDIRECTS + 1):
            here = WebOrigin.of(url)
            self._connections.check(here)
            if here != origin:
                authorization = None
            response = await self._send(method, url, headers, authorization, content)
            if response.code in _TRANSIENT:
                raise await self._interrupted(response)
            if response.code not in _REDIRECTED:
                return response
            with suppress(Interrupted):  # read, so that the connection can serve again
                await self.read(response, ERROR_LIMIT)
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
        try:
            answer = abandonable(self._connections.send(method, url, headers, content))
            return await within(self._limits.header, self._clock, answer, self._no_answer)
        except CancelledError:
            raise
        except Exception as error:
            raise network_failure(self.who, here.authority, error) from error

    def _no_answer(self) -> Interrupted:
        return Interrupted(f"{self.who} does not answer.")

    async def _interrupted(self, response: IResponse) -> Interrupted:
        asked = field(response, "Retry-After")
        said = error_text(await self.read(response, ERROR_LIMIT))
        slow_down = response.code == _SLOW_DOWN
        what = "asked to slow down" if slow_down else f"answered with status {response.code}"
        return Interrupted(
            f"{self.who} {what}{': ' if said else '.'}{said}",
            retry_after=None if asked is None else parse_retry_after(asked, self._clock.seconds()),
        )

    async def stream(
        self, response: IResponse, take: Callable[[bytes], object], sink: Any = None
    ) -> None:
        """Give a response's body to `take`; `sink` is registered as the one that may pause it.

        Raises `Interrupted` unless the body is known to be whole, and what `take` raises.
        """
        body = Body(take, self._clock, self._limits.idle, self.who)
        if sink is None:
            await body.read(response)
            return
        sink.registerProducer(body, True)
        try:
            await body.read(response)
        finally:
            sink.unregisterProducer()

    async def read(self, response: IResponse, limit: int) -> bytes:
        """Return a response's body; one byte more than `limit` stands for all that is longer."""
        kept = io.BytesIO()

        def keep(data: bytes) -> None:
            kept.write(data)
            if kept.tell() > limit:
                raise _EnoughError

        with suppress(_EnoughError):
            await self.stream(response, keep)
        return kept.getvalue()[: limit + 1]

    def discard(self, response: IResponse) -> None:
        """Close a response whose body nobody wants."""
        body = Body(len, self._clock, self._limits.idle, self.who)
        body.ended.addErrback(lambda failure: failure.trap(CancelledError, Interrupted))
        body.stopProducing()
        body.read(response)


def field(response: IResponse, name: str) -> str | None:
    """Return the first field of this name of an answer's header; bytes beyond ASCII are escaped."""
    values = response.headers.getRawHeaders(name.encode("ascii"))
    return values[0].decode("ascii", "backslashreplace") if values else None
