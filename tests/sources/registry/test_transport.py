"""Requests have permitted targets and verified TLS; credentials reach only their registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from shiftergw.errors import ConfigurationError, RegistryUnavailable, RegistryUntrusted, RetryLater
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.retry import Patience
from tests.certificates import Authority
from tests.registries import FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, open_client, quiet
from tests.sources.registry.tls_sites import IMAGE, LAYER, LOGIN, fetch, listening

REFERENCE = ImageReference.parse("team/app")


SINGLE_TRY = Patience(tries=1)


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> Digest:
    """Return the digest of an image."""
    image, _ = await client.resolve(REFERENCE, Platform(), login, quiet)
    return image.digest


# TLS


@pytest_twisted.ensureDeferred
async def test_tls(authority: Authority) -> None:
    """A certificate of the location's own authority, for its own name, is accepted."""
    registry = FakeRegistry(IMAGE)
    network = Network({"registry.example": [PUBLIC]})
    async with listening(registry, certificates=[authority.options("registry.example")]) as [port]:
        url = f"https://registry.example:{port}"
        async with open_client(url, network, cacert=authority.pem) as client:
            assert await resolve(client) == IMAGE.digest
            assert await fetch(client) == IMAGE.blobs[LAYER]
    assert network.destinations == [(PUBLIC, port)]
    assert registry.requests[0].header("Host") == f"registry.example:{port}"


@pytest.mark.parametrize(
    ("name", "is_trusted", "expected"),
    [
        ("registry.example", False, "not trusted"),
        ("other.example", True, "is for other.example, not for registry.example"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_certificates(
    name: str, is_trusted: bool, expected: str, authority: Authority, tmp_path: Path
) -> None:
    """A certificate of an unknown authority, or for another name, ends a request at once."""
    cacert = authority.pem if is_trusted else Authority(tmp_path).pem
    registry = FakeRegistry(IMAGE)
    network = Network({"registry.example": [PUBLIC]})
    async with (
        listening(registry, certificates=[authority.options(name)]) as [port],
        open_client(f"https://registry.example:{port}", network, cacert=cacert) as client,
    ):
        with pytest.raises(RegistryUntrusted, match=f"'test' .*{expected}"):
            await resolve(client)
    assert registry.requests == []
    assert len(network.destinations) == 1


@pytest_twisted.ensureDeferred
async def test_the_systems_authorities(authority: Authority) -> None:
    """Without its own file a location is verified by the system's authorities."""
    network = Network({"registry.example": [PUBLIC]})
    registry = FakeRegistry(IMAGE)
    async with (
        listening(registry, certificates=[authority.options("registry.example")]) as [port],
        open_client(f"https://registry.example:{port}", network) as client,
    ):
        with pytest.raises(RegistryUntrusted):
            await resolve(client)


@asynccontextmanager
async def open_server(protocol: type[Protocol]) -> AsyncIterator[int]:
    """Run a server of this protocol; yield its port."""
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    port = REACTOR.listenTCP(0, factory, interface="127.0.0.1")
    yield port.getHost().port
    await port.stopListening()


class Plain(Protocol):
    """A server that answers any data without TLS."""

    def dataReceived(self, data: bytes) -> None:
        assert b"GET" not in data
        assert self.transport is not None
        self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_no_tls_at_all() -> None:
    """The error names a server without TLS, which gets no request in clear text."""
    network = Network({"registry.example": [PUBLIC]})
    async with open_server(Plain) as port:
        url = f"https://registry.example:{port}"
        async with open_client(url, network, patience=SINGLE_TRY) as client:
            with pytest.raises(RegistryUnavailable, match=r"TLS.*http://.*--plain-http"):
                await resolve(client, LOGIN)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
@pytest_twisted.ensureDeferred
async def test_an_unusable_cacert(content: bytes | None, tmp_path: Path) -> None:
    """A missing file, or a file without a certificate, is a fault of the configuration."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="'test'"):
        async with open_client("https://registry.example", cacert=file):
            pass


# Names and limits


@pytest_twisted.ensureDeferred
async def test_an_unknown_name() -> None:
    """The error for a name that does not exist has the location's name."""
    async with open_client("https://absent.example", Network({}), patience=SINGLE_TRY) as client:
        with pytest.raises(RetryLater, match="'test' cannot be found"):
            await resolve(client)


class Mute(Protocol):
    """A server that accepts a connection and sends nothing."""


@pytest_twisted.ensureDeferred
async def test_silence_before_tls() -> None:
    """The request to a server that sends nothing ends after the limit, or if it is cancelled."""
    network = Network({"registry.example": [PUBLIC]})
    async with open_server(Mute) as port:
        url = f"https://registry.example:{port}"
        async with open_client(url, network, patience=SINGLE_TRY) as client:
            with pytest.raises(RetryLater, match="does not answer"):
                await resolve(client)
            running = Deferred.fromCoroutine(resolve(client))
            await pause(0.05, REACTOR)
            running.cancel()
            with pytest.raises(CancelledError):
                await running


@pytest_twisted.ensureDeferred
async def test_cancelling_a_look_up() -> None:
    """A cancelled look-up raises `CancelledError`, not the error for an unknown name."""

    class Slow(Network):
        def resolveHostName(self, receiver: Any, name: str, **options: Any) -> Any:
            receiver.resolutionBegan(self)
            return self

    async with open_client("https://registry.example", Slow({})) as client:
        running = Deferred.fromCoroutine(resolve(client))
        running.cancel()
        with pytest.raises(CancelledError):
            await running
