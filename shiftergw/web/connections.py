"""Limit the connections of a site, and choose which of them are closed to make room.

A connection is *waiting* until a complete request has arrived, and again after its answer was
written; in between it is *busy*. Only waiting connections are closed to make room: first those
without a valid credential so far, the oldest of them first, since an honest client sends its
request as soon as it is connected.

* A peer that is not a front proxy may have `per_peer` connections. Beyond that, a connection that
  has waited for `GRACE` seconds is closed; beyond twice as many, any waiting connection.
* Waiting connections without a credential may be half of all connections. Beyond that, those that
  have waited for `GRACE` seconds are closed.
* All connections together are at most `total`, which leaves descriptors for everything else. Beyond
  that, connections that have waited for `GRACE` seconds are closed; if there are none, new
  connections stay in the kernel's backlog until there is room. So a burst of honest clients waits,
  and none is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

GRACE = 2.0
"""Seconds that a connection may wait before it can be closed to make room."""

RETRY_SECONDS = 1.0
"""Seconds between two attempts to make room for connections in the backlog."""

RESERVE = 256
"""Descriptors for everything else: workers, databases, munge, files, and bursts of these."""

ACCEPTED_AT_ONCE = 1
"""Connections that a port accepts in one turn of the reactor; Twisted adds up to 20."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be, and within how many seconds a request must arrive.

    A peer in `proxies` has no limit of its own: many users are behind it.
    """

    total: int = 1000
    per_peer: int = 250
    request_seconds: float = 30.0
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def without_credential(self) -> int:
        """Return how many connections without a valid credential may wait."""
        return max(1, self.total // 2)

    @property
    def streams(self) -> int:
        """Return how many connections may be streams of events, which are never idle."""
        return max(1, self.total // 2)

    @classmethod
    def within(
        cls,
        descriptors: int,
        *,
        connections: int,
        per_peer: int,
        request_seconds: float,
        proxies: Iterable[str],
    ) -> ConnectionLimits:
        """Return the limits for a process that may open this number of file `descriptors`."""
        total = max(1, min(connections, descriptors - min(RESERVE, descriptors // 2)))
        return cls(
            total,
            min(per_peer, max(1, total // 4)),
            request_seconds,
            tuple(ip_network(text, strict=False) for text in proxies),
        )

    def is_proxy(self, peer: str) -> bool:
        """Return whether a peer is a front proxy, as is every peer without an IP address."""
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return True
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.proxies)


class ClientConnection(Protocol):
    """One connection of a client, as the limits need it."""

    has_credential: bool
    """Whether one of its requests had a valid credential."""

    def make_way(self) -> None:
        """Close at once."""
        ...


class ConnectionTable:
    """The connections of a site: counts them, and closes some to make room."""

    _log = Logger()

    def __init__(self, limits: ConnectionLimits, clock: IReactorTime) -> None:
        self._limits = limits
        self._clock = clock
        self._shares: dict[ClientConnection, str] = {}
        self._by_share: dict[str, dict[ClientConnection, None]] = {}
        # In the order in which they began to wait, with the time.
        self._waiting: dict[ClientConnection, float] = {}
        self._without_credential: dict[ClientConnection, None] = {}
        self._closing: set[ClientConnection] = set()
        self._paused_ports: set[Any] = set()
        self._retry_call: Any = None
        self._evictions = 0

    def __len__(self) -> int:
        """Return the number of connections, including those that are being closed."""
        return len(self._shares)

    def add(self, connection: ClientConnection, peer: str, port: Any = None) -> None:
        """Count a new waiting connection; `port` accepted it, if it can stop accepting."""
        share = "" if self._limits.is_proxy(peer) else _share(peer)
        self._shares[connection] = share
        self._by_share.setdefault(share, {})[connection] = None
        self.note_waiting(connection)
        if port is not None:
            port.numberAccepts = ACCEPTED_AT_ONCE
        if share:
            self._check_share(share)
        if len(self._shares) - len(self._closing) >= self._limits.total and not self._make_room():
            self._pause(port)

    def note_waiting(self, connection: ClientConnection) -> None:
        """Note that a connection waits for its next request."""
        self._waiting[connection] = self._clock.seconds()
        if not connection.has_credential:
            self._without_credential[connection] = None
            if len(self._without_credential) > self._limits.without_credential:
                self._evict_old(self._without_credential)

    def note_busy(self, connection: ClientConnection) -> None:
        """Note that a complete request has arrived and is being answered."""
        self._waiting.pop(connection, None)
        self._without_credential.pop(connection, None)

    def remove(self, connection: ClientConnection) -> None:
        """Forget a closed connection, and accept others in its place."""
        self.note_busy(connection)
        self._closing.discard(connection)
        share = self._shares.pop(connection, None)
        if share is not None:
            self._by_share[share].pop(connection, None)
            if not self._by_share[share]:
                del self._by_share[share]
        if self._paused_ports and len(self._shares) < self._limits.total:
            self._resume()

    def close(self) -> None:
        """Stop looking for room, since no connection is accepted any more."""
        self._paused_ports.clear()
        if self._retry_call is not None:
            self._retry_call.cancel()
            self._retry_call = None

    def _check_share(self, share: str) -> None:
        """Close a waiting connection of a peer that has too many.

        An honest burst exceeds its share for a moment, until its requests are read.
        """
        excess = len(self._by_share[share].keys() - self._closing) - self._limits.per_peer
        if excess <= 0:
            return
        waiting = [
            connection for connection in self._by_share[share] if connection in self._waiting
        ]
        before = self._clock.seconds() - GRACE
        old = [connection for connection in waiting if self._waiting[connection] <= before]
        candidates = old or (waiting if excess > self._limits.per_peer else [])
        if candidates:
            self._evict(min(candidates, key=self._eviction_order))

    def _eviction_order(self, connection: ClientConnection) -> tuple[bool, float]:
        """Return a key: without a credential first, then the longest wait first."""
        return connection.has_credential, self._waiting[connection]

    def _make_room(self) -> bool:
        """Close connections that have waited too long; return whether there were any."""
        return self._evict_old(self._without_credential) or self._evict_old(self._waiting)

    def _evict_old(self, connections: Iterable[ClientConnection]) -> bool:
        before = self._clock.seconds() - GRACE
        old = [*takewhile(lambda c: self._waiting[c] <= before, connections)]
        for connection in old:
            self._evict(connection)
        return bool(old)

    def _evict(self, connection: ClientConnection) -> None:
        self.note_busy(connection)
        self._closing.add(connection)
        if self._evictions % 1000 == 0:
            self._log.warn(
                "many connections at once: closing idle or half-sent ones ({count} open, at most"
                " {most})",
                count=len(self._shares),
                most=self._limits.total,
            )
        self._evictions += 1
        connection.make_way()

    def _pause(self, port: Any) -> None:
        if port is None:
            return
        port.stopReading()
        self._paused_ports.add(port)
        if self._retry_call is None:
            self._retry_call = self._clock.callLater(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._retry_call = None
        if len(self._shares) < self._limits.total or self._make_room():
            self._resume()
        elif self._paused_ports:
            self._retry_call = self._clock.callLater(RETRY_SECONDS, self._retry)

    def _resume(self) -> None:
        for port in self._paused_ports:
            if port.connected and not port.disconnecting:
                port.startReading()
        self._paused_ports.clear()


def _share(peer: str) -> str:
    """Return the address, or the /64 network of an IPv6 host, whose share a peer belongs to."""
    address = ip_address(peer.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return peer
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, 64), strict=False))
