"""Limit the connections of a site, and choose which of them are closed to make room.

A connection is *waiting* until a whole request has come, and again once its answer is written; in
between it is *busy*. Only waiting connections are closed to make room: those that have shown no
valid credential yet before others, and the oldest first, since an honest client sends its request
as soon as it is connected.

* One peer, unless it is a front proxy, has a share of `per_peer` connections: beyond that one makes
  way that has waited for `GRACE` seconds, and beyond twice as many any.
* Connections that wait without a credential are half of all: beyond that those make way that have
  waited for `GRACE` seconds.
* All together are at most `most`, which leaves descriptors for everything else. Beyond that those
  make way that have waited for `GRACE` seconds; where none has, new connections stay in the
  kernel's backlog until there is room. So a burst of honest clients waits, and none is refused.
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
"""Seconds for which a connection may wait before it makes way because there are too many."""

LOOK_AGAIN = 1.0
"""Seconds between two attempts to make room for connections in the backlog."""

RESERVE = 256
"""Descriptors for all else: workers, databases, munge, files, and bursts of these."""

ACCEPTED_AT_ONCE = 1
"""Connections that a port accepts in one turn of the reactor; Twisted adds up to 20."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be, and how long a request may take to come in (seconds).

    The peers in `proxies` have no share of their own: many users are behind each of them.
    """

    most: int = 1000
    per_peer: int = 250
    request_seconds: float = 30.0
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def without_credential(self) -> int:
        """Return how many may wait that have shown no valid credential."""
        return max(1, self.most // 2)

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
        """Return the limits that fit into so many descriptors of the process."""
        most = max(1, min(connections, descriptors - min(RESERVE, descriptors // 2)))
        return cls(
            most,
            min(per_peer, max(1, most // 4)),
            request_seconds,
            tuple(ip_network(text, strict=False) for text in proxies),
        )

    def is_proxy(self, peer: str) -> bool:
        """Return whether a peer is a front proxy; one without an address is on this machine."""
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return True
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.proxies)


class Connection(Protocol):
    """What is limited here: one connection of a client."""

    has_credential: bool
    """Whether one of its requests had a valid credential."""

    def make_way(self) -> None:
        """Close at once."""
        ...


class Connections:
    """The connections of a site."""

    _log = Logger()

    def __init__(self, limits: ConnectionLimits, clock: IReactorTime) -> None:
        """Begin without any."""
        self._limits = limits
        self._clock = clock
        self._shares: dict[Connection, str] = {}
        self._by_share: dict[str, dict[Connection, None]] = {}
        # In the order in which they began to wait, with the time.
        self._waiting: dict[Connection, float] = {}
        self._unknown: dict[Connection, None] = {}
        self._closing: set[Connection] = set()
        self._paused: set[Any] = set()
        self._again: Any = None
        self._evictions = 0

    def __len__(self) -> int:
        """Return how many there are, those that are about to close included."""
        return len(self._shares)

    def add(self, connection: Connection, peer: str, port: Any = None) -> None:
        """Count a new connection, which waits; `port` is where it was accepted, if it can pause."""
        share = "" if self._limits.is_proxy(peer) else _share(peer)
        self._shares[connection] = share
        self._by_share.setdefault(share, {})[connection] = None
        self.wait(connection)
        if port is not None:
            port.numberAccepts = ACCEPTED_AT_ONCE
        if share:
            self._check_share(share)
        if len(self._shares) - len(self._closing) >= self._limits.most and not self._make_room():
            self._pause(port)

    def wait(self, connection: Connection) -> None:
        """Note that a connection waits for its next request."""
        self._waiting[connection] = self._clock.seconds()
        if not connection.has_credential:
            self._unknown[connection] = None
            if len(self._unknown) > self._limits.without_credential:
                self._evict_old(self._unknown)

    def work(self, connection: Connection) -> None:
        """Note that a whole request has come in, and is answered now."""
        self._waiting.pop(connection, None)
        self._unknown.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed, and take others in its place."""
        self.work(connection)
        self._closing.discard(connection)
        share = self._shares.pop(connection, None)
        if share is not None:
            self._by_share[share].pop(connection, None)
            if not self._by_share[share]:
                del self._by_share[share]
        if self._paused and len(self._shares) < self._limits.most:
            self._resume()

    def close(self) -> None:
        """Stop looking for room: nothing is accepted any more."""
        self._paused.clear()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _check_share(self, share: str) -> None:
        """Have a connection of a peer make way if it has too many; the new one if all others work.

        An honest burst is over its share for a moment, until its requests are read.
        """
        excess = len(self._by_share[share].keys() - self._closing) - self._limits.per_peer
        if excess <= 0:
            return
        waiting = [one for one in self._by_share[share] if one in self._waiting]
        before = self._clock.seconds() - GRACE
        old = [one for one in waiting if self._waiting[one] <= before]
        candidates = old or (waiting if excess > self._limits.per_peer else [])
        if candidates:
            self._evict(min(candidates, key=lambda one: (one.has_credential, self._waiting[one])))

    def _make_room(self) -> bool:
        """Have those make way that have waited for long; return whether there are any."""
        return self._evict_old(self._unknown) or self._evict_old(self._waiting)

    def _evict_old(self, connections: Iterable[Connection]) -> bool:
        before = self._clock.seconds() - GRACE
        old = [*takewhile(lambda one: self._waiting[one] <= before, connections)]
        for connection in old:
            self._evict(connection)
        return bool(old)

    def _evict(self, connection: Connection) -> None:
        self.work(connection)
        self._closing.add(connection)
        if self._evictions % 1000 == 0:
            self._log.warn(
                "many connections at once: closing idle or half-sent ones ({count} open, at most"
                " {most})",
                count=len(self._shares),
                most=self._limits.most,
            )
        self._evictions += 1
        connection.make_way()

    def _pause(self, port: Any) -> None:
        if port is None:
            return
        port.stopReading()
        self._paused.add(port)
        if self._again is None:
            self._again = self._clock.callLater(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        if len(self._shares) < self._limits.most or self._make_room():
            self._resume()
        elif self._paused:
            self._again = self._clock.callLater(LOOK_AGAIN, self._look_again)

    def _resume(self) -> None:
        for port in self._paused:
            if port.connected and not port.disconnecting:
                port.startReading()
        self._paused.clear()


def _share(peer: str) -> str:
    """Return whose share a peer's connections count to: a host has a whole /64 of IPv6."""
    address = ip_address(peer.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return peer
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, 64), strict=False))
