"""Resolve the names of hosts that are reached through a proxy, to judge their addresses.

The proxy resolves a name itself. What we resolve is what it will get, unless the name's owner
answers it otherwise, or names are resolved by the proxy alone: `ProxiedHosts` is for that.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from shiftergw.plumbing.timing import shielded, within
from shiftergw.registry.retry import Interrupted

SECONDS = 5.0
"""How long a name may take. A look-up that hangs goes on in its thread, and is not repeated."""

KEPT_SECONDS = 60.0
"""How long an answer is used."""

MOST_LOOKUPS = 4
"""Look-ups at once: their threads are the reactor's, which needs some for the proxy's own name."""


class _TooLateError(Exception):
    """A name takes too long."""


class Resolver:
    """Looks up the addresses of names, one look-up at a time for each name."""

    def __init__(self, reactor: Any) -> None:
        """Look nothing up yet."""
        self._reactor = reactor
        self._answers: dict[str, tuple[float, frozenset[str]]] = {}
        self._running: dict[str, Deferred[None]] = {}

    async def addresses(self, host: str) -> frozenset[str]:
        """Return the IPv4 and IPv6 addresses of a host; none if it cannot be resolved here.

        Raises `Interrupted` while too many look-ups run: nothing is known of the host then, and a
        registry that names slow hosts must not make it pass for one without addresses.
        """
        now = self._reactor.seconds()
        self._answers = {name: answer for name, answer in self._answers.items() if answer[0] > now}
        if host in self._answers:
            return self._answers[host][1]
        if host not in self._running:
            if len(self._running) >= MOST_LOOKUPS:
                raise Interrupted(
                    f"The name service has not answered for {MOST_LOOKUPS} hosts yet.",
                    why="the name service",
                    detail=host,
                )
            self._look_up(host)
        if host in self._running:
            with suppress(_TooLateError):
                ended = shielded(self._running[host])
                await within(SECONDS, self._reactor, ended, _TooLateError)
        return self._answers[host][1] if host in self._answers else frozenset()

    def _look_up(self, host: str) -> None:
        receiver = _Addresses()
        self._running[host] = receiver.complete
        receiver.complete.addCallback(lambda _: self._looked_up(host, receiver.addresses))
        self._reactor.nameResolver.resolveHostName(receiver, host, portNumber=0)

    def _looked_up(self, host: str, addresses: set[str]) -> None:
        del self._running[host]
        self._answers[host] = (self._reactor.seconds() + KEPT_SECONDS, frozenset(addresses))


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects the addresses of one name."""

    def __init__(self) -> None:
        self.complete: Deferred[None] = Deferred()
        self.addresses: set[str] = set()

    def resolutionBegan(self, resolution: Any) -> None:
        """Nothing is cancelled: a thread cannot be."""

    def addressResolved(self, address: Any) -> None:
        self.addresses.add(address.host)

    def resolutionComplete(self) -> None:
        self.complete.callback(None)
