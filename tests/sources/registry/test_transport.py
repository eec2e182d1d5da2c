"""Requests have permitted targets and verified TLS; credentials reach only their registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions

from shiftergw.errors import ConfigurationError, RegistryUnavailable, RegistryUntrusted, RetryLater
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.retry import Patience
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, Sink, a_client, quiet

IMAGE = make_image([tar_of({"a": b"a"})])
LAYER = Digest.parse(IMAGE.document["layers"][0]["digest"])
LOGIN = RegistryLogin("alice", "s3cret")
REFERENCE = ImageReference.parse("team/app")
SINGLE_TRY = Patience(tries=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the clients of these tests trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> Digest:
    """Return the digest of an image."""
    image, _ = await client.resolve(REFERENCE, Platform(), login, quiet)
    return image.digest


async def fetch(client: RegistryClient, login: RegistryLogin | None = None) -> bytes:
    """Return the image's layer; with a login the image is private."""
    blob = Descriptor(LAYER, len(IMAGE.blobs[LAYER]))
    private = login is not None
    image = ResolvedImage(IMAGE.digest, IMAGE.digest, blob, (blob,), "test", "team/app", private)
    sink = Sink()
    await client.blob(image, blob, login, quiet, 0, sink)
    return bytes(sink.content)


@asynccontextmanager
async def listening(
    *registries: FakeRegistry, certificates: Sequence[CertificateOptions | None] = ()
) -> AsyncIterator[list[int]]:
    """Run registries, each with its certificate; yield their ports."""
    for number, registry in enumerate(registries):
        await registry.start(certificates[number] if certificates else None)
    try:
        yield [int(registry.host.rpartition(":")[2]) for registry in registries]
    finally:
        for registry in registries:
            await registry.stop()


def to(url: str, status: int = 307) -> Any:
    """Return a misbehavior that redirects requests for blobs."""
    return lambda ask: "/blobs/" in ask.path and ask.answer(status, b"over there", Location=url)


def basic(ask: Ask) -> bool:
    """Refuse requests without a login."""
    return ask.header("Authorization") is None and ask.answer(
        401, WWW_Authenticate='Basic realm="test"'
    )


# TLS


@pytest_twisted.ensureDeferred
async def test_tls(authority: Authority) -> None:
    """A certificate of the location's own authority, for its own name, is accepted."""
    registry = FakeRegistry(IMAGE)
    network = Network({"registry.example": [PUBLIC]})
    async with listening(registry, certificates=[authority.options("registry.example")]) as [port]:
        url = f"https://registry.example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
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
        a_client(f"https://registry.example:{port}", network, cacert=cacert) as client,
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
        a_client(f"https://registry.example:{port}", network) as client,
    ):
        with pytest.raises(RegistryUntrusted):
            await resolve(client)


@asynccontextmanager
async def a_server(protocol: type[Protocol]) -> AsyncIterator[int]:
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
    async with a_server(Plain) as port:
        url = f"https://registry.example:{port}"
        async with a_client(url, network, patience=SINGLE_TRY) as client:
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
        async with a_client("https://registry.example", cacert=file):
            pass


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest_twisted.ensureDeferred
async def test_redirects_drop_credentials(status: int, authority: Authority) -> None:
    """A blob may be on another host, which gets no credentials of the registry."""
    storage = FakeRegistry(IMAGE)
    names = ["registry.example", "cdn.example"]
    network = Network({name: [PUBLIC] for name in names})
    registry = FakeRegistry(IMAGE)
    certificates = [authority.options(*names), authority.options(*names)]
    async with listening(registry, storage, certificates=certificates) as [port, storage_port]:
        signed_url = f"https://cdn.example:{storage_port}/blobs/{LAYER}?sig=a%2Fb"
        registry.misbehave = lambda ask: basic(ask) or to(signed_url, status)(ask)
        url = f"https://registry.example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client, LOGIN) == IMAGE.blobs[LAYER]
    assert registry.requests[-1].header("Authorization") is not None
    assert [ask.header("Authorization") for ask in storage.requests] == [None]
    assert storage.requests[0].path == f"/blobs/{LAYER}?sig=a%2Fb"


@pytest_twisted.ensureDeferred
async def test_another_port_is_another_origin() -> None:
    """An http location permits no redirect to http on another port."""
    registry, second_registry = FakeRegistry(IMAGE), FakeRegistry()
    async with listening(registry, second_registry) as [port, second_port]:
        registry.misbehave = lambda ask: basic(ask) or to(f"http://localhost:{second_port}/x")(ask)
        async with a_client(f"http://localhost:{port}") as client:
            with pytest.raises(RegistryUntrusted, match="without TLS"):
                await fetch(client, LOGIN)
    assert second_registry.requests == []


