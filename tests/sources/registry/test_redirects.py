"""Redirects: which are followed, and what they may see."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import RegistryUntrusted
from tests.certificates import Authority
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, Network, open_client
from tests.sources.registry.tls_sites import IMAGE, LAYER, LOGIN, fetch, listening


def to(url: str, status: int = 307) -> Any:
    """Return a misbehavior that redirects requests for blobs."""
    return lambda ask: "/blobs/" in ask.path and ask.answer(status, b"over there", Location=url)


def basic(ask: Ask) -> bool:
    """Refuse requests without a login."""
    return ask.header("Authorization") is None and ask.answer(
        401, WWW_Authenticate='Basic realm="test"'
    )


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
        async with open_client(url, network, cacert=authority.pem) as client:
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
        async with open_client(f"http://localhost:{port}") as client:
            with pytest.raises(RegistryUntrusted, match="without TLS"):
                await fetch(client, LOGIN)
    assert second_registry.requests == []


@pytest_twisted.ensureDeferred
async def test_the_same_origin_keeps_credentials() -> None:
    """A redirect within the registry is followed with the credentials, also to a relative URL."""
    registry = FakeRegistry(IMAGE)
    moved_path = f"/moved/blobs/{LAYER}"
    registry.misbehave = lambda ask: basic(ask) or (ask.path != moved_path and to(moved_path)(ask))
    async with listening(registry) as [port], open_client(f"http://localhost:{port}") as client:
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
        async with open_client(url, network, cacert=authority.pem) as client:
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
        async with open_client(url, network, cacert=authority.pem) as client:
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
        async with open_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client) == IMAGE.blobs[LAYER]
        assert network.destinations == [(PUBLIC, port), (PUBLIC, storage_port)]
        async with open_client(url, network, cacert=authority.pem) as client:
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
        async with open_client(
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
    async with listening(registry) as [port], open_client(f"http://localhost:{port}") as client:
        with pytest.raises(RegistryUntrusted, match="more than 10"):
            await fetch(client)
    assert len(registry.requests) == 11


@pytest_twisted.ensureDeferred
async def test_a_redirect_to_nowhere() -> None:
    """A redirect without a target is refused after a bounded number of requests."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(302))
    async with listening(registry) as [port], open_client(f"http://localhost:{port}") as client:
        with pytest.raises(RegistryUntrusted):
            await fetch(client)
    assert len(registry.requests) <= 11


@pytest_twisted.ensureDeferred
async def test_a_scheme_in_upper_case(authority: Authority) -> None:
    """HTTPS means https in the configuration, for a token service, and in a redirect."""
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
        async with open_client(url, network, cacert=authority.pem) as client:
            assert await fetch(client, LOGIN) == IMAGE.blobs[LAYER]
    assert [ask.header("Authorization") for ask in storage.requests] == [None]
