"""The distribution project's registry as a pull-through mirror, and with client certificates."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import RegistryDenied, RegistryUntrusted
from shiftergw.model.images import Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location, Mirror
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.proxy import Proxies
from tests.certificates import Authority
from tests.images import oci_layout, tar_of
from tests.patience import patient
from tests.registries import USER, DockerRegistry
from tests.sources.registry.network import REACTOR, Sink, quiet

APP = ImageReference.parse("team/app:1")


@asynccontextmanager
async def client_of(location: Location) -> AsyncIterator[RegistryClient]:
    """Yield a client of one location."""
    names = RegistryNames(
        {location.name: location}, lambda reference: (location.name, reference.name)
    )
    client = RegistryClient(REACTOR, names, Proxies({}))
    try:
        yield client
    finally:
        await client.close()
        await pause(0.02, REACTOR)


async def pull(
    client: RegistryClient, reference: ImageReference = APP, login: RegistryLogin | None = None
) -> ResolvedImage:
    """Resolve an image, and download all its layers."""
    image, _ = await client.resolve(reference, Platform(), login, quiet)
    for layer in image.layers:
        sink = Sink()
        await client.blob(image, layer, login, quiet, 0, sink)
        assert Digest.of(bytes(sink.content)) == layer.digest
    return image


def push(registry: DockerRegistry, directory: Path, text: bytes) -> Digest:
    """Push an image with one file; return its digest."""
    digest = oci_layout(directory / text.decode(), [tar_of({"etc/motd": text})], tag="1")
    registry.push(directory / text.decode(), "team/app:1", tag="1")
    return digest


async def wait_until_stored(cache: Path, image: ResolvedImage) -> None:
    """Wait until a pull-through cache, which stores in the background, has a complete image."""
    blobs = cache / "registry/docker/registry/v2/blobs/sha256"
    digests = [image.digest, image.config_blob.digest, *(layer.digest for layer in image.layers)]
    paths = [blobs / digest.hex[:2] / digest.hex / "data" for digest in digests]
    deadline = REACTOR.seconds() + patient(10)
    while not all(path.exists() for path in paths):
        assert REACTOR.seconds() < deadline, "the cache stores nothing"
        await pause(0.05, REACTOR)


@pytest_twisted.ensureDeferred
async def test_a_pull_through_cache(tmp_path: Path) -> None:
    """Layers come from the cache, tags from the registry; a standalone cache needs no registry."""
    with DockerRegistry(tmp_path / "origin") as origin:
        first = push(origin, tmp_path, b"first")
        url = f"http://{origin.host}"
        with DockerRegistry(tmp_path / "cache", mirrored_url=url) as cache:
            place = Location(cache.host, f"http://{cache.host}", is_mirror=True)
            location = Location("test", url, mirrors=(Mirror(place),))
            async with client_of(location) as client:
                image = await pull(client)
                assert (image.digest, image.mirror) == (first, cache.host)
                assert cache.blob_requests() == 1 + len(image.layers)
                second = push(origin, tmp_path, b"second")
                image = await pull(client)
                assert (image.digest, image.mirror) == (second, cache.host)
            await wait_until_stored(tmp_path / "cache", image)
            origin.__exit__()
            alone = Location("test", url, mirrors=(Mirror(place, standalone=True),))
            async with client_of(alone) as client:
                image = await pull(client, ImageReference.parse(f"team/app@{second}"))
                assert (image.digest, image.mirror, image.private) == (second, cache.host, False)
            origin.__enter__()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Return the authority and the certificates of a registry, of this client, and of another."""
    (tmp_path / "other").mkdir()
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other")
    result = {
        "authority": authority.pem,
        "server": authority.file("127.0.0.1"),
        "own": authority.file("gateway"),
        "stranger": stranger.file("gateway"),
    }
    for name in ("own", "stranger"):
        result[name].chmod(0o600)
    return result


@pytest_twisted.ensureDeferred
async def test_a_registry_with_client_certificates(tmp_path: Path, files: dict[str, Path]) -> None:
    """TLS by a private authority, a client certificate and a login are all necessary together."""
    with DockerRegistry(tmp_path / "data", private=True) as registry:
        digest = push(registry, tmp_path, b"secret")
    with DockerRegistry(
        tmp_path / "data",
        private=True,
        certificate=files["server"],
        client_authority=files["authority"],
    ) as registry:
        url = f"https://{registry.host}"
        own = Location("test", url, files["authority"], client_certificate=files["own"])
        async with client_of(own) as client:
            assert (await pull(client, login=USER)).digest == digest
            with pytest.raises(RegistryDenied, match="without a login"):
                await pull(client)
        for certificate in (None, files["stranger"]):
            location = Location("test", url, files["authority"], client_certificate=certificate)
            async with client_of(location) as client:
                with pytest.raises(RegistryDenied, match="client certificate") as caught:
                    await pull(client, login=USER)
                assert "`clientCertificate`" in caught.value.remedy
        untrusting = Location("test", url, client_certificate=files["own"])
        async with client_of(untrusting) as client:
            with pytest.raises(RegistryUntrusted, match="authority that is not trusted"):
                await pull(client, login=USER)


@pytest_twisted.ensureDeferred
async def test_a_mirror_with_a_client_certificate(tmp_path: Path, files: dict[str, Path]) -> None:
    """A mirror has its own authority, client certificate and login."""
    login = tmp_path / "login"
    login.write_text(f"{USER.user}:{USER.password}", encoding="utf-8")
    login.chmod(0o600)
    with DockerRegistry(tmp_path / "origin") as origin:
        digest = push(origin, tmp_path, b"public")
        shutil.copytree(tmp_path / "origin" / "registry", tmp_path / "mirror" / "registry")
        with DockerRegistry(
            tmp_path / "mirror",
            private=True,
            certificate=files["server"],
            client_authority=files["authority"],
        ) as mirror:
            place = Location(
                mirror.host,
                f"https://{mirror.host}",
                files["authority"],
                client_certificate=files["own"],
                is_mirror=True,
            )
            location = Location("test", f"http://{origin.host}", mirrors=(Mirror(place, login),))
            async with client_of(location) as client:
                image = await pull(client)
            assert (image.digest, image.mirror, image.private) == (digest, mirror.host, False)
            assert origin.blob_requests() == 0
