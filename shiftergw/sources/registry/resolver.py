"""Resolve the names of hosts that are reached through a proxy, to judge their addresses.

The proxy resolves names itself, and normally gets the same addresses as this machine. It does not
where the owner of a name answers it differently, or where only the proxy has a name service; then
`ProxiedHosts` decides.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from shiftergw.plumbing.reactor import with_name_resolver
from shiftergw.plumbing.timing import shield, within
from shiftergw.sources.registry.retry import Interruption

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

LOOKUP_SECONDS = 5.0
"""Seconds that a caller waits. A look-up that hangs stays in its thread, and is not repeated."""

ANSWER_SECONDS = 60.0
"""Seconds for which an answer is used."""

MAX_LOOKUPS = 4
"""Parallel look-ups. They use the reactor's threads, which the proxy's own name needs, too."""


class _TooLateError(Exception):
    """A look-up took too long."""


class Resolver:
    """Looks up the addresses of names, one look-up at a time for each name."""

    def __init__(self, reactor: Reactor) -> None:
        """Start without answers."""
        self._reactor = reactor
        self._answers: dict[str, tuple[float, frozenset[str]]] = {}
        self._running: dict[str, Deferred[None]] = {}

    async def addresses(self, host: str) -> frozenset[str]:
        """Return the IPv4 and IPv6 addresses of a host; none if it cannot be resolved here.

        Raises `Interruption` while too many look-ups run. Otherwise a registry could name slow
        hosts first, and the next host would count as one without addresses.
        """
        now = self._reactor.seconds()
        self._answers = {name: answer for name, answer in self._answers.items() if answer[0] > now}
        if host in self._answers:
            return self._answers[host][1]
        if host not in self._running:
            if len(self._running) >= MAX_LOOKUPS:
                raise Interruption(
                    f"The name service has not answered for {MAX_LOOKUPS} hosts yet.",
                    why="the name service",
                    detail=host,
                )
            self._look_up(host)
        if host in self._running:
            with suppress(_TooLateError):
                lookup = shield(self._running[host])
                await within(LOOKUP_SECONDS, self._reactor, lookup, _TooLateError)
        return self._answers[host][1] if host in self._answers else frozenset()

    def _look_up(self, host: str) -> None:
        receiver = _Addresses()
        self._running[host] = receiver.complete
        receiver.complete.addCallback(lambda _: self._store_answer(host, receiver.addresses))
        resolver = with_name_resolver(self._reactor).nameResolver
        resolver.resolveHostName(receiver, host, portNumber=0)

    def _store_answer(self, host: str, addresses: set[str]) -> None:
        del self._running[host]
        self._answers[host] = (self._reactor.seconds() + ANSWER_SECONDS, frozenset(addresses))


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects the addresses of one name."""

    def __init__(self) -> None:
        self.complete: Deferred[None] = Deferred()
        self.addresses: set[str] = set()

    def resolutionBegan(self, resolution: Any) -> None:
        """Do nothing: a look-up in a thread cannot be cancelled."""

    def addressResolved(self, address: Any) -> None:
        self.addresses.add(address.host)

    def resolutionComplete(self) -> None:
        self.complete.callback(None)
