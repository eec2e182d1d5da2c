"""Registries without a location of their own: only public addresses are connected to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import ImageNotFound, RegistryUntrusted
from shiftergw.model.images import Digest
from shiftergw.model.references import ImageReference
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry import registries
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, SHORT, ConnectProxy, Network, quiet

IMAGE = make_image([tar_of({"a": b"a"})])
NAMES = {
    "public.example": [PUBLIC],
    "inside.example": ["10.1.2.3"],
    "rebound.example": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "both.example": ["10.1.2.3", PUBLIC],
}


class World:
    """A registry that answers under every name, a client of any registry, and the network."""

    def __init__(self, network: Network, client: RegistryClient, port: str) -> None:
        """Store the parts."""
        self.network = network
        self._client = client
        self._port = port

    async def head(self, host: str) -> Digest | None:
        """Return the digest of an image at a host."""
        reference = ImageReference.parse(f"{host}:{self._port}/team/app")
        return await self._client.head(reference, None, quiet)

    @property
    def addresses(self) -> set[str]:
        """Return the addresses that were connected to."""
        return {address for address, _ in self.network.destinations}


@asynccontextmanager
async def world(
    directory: Path,
    *,
    trusted_hosts: tuple[str, ...] = (),
    proxy: ConnectProxy | None = None,
    proxied_hosts: tuple[str, ...] | None = None,
) -> AsyncIterator[World]:
    """Run a registry under all names, and a client that may pull from any registry."""
    authority = Authority(directory)
    registry = FakeRegistry(IMAGE)
    await registry.start(authority.options(*NAMES, "127.0.0.1", "unknown.example"))

    def place(host: str) -> Location:
        return Location(host, f"https://{host}", authority.pem, trusted_hosts, must_be_public=True)

    def find(host: str, _repository: str) -> Location | None:
        return None if host.startswith("denied") else place(host)

    network: Any = Network(NAMES)
    names = RegistryNames(
        {},
        lambda reference: (reference.name.partition("/")[0], reference.name.partition("/")[2]),
        find,
        [place("registry.invalid")],
    )
    environment = {} if proxy is None else {"https_proxy": f"http://{proxy.host}"}
    proxies = Proxies(environment, proxied_hosts)
    client = RegistryClient(network, names, proxies, RegistryOptions(SHORT))
    try:
        yield World(network, client, registry.host.rpartition(":")[2])
    finally:
        await client.close()
        await pause(0.02, REACTOR)
        await registry.stop()


@pytest_twisted.ensureDeferred
async def test_a_public_registry(tmp_path: Path) -> None:
    """A registry with a public address is used at that address alone."""
    async with world(tmp_path) as place:
        assert await place.head("public.example") == IMAGE.digest
        assert await place.head("both.example") == IMAGE.digest
        assert place.addresses == {PUBLIC}
        with pytest.raises(ImageNotFound, match="no registry"):
            await place.head("denied.example")


@pytest.mark.parametrize(
    "host",
    ["inside.example", "rebound.example", "metadata.example", "127.0.0.1", "localhost", "10.1.2.3"],
)
@pytest_twisted.ensureDeferred
async def test_an_address_of_the_site(tmp_path: Path, host: str) -> None:
    """A name that users invent gives no access to the site's own network."""
    async with world(tmp_path) as place:
        with pytest.raises(RegistryUntrusted, match="has an address that is not public") as caught:
            await place.head(host)
        assert place.network.destinations == []
    assert "`trustedHosts`" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_listed(tmp_path: Path) -> None:
    """A host in `trustedHosts` may have any address."""
    async with world(tmp_path, trusted_hosts=("inside.example", "127.0.0.1")) as place:
        assert await place.head("inside.example") == IMAGE.digest
        assert await place.head("127.0.0.1") == IMAGE.digest
        with pytest.raises(RegistryUntrusted):
            await place.head("rebound.example")


@pytest.mark.parametrize(
    ("host", "proxied_hosts", "is_reached"),
    [
        ("public.example", None, True),
        ("inside.example", None, False),
        ("both.example", None, False),
        ("unknown.example", None, False),
        ("unknown.example", ("other.example",), False),
        ("unknown.example", ("*.example",), True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_through_a_proxy(
    tmp_path: Path, host: str, proxied_hosts: tuple[str, ...] | None, *, is_reached: bool
) -> None:
    """A proxy is used for hosts whose addresses are all public, or that `ProxiedHosts` lists."""
    proxy = await ConnectProxy().start()
    try:
        async with world(tmp_path, proxy=proxy, proxied_hosts=proxied_hosts) as place:
            if is_reached:
                assert await place.head(host) == IMAGE.digest
            else:
                with pytest.raises(RegistryUntrusted):
                    await place.head(host)
        assert bool(proxy.lines) is is_reached
    finally:
        await proxy.stop()


@pytest_twisted.ensureDeferred
async def test_few_registries_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of registries that were not used for long are closed."""
    monkeypatch.setattr(registries, "MOST_REGISTRIES", 1)
    async with world(tmp_path) as place:
        for host in ("public.example", "both.example", "public.example", "public.example"):
            assert await place.head(host) == IMAGE.digest
        assert len(place.network.destinations) == 3