@pytest_twisted.ensureDeferred
async def test_the_same_origin_keeps_credentials() -> None:
    """A redirect within the registry is followed with the credentials, also to a relative URL."""
    registry = FakeRegistry(IMAGE)
    moved_path = f"/moved/blobs/{LAYER}"
    registry.misbehave = lambda ask: basic(ask) or (ask.path != moved_path and to(moved_path)(ask))
    async with listening(registry) as [port], a_client(f"http://localhost:{port}") as client:
        assert await fetch(client, LOGIN) == IMAGE.blobs[LAYER]
    assert registry.requests[-1].header("Authorization") is not None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://cdn.example/x", "from https to http"),
        ("http://registry.example:{port}/x", "from https to http"),
        ("ftp://cdn.example/x", "no URL"),
        ("https://user:password@cdn.example/x", "no URL"),
        ("https://cdn.example/ x", "no URL"),
        ("https://127.0.0.1:{port}/x", "not public"),
        ("https://[::1]/x", "not public"),
        ("https://[::ffff:127.0.0.1]:{port}/x", "not public"),
        ("https://2130706433/x", "not public"),
        ("https://localhost:{port}/x", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://10.0.0.1/x", "not public"),
        ("https://[fd00::1]/x", "not public"),
        ("https://inside.example/x", "not public"),
        ("https://mapped.example/x", "not public"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_redirects_that_are_refused(target: str, expected: str, authority: Authority) -> None:
    """Redirects to http, or to addresses that are not public, are refused."""
    network = Network(
        {
            "registry.example": [PUBLIC],
            "cdn.example": [PUBLIC],
            "inside.example": ["10.0.0.1", "127.0.0.1", "fd00::1"],
            "mapped.example": ["::ffff:127.0.0.1"],
        }
    )
    registry = FakeRegistry(IMAGE)
    async with listening(registry, certificates=[authority.options("registry.example")]) as [port]:
        registry.misbehave = to(target.format(port=port))
        url = f"https://registry.example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
            with pytest.raises(RegistryUntrusted, match=expected) as caught:
                await fetch(client)
    assert network.destinations == [(PUBLIC, port)]
    assert "127.0.0.1" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_the_public_address_of_several(authority: Authority) -> None:
    """Only the public addresses of a host are connected to."""
    names = {"registry.example": [PUBLIC], "cdn.example": ["127.0.0.1", "8.8.8.8", "10.0.0.1"]}
    network = Network(names)
    registry, storage = FakeRegistry(IMAGE), FakeRegistry(IMAGE)
    certificates = [authority.options(*names), authority.options(*names)]
    async with listening(registry, storage, certificates=certificates) as [port, storage_port]:
        registry.misbehave = to(f"https://cdn.example:{storage_port}/blobs/{LAYER}")
        url = f"https://registry.example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client) == IMAGE.blobs[LAYER]
    assert network.destinations == [(PUBLIC, port), ("8.8.8.8", storage_port)]


class Rebound(Network):
    """A network where a name has its addresses once, and those of this machine afterwards."""

    def resolveHostName(self, receiver: Any, name: str, **options: Any) -> Any:
        """Tell the addresses of a name."""
        result = super().resolveHostName(receiver, name, **options)
        if name == "cdn.example":
            self.names[name] = ["127.0.0.1"]
        return result


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_rebound(authority: Authority) -> None:
    """The client connects to the address that it has judged, and judges the next one anew."""
    names = {"registry.example": [PUBLIC], "cdn.example": [PUBLIC]}
    network = Rebound(names)
    registry, storage = FakeRegistry(IMAGE), FakeRegistry(IMAGE)
    certificates = [authority.options(*names), authority.options(*names)]
    async with listening(registry, storage, certificates=certificates) as [port, storage_port]:
        registry.misbehave = to(f"https://cdn.example:{storage_port}/blobs/{LAYER}")
        url = f"https://registry.example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client) == IMAGE.blobs[LAYER]
        assert network.destinations == [(PUBLIC, port), (PUBLIC, storage_port)]
        async with a_client(url, network, cacert=authority.pem) as client:
            with pytest.raises(RegistryUntrusted, match="not public"):
                await fetch(client)
    assert network.destinations == [(PUBLIC, port), (PUBLIC, storage_port), (PUBLIC, port)]


@pytest.mark.parametrize(
    ("registry_address", "storage_address", "trusted_hosts", "is_reached"),
    [
        ("10.0.0.1", "10.0.0.2", (), True),
        ("10.0.0.1", "127.0.0.1", (), False),
        ("10.0.0.1", "169.254.169.254", (), False),
        (PUBLIC, "10.0.0.2", ("cdn.example",), True),
        (PUBLIC, "10.0.0.2", ("cdn.example:1",), False),
        (PUBLIC, "10.0.0.2", ("other.example",), False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_private_networks_on_purpose(
    registry_address: str,
    storage_address: str,
    trusted_hosts: tuple[str, ...],
    is_reached: bool,
    authority: Authority,
) -> None:
    """Redirects within a private network, or from anywhere to a trusted host, are followed."""
    names = {"registry.example": [registry_address], "cdn.example": [storage_address]}
    network = Network(names)
    registry, storage = FakeRegistry(IMAGE), FakeRegistry(IMAGE)
    certificates = [authority.options(*names), authority.options(*names)]
    async with listening(registry, storage, certificates=certificates) as [port, storage_port]:
        registry.misbehave = to(f"https://cdn.example:{storage_port}/blobs/{LAYER}")
        async with a_client(
            f"https://registry.example:{port}",
            network,
            cacert=authority.pem,
            trusted_hosts=trusted_hosts,
        ) as client:
            if is_reached:
                assert await fetch(client) == IMAGE.blobs[LAYER]
            else:
                with pytest.raises(RegistryUntrusted):
                    await fetch(client)
    assert ((storage_address, storage_port) in network.destinations) == is_reached


@pytest_twisted.ensureDeferred
async def test_endless_redirects() -> None:
    """Ten redirects are followed, not more."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(302, Location=f"{ask.path}x"))
    async with listening(registry) as [port], a_client(f"http://localhost:{port}") as client:
        with pytest.raises(RegistryUntrusted, match="more than 10"):
            await fetch(client)
    assert len(registry.requests) == 11


@pytest_twisted.ensureDeferred
async def test_a_redirect_to_nowhere() -> None:
    """A redirect without a target is refused after a bounded number of requests."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(302))
    async with listening(registry) as [port], a_client(f"http://localhost:{port}") as client:
        with pytest.raises(RegistryUntrusted):
            await fetch(client)
    assert len(registry.requests) <= 11


@pytest_twisted.ensureDeferred
async def test_a_scheme_in_upper_case(authority: Authority) -> None:
    """It means https in the configuration, for a token service, and in a redirect."""
    registry, storage = FakeRegistry(IMAGE), FakeRegistry(IMAGE)
    names = ["registry.example", "cdn.example"]
    network = Network({name: [PUBLIC] for name in names})
    certificates = [authority.options(*names), authority.options(*names)]
    async with listening(registry, storage, certificates=certificates) as [port, storage_port]:

        def misbehave(ask: Ask) -> object:
            if ask.path.startswith("/token"):
                return ask.answer(200, b'{"token":"t0ken"}')
            realm = f'Bearer realm="HTTPS://Registry.Example:{port}/token"'
            if ask.header("Authorization") != "Bearer t0ken":
                return ask.answer(401, WWW_Authenticate=realm)
            return to(f"HTTPS://CDN.example:{storage_port}/blobs/{LAYER}")(ask)

        registry.misbehave = misbehave
        url = f"HTTPS://Registry.Example:{port}"
        async with a_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client, LOGIN) == IMAGE.blobs[LAYER]
    assert [ask.header("Authorization") for ask in storage.requests] == [None]


# Names and limits


@pytest_twisted.ensureDeferred
async def test_an_unknown_name() -> None:
    """The error for a name that does not exist has the location's name."""
    async with a_client("https://absent.example", Network({}), patience=SINGLE_TRY) as client:
        with pytest.raises(RetryLater, match="'test' cannot be found"):
            await resolve(client)


class Mute(Protocol):
    """A server that accepts a connection and sends nothing."""


@pytest_twisted.ensureDeferred
async def test_silence_before_tls() -> None:
    """The request to a server that sends nothing ends after the limit, or if it is cancelled."""
    network = Network({"registry.example": [PUBLIC]})
    async with a_server(Mute) as port:
        url = f"https://registry.example:{port}"
        async with a_client(url, network, patience=SINGLE_TRY) as client:
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

    async with a_client("https://registry.example", Slow({})) as client:
        running = Deferred.fromCoroutine(resolve(client))
        running.cancel()
        with pytest.raises(CancelledError):
            await running
