"""Keeps a registry from sending the gateway to addresses of the site's own network.

A redirect or a token service is named by a stranger. Its name is checked as text, and its addresses
as they are resolved for the very connection that is made: a second answer of the name service
cannot slip another address in.
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

Kind = Literal["global", "private", "loopback", "link-local"]

_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")
"""All that the Internet has of IPv6; site-local addresses (fec0::/10), which Python's `ipaddress`
counts as global, and whatever else is added to the others, are outside of it."""

_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            # Part of 2000::/3 (IANA's special-purpose registry): Teredo, ORCHID and benchmarks, two
            # for documentation. Teredo has two IPv4 addresses inside; nobody serves images there.
            *("2001::/23", "2001:db8::/32", "3fff::/20"),
            # The relays of 6to4: whoever is next to us may be one.
            "192.88.99.0/24",
        ),
    )
)
"""What versions of Python's `ipaddress` do not agree on, or count as global."""

_LOCAL_NAMES: dict[str, Kind] = {
    "localhost": "loopback",
    "localdomain": "loopback",
    "local": "private",
    "internal": "private",
}


def kind_of(address: str) -> Kind:
    """Return what kind of address this is; multicast, reserved and the like count as private.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) counts as what it is.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in _NAT64:
            inner = IPv4Address(parsed.packed[-4:])
        parsed = inner or parsed
    if parsed.is_loopback or parsed.is_unspecified:
        return "loopback"
    if parsed.is_link_local:
        return "link-local"
    public = parsed.is_global and not parsed.is_multicast and not parsed.is_reserved
    if isinstance(parsed, IPv6Address):
        public = public and parsed in _UNICAST
    special = any(parsed in network for network in _NOT_PUBLIC if network.version == parsed.version)
    return "global" if public and not special else "private"


def kind_of_name(host: str) -> Kind | None:
    """Return what a host's text alone says: an address in any notation, a local name; or None."""
    with suppress(ValueError):
        return kind_of(host)
    with suppress(OSError):  # 127.1, 0x7f000001 and 2130706433 are addresses too
        return kind_of(socket.inet_ntoa(socket.inet_aton(host)))
    return _LOCAL_NAMES.get(host.lower().rstrip(".").rpartition(".")[2])


@implementer(IHostnameResolver)
class _Filter:
    """A resolver that passes on the addresses that `allows`."""

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


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """A connection to a host, over IPv4 or IPv6, at an address that `allows` accepts.

    `refused` makes the error for a host that has other addresses only.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: str,
        port: int,
        limit: float,
        allows: Callable[[str], bool],
        refused: Callable[[], Exception],
    ) -> None:
        """Keep what `connect` needs; `limit` is that of one attempt, in seconds."""
        self._allows = allows
        self._refused = refused
        self._met_other = False
        self._endpoint = HostnameEndpoint(
            _GuardedReactor(reactor, self._judge), host, port, timeout=limit
        )

    def _judge(self, address: str) -> bool:
        allowed = self._allows(address)
        self._met_other = self._met_other or not allowed
        return allowed

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803
        """Return the connected protocol; fail as `HostnameEndpoint` does, or refused."""
        return self._endpoint.connect(protocolFactory).addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        if self._met_other and failure.check(DNSLookupError):
            raise self._refused()
        return failure
