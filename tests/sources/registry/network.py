"""A small world for the registry client: names, addresses, certificates, a sink, a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.model import ImageReference
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.registries import ShareManifests
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.installed_reactor import reactor

REACTOR = reactor
PUBLIC = "8.8.4.4"
"""An address that looks public; in `Network` it is the loopback."""


@implementer(IReactorPluggableNameResolver)
class Network:
    """The reactor in a world where names have the addresses of `names`, and all lead to here.

    `reached` keeps every (address, port) that was connected to.
    """

    def __init__(self, names: Mapping[str, list[str]]) -> None:
        """Know these names; others do not exist."""
        self.names = dict(names)
        self.reached: list[tuple[str, int]] = []
        self.nameResolver = self

    def installNameResolver(self, resolver: Any) -> Any:
        """Nobody installs another."""
        raise AssertionError(resolver)

    def resolveHostName(self, receiver: Any, name: str, **options: Any) -> Any:
        """Tell the addresses of a name; an address in any notation has itself."""
        port = options["portNumber"]
        receiver.resolutionBegan(self)
        for address in self.names.get(name, [name]):
            try:
                version = ip_address(address).version
            except ValueError:
                continue
            kind = IPv4Address if version == 4 else IPv6Address
            receiver.addressResolved(kind("TCP", address, port))
        receiver.resolutionComplete()
        return self

    def connectTCP(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        """Connect to the loopback, whatever the address."""
        self.reached.append((host, port))
        return REACTOR.connectTCP("127.0.0.1", port, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Be the reactor in everything else."""
        return getattr(REACTOR, name)


class Sink:
    """A `BlobSink` in memory. `begun` keeps where the bytes were said to start."""

    def __init__(self, content: bytes = b"") -> None:
        """Have the first bytes of a blob already."""
        self.content = bytearray(content)
        self.begun: list[int] = []
        self.producer: Any = None
        self.on_write: Callable[[bytes], object] = len

    @property
    def position(self) -> int:
        """Return how many bytes there are."""
        return len(self.content)

    def begin(self, offset: int) -> None:
        """Forget what lies behind `offset`."""
        assert offset <= len(self.content)
        self.begun.append(offset)
        del self.content[offset:]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Keep the producer."""
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.producer = None

    def write(self, data: bytes) -> None:
        """Keep the bytes."""
        self.content += data
        self.on_write(data)


def locate(reference: ImageReference) -> tuple[str, str]:
    """Let every reference be of the location `test`."""
    return "test", reference.name


SHORT = Limits(connect=2.0, header=1.0, idle=0.3)
HASTY = Patience(first=0.01, quick=1.0)


@asynccontextmanager
async def a_client(
    url: str,
    reactor: Any = REACTOR,
    *,
    environment: Mapping[str, str] | None = None,
    limits: Limits = SHORT,
    patience: Patience = HASTY,
    cacert: Path | None = None,
    trusted_hosts: tuple[str, ...] = (),
    proxied_hosts: tuple[str, ...] | None = None,
    shared_breakers: SharedBreakers | None = None,
    share_manifests: ShareManifests | None = None,
) -> AsyncIterator[RegistryClient]:
    """Give a client of one location, `test`; all its connections are gone afterwards."""
    location = Location("test", url, cacert, trusted_hosts)
    client = RegistryClient(
        reactor,
        {"test": location},
        locate,
        environment or {},
        shared_breakers=shared_breakers or SharedBreakers(),
        limits=limits,
        patience=patience,
        random=lambda: 0.5,
        proxied_hosts=proxied_hosts,
        share_manifests=share_manifests,
    )
    try:
        yield client
    finally:
        await client.close()
        await pause(0.02, REACTOR)


class ConnectProxy(Factory):
    """An HTTP proxy that knows CONNECT alone, on a free port of the loopback.

    `lines` keeps the header of every request. It wants `authorization` if that is given, and
    leads to the loopback, whatever the host. `answer` replaces its answer.
    """

    noisy = False

    def __init__(self, authorization: str | None = None, answer: bytes | None = None) -> None:
        """Listen on nothing yet."""
        self.authorization = authorization
        self.answer = answer
        self.lines: list[list[str]] = []
        self.host = ""
        self._port: Any = None
        self.connections: set[Protocol] = set()

    async def start(self) -> ConnectProxy:
        """Listen."""
        self._port = await TCP4ServerEndpoint(REACTOR, 0, interface="127.0.0.1").listen(self)
        self.host = f"127.0.0.1:{self._port.getHost().port}"
        return self

    async def stop(self) -> None:
        """Close everything."""
        await self._port.stopListening()
        while self.connections:
            for one in tuple(self.connections):
                transport: Any = one.transport
                transport.abortConnection()
            await pause(0.01, REACTOR)

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Client(self)


class _Relay(Protocol):
    """One side of a way through the proxy."""

    other: Any = None

    def __init__(self, proxy: ConnectProxy) -> None:
        self._proxy = proxy

    def connectionMade(self) -> None:
        self._proxy.connections.add(self)

    def dataReceived(self, data: bytes) -> None:
        self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._proxy.connections.discard(self)
        if self.other is not None:
            self.other.transport.loseConnection()


class _Client(_Relay):
    """The side that asks."""

    _head = b""

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None:
            super().dataReceived(data)
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            Deferred.fromCoroutine(self._open()).addErrback(lambda _: self._say(b"502 Bad Gateway"))

    def _say(self, status: bytes) -> None:
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 " + status + b"\r\nVia: 1.1 test\r\n\r\n")

    async def _open(self) -> None:
        lines = self._head.decode().split("\r\n")
        self._proxy.lines.append(lines)
        transport: Any = self.transport
        wanted = self._proxy.authorization
        if self._proxy.answer is not None:
            transport.write(self._proxy.answer)
        elif wanted is not None and f"Proxy-Authorization: {wanted}" not in lines:
            self._say(b"407 Proxy Authentication Required")
        else:
            port = int(lines[0].split(" ")[1].rpartition(":")[2])
            endpoint = TCP4ClientEndpoint(REACTOR, "127.0.0.1", port)
            factory = Factory.forProtocol(lambda: _Relay(self._proxy))
            factory.noisy = False
            other: Any = await endpoint.connect(factory)
            self.other, other.other = other, self
            self._say(b"200 Connection established")
