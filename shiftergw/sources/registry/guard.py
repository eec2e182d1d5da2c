"""Keep registries from sending the gateway to addresses of the site's own network.

Registries are not trusted, and name the targets of redirects and their token services. The host of
such a URL is checked as text. Its addresses are checked while they are resolved for the connection
itself, so that a second answer of the name service cannot add an address.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.plumbing.reactor import with_name_resolver

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

READ_SIZE = 1 << 17
"""Bytes that are read from a connection at once.

With Twisted's 64 KiB a download on a fast line takes twice the processor time.
"""

Kind = Literal["global", "private", "loopback", "link-local"]

_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")
"""The addresses of IPv6 that IANA assigns to hosts of the Internet.

Site-local ones (fec0::/10), which Python's `ipaddress` counts as global, are not among them.
"""

_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            # Part of 2000::/3 (IANA's special-purpose registry): Teredo, ORCHID and benchmarks, two
            # for documentation. Teredo has two IPv4 addresses inside; nobody serves images there.
            *("2001::/23", "2001:db8::/32", "3fff::/20"),
            # The relays of 6to4: any host next to the gateway may be one.
            "192.88.99.0/24",
        ),
    )
)
"""Networks that are not public, although some versions of Python's `ipaddress` say so."""

_LOCAL_NAMES: dict[str, Kind] = {
    "localhost": "loopback",
    "localdomain": "loopback",
    "local": "private",
    "internal": "private",
}


def kind_of(address: str) -> Kind:
    """Return the kind of an address; multicast and reserved addresses count as private.

    The IPv4 address inside an IPv6 address (mapped, 6to4, NAT64) decides.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = IPv4Address(ip.packed[-4:])
        ip = inner or ip
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    public = ip.is_global and not ip.is_multicast and not ip.is_reserved
    if isinstance(ip, IPv6Address):
        public = public and ip in _UNICAST
    special = any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
    return "global" if public and not special else "private"


def kind_of_name(host: str) -> Kind | None:
    """Return the kind of a host that is an address in any notation or a local name, else None."""
    with suppress(ValueError):
        return kind_of(host)
    with suppress(OSError):  # 127.1, 0x7f000001 and 2130706433 are addresses too
        return kind_of(socket.inet_ntoa(socket.inet_aton(host)))
    return _LOCAL_NAMES.get(host.lower().rstrip(".").rpartition(".")[2])


@implementer(IHostnameResolver)
class _Filter:
    """A resolver that passes on the addresses that `allows` accepts."""

    def __init__(self, resolver: Any, allows: Callable[[str], bool]) -> None:
        self._resolver = resolver
        self._allows = allows

    # All arguments but the receiver are passed on as they are.
    def resolveHostName(  # type: ignore[override]
        self, receiver: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return self._resolver.resolveHostName(_Receiver(receiver, self._allows), *args, **kwargs)


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self, receiver: Any, allows: Callable[[str], bool]) -> None:
        self.resolutionBegan = receiver.resolutionBegan
        self.resolutionComplete = receiver.resolutionComplete
        self._receiver = receiver
        self._allows = allows

    def addressResolved(self, address: Any) -> None:
        if self._allows(address.host):
            self._receiver.addressResolved(address)


@implementer(IReactorPluggableNameResolver)
class _GuardedReactor:
    """A reactor whose names resolve to addresses that `allows` accepts, and to no others."""

    def __init__(self, reactor: Reactor, allows: Callable[[str], bool]) -> None:
        resolving = with_name_resolver(reactor)
        self.nameResolver = _Filter(resolving.nameResolver, allows)
        self.installNameResolver = resolving.installNameResolver
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def _enlarge_reads(protocol: Any) -> Any:
    """Let a connected protocol get more bytes at once, and return it."""
    protocol.transport.bufferSize = READ_SIZE
    return protocol


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """A connection to a host, over IPv4 or IPv6, at an address that `allows` accepts.

    `make_refusal` returns the error for a host all of whose addresses are refused.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: str,
        port: int,
        limit: float,
        allows: Callable[[str], bool],
        make_refusal: Callable[[], Exception],
    ) -> None:
        """Keep what `connect` needs; `limit` is that of one attempt, in seconds."""
        self._allows = allows
        self._make_refusal = make_refusal
        self._has_refused = False
        self._endpoint = HostnameEndpoint(
            _GuardedReactor(reactor, self._judge), host, port, timeout=limit
        )

    def _judge(self, address: str) -> bool:
        is_allowed = self._allows(address)
        self._has_refused = self._has_refused or not is_allowed
        return is_allowed

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        """Return the connected protocol; fail as `HostnameEndpoint` does, or with the refusal."""
        connecting = self._endpoint.connect(protocolFactory)
        return connecting.addCallbacks(_enlarge_reads, self._explain)

    def _explain(self, failure: Failure) -> Failure:
        if self._has_refused and failure.check(DNSLookupError):
            raise self._make_refusal()
        return failure
