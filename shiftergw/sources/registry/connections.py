"""The ways to one location and to the hosts it sends us to: addresses, TLS, proxies, the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from shiftergw.errors import RegistryUntrusted
from shiftergw.plumbing.http_heads import BoundedHeads
from shiftergw.sources.registry.guard import GuardedEndpoint, Kind, kind_of, kind_of_name
from shiftergw.sources.registry.local_files import LocationTls
from shiftergw.sources.registry.location import Location, WebOrigin
from shiftergw.sources.registry.proxy import ConnectEndpoint, Proxies, Proxy
from shiftergw.sources.registry.resolver import Resolver
from shiftergw.sources.registry.retry import Interruption

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

KEPT_CONNECTIONS = 6
"""Idle connections kept for further requests, for each host."""


@implementer(IBodyProducer)
class _Content:
    """The body of a request, from memory."""

    def __init__(self, content: bytes) -> None:
        self.length = len(content)
        self._content = content

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._content)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything has been written already."""

    def resumeProducing(self) -> None:
        """Everything has been written already."""

    def stopProducing(self) -> None:
        """Everything has been written already."""


@implementer(IAgentEndpointFactory)
class Connections:
    """Sends single requests, and judges where they go; see `guard`."""

    def __init__(
        self,
        reactor: Reactor,
        location: Location,
        proxies: Proxies,
        connect_limit: float,
        tls: LocationTls,
    ) -> None:
        """Open nothing; `connect_limit` in seconds."""
        self._subject = location.title
        self._reactor = reactor
        self._location = location
        self._origin = location.origin
        self._proxies = proxies
        self._limit = connect_limit
        self._resolver = Resolver(reactor)
        self._tls = tls
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = KEPT_CONNECTIONS
        self._agent: IAgent = Agent.usingEndpointFactory(reactor, self, self._pool)
        self._proxy_agent: IAgent | None = None
        # Where the location itself lies, it may send us, and anywhere public.
        self._reachable: set[Kind] = {"global"}

    def close(self) -> Deferred[None]:
        """Close the connections that wait for further requests, now and as they come."""
        self._pool.cachedConnectionTimeout = 0
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    def check(self, target: WebOrigin) -> None:
        """Raise `RegistryUntrusted` for a place that we must not even try to reach."""
        if target.scheme != "https" and target != self._origin:
            # Only a registry without TLS may have a token service or a store without TLS.
            if self._origin.scheme == "https":
                raise RegistryUntrusted(
                    f"{self._subject} sends the gateway to a place without TLS.",
                    detail=target.authority,
                )
            if not self._location.trusts(target):
                raise RegistryUntrusted(
                    f"{self._subject} sends the gateway to another place without TLS.",
                    remedy="Tell the site's support; if that is its token service or its store,"
                    " the location's `trustedHosts` can list it as `host:port`.",
                    detail=target.authority,
                )
        kind = kind_of_name(target.host)
        if kind is not None and not self._may_reach(target, kind):
            raise self._not_public(target)

    def _may_reach(self, target: WebOrigin, kind: Kind) -> bool:
        if target.host == self._origin.host and not self._location.must_be_public:
            self._reachable.add(kind)
        return kind in self._reachable or self._location.trusts(target)

    def _not_public(self, target: WebOrigin) -> RegistryUntrusted:
        if target.host == self._origin.host:
            return RegistryUntrusted(
                f"{self._subject} has an address that is not public.",
                remedy="Tell the site's support: a registry of the site's own network needs a"
                " location of its own, or a place in `trustedHosts` of the location `*`.",
                detail=target.authority,
            )
        return RegistryUntrusted(
            f"{self._subject} sends the gateway to an address that is not public.",
            remedy="Tell the site's support; where that is meant to be, the location's"
            " `trustedHosts` can list the host.",
            detail=target.authority,
        )

    def send(
        self, method: str, url: str, headers: Headers, content: bytes | None
    ) -> Deferred[IResponse]:
        """Send one request to a place that `check` has passed; return its answer."""
        target = WebOrigin.of(url)
        agent = self._agent
        proxy = self._proxies.proxy_for(target)
        if proxy is not None and target.scheme == "http":
            # Plain http goes through a proxy by naming the whole URL (RFC 9112, absolute-form).
            agent = self._proxy_agent = self._proxy_agent or ProxyAgent(
                BoundedHeads(self._to_proxy(proxy)), self._reactor, self._pool
            )
            if proxy.authorization is not None:
                headers.setRawHeaders(b"Proxy-Authorization", [proxy.authorization])
        return agent.request(
            method.encode("ascii"),
            url.encode("ascii"),
            headers,
            None if content is None else _Content(content),
        )

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the way to an origin: direct or by CONNECT, with TLS for https."""
        target = WebOrigin.of(uri.toBytes().decode("ascii"))
        proxy = self._proxies.proxy_for(target)
        if proxy is not None:
            endpoint: IStreamClientEndpoint = ConnectEndpoint(
                self._to_proxy(proxy), proxy, target, lambda: self._judge_proxied(target)
            )
        else:
            endpoint = GuardedEndpoint(
                self._reactor,
                target.host,
                target.port,
                self._limit,
                lambda address: self._may_reach(target, kind_of(address)),
                lambda: self._not_public(target),
            )
        if target.scheme == "https":
            # The client certificate identifies the gateway to the registry itself alone.
            tls = self._tls.to_location if target == self._origin else self._tls.to_redirects
            endpoint = wrapClientTLS(tls.to(target.host), endpoint)
        return BoundedHeads(endpoint)

    async def _judge_proxied(self, target: WebOrigin) -> None:
        """Raise unless a proxy may be asked for a host, by the addresses of its name.

        If neither it nor the registry's own name has an address on this machine, only the proxy
        resolves names, and `ProxiedHosts` alone decides.
        """
        is_named = target.host == self._origin.host and not self._location.must_be_public
        if is_named or self._location.trusts(target) or self._proxies.lists(target):
            return
        addresses = await self._resolver.addresses(target.host)
        if not all(self._may_reach(target, kind_of(address)) for address in addresses):
            raise self._not_public(target)
        if addresses:
            return
        if self._proxies.has_list or self._location.must_be_public:
            raise RegistryUntrusted(
                f"{self._subject} sends the gateway to a host that the site's proxy may not be"
                " asked for.",
                remedy="Tell the site's support: its name has no address on the gateway's machine;"
                " where that is meant to be, `ProxiedHosts` can list it.",
                detail=target.authority,
            )
        if await self._resolver.addresses(self._origin.host):
            raise Interruption(
                f"{self._subject} sends the gateway to a host whose name has no address.",
                remedy="Try again later; if it lasts, tell the site's support: where only the proxy"
                " can resolve it, `ProxiedHosts` can list it.",
                detail=target.authority,
            )

    def _to_proxy(self, proxy: Proxy) -> HostnameEndpoint:
        return HostnameEndpoint(self._reactor, proxy.host, proxy.port, timeout=self._limit)
