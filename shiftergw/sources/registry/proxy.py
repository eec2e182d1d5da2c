"""Read the proxies of an environment, and connect through one (RFC 9110, CONNECT)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.errors import ConfigurationError, RegistryUnavailable
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.retry import Interruption

_HEAD_LIMIT = 16384
"""Most bytes of the head of a proxy's response to CONNECT."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r\n|$)")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the value of `Proxy-Authorization`, if it needs a login."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)


class Proxies:
    """The proxies that `https_proxy`, `http_proxy` and `no_proxy` of an environment name."""

    def __init__(
        self, environment: Mapping[str, str], hosts: tuple[str, ...] | None = None
    ) -> None:
        """Read the variables; raise `ConfigurationError` for an invalid one.

        Upper case counts too, but for `HTTP_PROXY`, which a CGI's client can set. `hosts` are those
        that a proxy may be asked for although their names cannot be resolved here; None: any.
        """
        self.has_list = hosts is not None
        self._hosts = hosts or ()
        https = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
        http = environment.get("http_proxy") or ""
        no_proxy = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
        self._proxies = {"https": _proxy("https_proxy", https), "http": _proxy("http_proxy", http)}
        self._direct = tuple(no_proxy.replace(",", " ").lower().split())

    def proxy_for(self, origin: WebOrigin) -> Proxy | None:
        """Return the proxy for an origin, None for a direct connection."""
        proxy = self._proxies[origin.scheme]
        if proxy is None or any(_covers(rule, origin) for rule in self._direct):
            return None
        return proxy

    def lists(self, origin: WebOrigin) -> bool:
        """Return whether the configuration lists a host, by its name or a domain above it."""
        return any(_covers(rule, origin) for rule in self._hosts)


def _proxy(variable: str, url: str) -> Proxy | None:
    if not url:
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if host is None or parts.scheme != "http":
        # The value may hold a password: it is not repeated.
        raise ConfigurationError(
            f"{variable} is not of the form `http://[user:password@]host:port`."
        )
    if parts.username is None:
        return Proxy(host, port)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, b"Basic " + base64.b64encode(login.encode()))


def _covers(rule: str, origin: WebOrigin) -> bool:
    """Return whether an entry of `no_proxy` covers a host: by name, domain or network."""
    if rule == "*":
        return True
    with suppress(ValueError):
        return ip_address(origin.host) in ip_network(rule, strict=False)
    name, colon, port = rule.rpartition(":")
    if colon and port.isdigit():
        if int(port) != origin.port:
            return False
    else:
        name = rule
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    return bool(name) and (origin.host == name or origin.host.endswith(f".{name}"))


class _Tunnel(Protocol):
    """Requests a tunnel of the proxy, then connects the protocol of `factory` through it.

    `inner_protocol` fires with that protocol, or fails with `RegistryUnavailable` if the proxy
    refuses.
    """

    transport: Any

    def __init__(self, request: bytes, factory: IProtocolFactory) -> None:
        self.inner_protocol: Deferred[Any] = Deferred(lambda _: self.transport.abortConnection())
        self._request = request
        self._factory = factory
        self._head = bytearray()
        self._inner: Any = None

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._head += data
        head, end, rest = bytes(self._head).partition(b"\r\n\r\n")
        if end:
            self._read_answer(head, rest)
        elif len(head) > _HEAD_LIMIT:
            self._refuse("with too long a header")

    def _read_answer(self, head: bytes, rest: bytes) -> None:
        status = _STATUS.match(head)
        if status is None:
            self._refuse("with something that is not HTTP")
        elif status[1].startswith(b"2"):
            self._inner = self._factory.buildProtocol(self.transport.getPeer())
            self._inner.makeConnection(self.transport)
            self.inner_protocol.callback(self._inner)
            if rest:
                self._inner.dataReceived(rest)
        else:
            self._refuse(f"with status {int(status[1])}", transient=status[1].startswith(b"5"))

    def _refuse(self, how: str, *, transient: bool = False) -> None:
        kind = Interruption if transient else RegistryUnavailable
        self.inner_protocol.errback(kind(f"The site's proxy answered {how}."))
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.inner_protocol.called:
            self.inner_protocol.errback(reason)


@implementer(IStreamClientEndpoint)
class ConnectEndpoint:
    """A connection to `origin` through a proxy that `endpoint` reaches.

    `judge` raises if the proxy may not be asked for it.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        proxy: Proxy,
        origin: WebOrigin,
        judge: Callable[[], Coroutine[Deferred[Any], Any, None]],
    ) -> None:
        """Keep what `connect` needs."""
        self._endpoint = endpoint
        self._judge = judge
        lines = [
            f"CONNECT {origin.authority} HTTP/1.1".encode(),
            f"Host: {origin.authority}".encode(),
        ]
        if proxy.authorization is not None:
            lines.append(b"Proxy-Authorization: " + proxy.authorization)
        self._request = b"\r\n".join([*lines, b"", b""])

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        """Return the protocol, connected to the host; fail as the endpoint and `judge` do."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        await self._judge()
        tunnels = Factory.forProtocol(lambda: _Tunnel(self._request, factory))
        tunnels.noisy = False
        tunnel: Any = await self._endpoint.connect(tunnels)
        return await tunnel.inner_protocol
