"""Doubles for the registry client: a reactor with names and addresses, a sink, and a proxy."""

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

from shiftergw.model.references import ImageReference
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions, ShareManifests
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.installed_reactor import reactor
from tests.registries import FakeRegistry

REACTOR = reactor
PUBLIC = "8.8.4.4"
"""An address that looks public; in `Network` it is the loopback."""


@implementer(IReactorPluggableNameResolver)
class Network:
    """A reactor whose names have the addresses in `names`, and which connects only to the loopback.

    `destinations` has the (address, port) of each connection.
    """

    def __init__(self, names: Mapping[str, list[str]]) -> None:
        """Resolve these names; all others do not exist."""
        self.names = dict(names)
        self.destinations: list[tuple[str, int]] = []
        self.nameResolver = self

    def installNameResolver(self, resolver: Any) -> Any:
        """Raise, because the resolver may not be replaced."""
        raise AssertionError(resolver)

    def resolveHostName(self, receiver: Any, name: str, **options: Any) -> Any:
        """Resolve a name; an address in any notation resolves to itself."""
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
        self.destinations.append((host, port))
        return REACTOR.connectTCP("127.0.0.1", port, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the reactor."""
        return getattr(REACTOR, name)


class Sink:
    """A `BlobSink` in memory; `offsets` has the offset of each call of `begin`."""

    def __init__(self, content: bytes = b"") -> None:
        """Start with the first bytes of a blob."""
        self.content = bytearray(content)
        self.offsets: list[int] = []
        self.producer: Any = None
        self.on_write: Callable[[bytes], object] = len

    @property
    def position(self) -> int:
        """Return the number of bytes."""
        return len(self.content)

    def begin(self, offset: int) -> None:
        """Discard the bytes after `offset`."""
        assert offset <= len(self.content)
        self.offsets.append(offset)
        del self.content[offset:]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Store the producer."""
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.producer = None

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self.content += data
        self.on_write(data)


def locate(reference: ImageReference) -> tuple[str, str]:
    """Assign each reference to the location `test`."""
    return "test", reference.name


SHORT = Limits(connect=2.0, header=1.0, idle=0.3)
HASTY = Patience(first=0.01, quick=1.0)


@asynccontextmanager
async def open_client(
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
    """Run a client of one location, `test`; close all its connections afterwards."""
    location = Location("test", url, cacert, trusted_hosts)
    options = RegistryOptions(
        limits, patience, lambda: 0.5, shared_breakers or SharedBreakers(), share_manifests
    )
    proxies = Proxies(environment or {}, proxied_hosts)
    client = RegistryClient(reactor, RegistryNames({"test": location}, locate), proxies, options)
    try:
        yield client
    finally:
        await client.close()
        await pause(0.02, REACTOR)


def quiet(_: str) -> None:
    """Ignore a message to the user."""


@asynccontextmanager
async def serving(registry: FakeRegistry, **options: Any) -> AsyncIterator[RegistryClient]:
    """Run a registry, and a client of it; `options` are those of `open_client`."""
    await registry.start()
    try:
        async with open_client(f"http://{registry.host}", **options) as client:
            yield client
    finally:
        await registry.stop()


class ConnectProxy(Factory):
    """An HTTP proxy with CONNECT as its only method, on a free port of the loopback.

    `lines` has the header of each request. If `authorization` is given, requests need it. All
    connections go to the loopback, whatever the host. `answer` replaces the answer to CONNECT.
    """

    noisy = False

    def __init__(self, authorization: str | None = None, answer: bytes | None = None) -> None:
        """Create the proxy without a port."""
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
        """Close the port and all connections."""
        await self._port.stopListening()
        while self.connections:
            for connection in tuple(self.connections):
                transport: Any = connection.transport
                transport.abortConnection()
            await pause(0.01, REACTOR)

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Client(self)


class _Relay(Protocol):
    """One end of a tunnel through the proxy; `peer` is the other end."""

    peer: Any = None

    def __init__(self, proxy: ConnectProxy) -> None:
        self._proxy = proxy

    def connectionMade(self) -> None:
        self._proxy.connections.add(self)

    def dataReceived(self, data: bytes) -> None:
        self.peer.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._proxy.connections.discard(self)
        if self.peer is not None:
            self.peer.transport.loseConnection()


class _Client(_Relay):
    """The end of the client that sends CONNECT."""

    _head = b""

    def dataReceived(self, data: bytes) -> None:
        if self.peer is not None:
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
        authorization = self._proxy.authorization
        if self._proxy.answer is not None:
            transport.write(self._proxy.answer)
        elif authorization is not None and f"Proxy-Authorization: {authorization}" not in lines:
            self._say(b"407 Proxy Authentication Required")
        else:
            port = int(lines[0].split(" ")[1].rpartition(":")[2])
            endpoint = TCP4ClientEndpoint(REACTOR, "127.0.0.1", port)
            factory = Factory.forProtocol(lambda: _Relay(self._proxy))
            factory.noisy = False
            peer: Any = await endpoint.connect(factory)
            self.peer, peer.peer = peer, self
            self._say(b"200 Connection established")
