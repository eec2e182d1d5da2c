"""Images of the distribution project's registry are read, with and without logins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import ImageNotFound, RegistryDenied
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.proxy import Proxies
from tests.configurations import load_config
from tests.images import entry, oci_index_layout, oci_layout, tar_of
from tests.registries import USER, DockerRegistry
from tests.sources.registry.network import REACTOR, Sink, open_client, quiet

LAYERS = {
    "amd64": [tar_of([entry("etc"), entry("etc/motd", b"amd64")]), tar_of({"b": b"b" * 100_000})],
    "arm64": [tar_of({"etc/motd": b"arm64"})],
}


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry without logins."""
    with DockerRegistry(tmp_path_factory.mktemp("public")) as running:
        yield running


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry that wants the login of `USER`."""
    with DockerRegistry(tmp_path_factory.mktemp("private"), private=True) as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_an_index(public: DockerRegistry, tmp_path: Path) -> None:
    """An image for two architectures is resolved for each, and its layers arrive complete."""
    digests = oci_index_layout(tmp_path, LAYERS)
    public.push(tmp_path, "team/app:1")
    reference = ImageReference.parse("team/app:1")
    async with open_client(f"http://{public.host}") as client:
        assert await client.head(reference, None, quiet) == digests["index"]
        for architecture, layers in LAYERS.items():
            image, config = await client.resolve(reference, Platform(architecture), None, quiet)
            assert image.digest == digests[architecture]
            assert image.source_digest == digests["index"]
            assert config.diff_ids == tuple(Digest.of(layer) for layer in layers)
            for layer in image.layers:
                sink = Sink()
                await client.blob(image, layer, None, quiet, 0, sink)
                assert Digest.of(bytes(sink.content)) == layer.digest


@pytest_twisted.ensureDeferred
async def test_a_long_manifest(public: DockerRegistry, tmp_path: Path) -> None:
    """A body on one long line does not count as the head of the next response."""
    digest = oci_layout(tmp_path, LAYERS["arm64"] * 120, tag="x")
    # Twisted allows 16,384 bytes in a line of the head.
    assert (tmp_path / "blobs" / "sha256" / digest.hex).stat().st_size > 16384
    public.push(tmp_path, "lib/many:1", tag="x")
    async with open_client(f"http://{public.host}") as client:
        reference = ImageReference.parse("lib/many:1")
        image, _ = await client.resolve(reference, Platform(), None, quiet)
    assert len(image.layers) == 120


@pytest_twisted.ensureDeferred
async def test_ranges(public: DockerRegistry, tmp_path: Path) -> None:
    """A blob is resumed from the end of its first part."""
    oci_layout(tmp_path, LAYERS["amd64"], compression="plain", tag="x")
    public.push(tmp_path, "lib/one:1", tag="x")
    async with open_client(f"http://{public.host}") as client:
        reference = ImageReference.parse("lib/one:1")
        image, _ = await client.resolve(reference, Platform(), None, quiet)
        sink = Sink(LAYERS["amd64"][1][:50_000])
        await client.blob(image, image.layers[1], None, quiet, 50_000, sink)
    assert sink.content == LAYERS["amd64"][1]
    assert sink.offsets == [50_000]


@pytest_twisted.ensureDeferred
async def test_absent_images(public: DockerRegistry, tmp_path: Path) -> None:
    """Absent repositories, tags and digests are not found."""
    oci_layout(tmp_path, LAYERS["arm64"])
    public.push(tmp_path, "lib/there:1")
    async with open_client(f"http://{public.host}") as client:
        for name in ("lib/absent:1", "lib/there:2", f"lib/there@sha256:{'0' * 64}"):
            with pytest.raises(ImageNotFound, match="test"):
                await client.resolve(ImageReference.parse(name), Platform(), None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_login(private: DockerRegistry, tmp_path: Path) -> None:
    """With Basic authentication only the right login can read, and the image is private."""
    digest = oci_layout(tmp_path, LAYERS["amd64"])
    private.push(tmp_path, "secret/app:1")
    reference = ImageReference.parse("secret/app:1")
    async with open_client(f"http://{private.host}") as client:
        image, _ = await client.resolve(reference, Platform(), USER, quiet)
        assert (image.digest, image.private) == (digest, True)
        sink = Sink()
        await client.blob(image, image.layers[0], USER, quiet, 0, sink)
        assert Digest.of(bytes(sink.content)) == image.layers[0].digest
        for login in (None, RegistryLogin("alice", "wrong"), RegistryLogin("mallory", "x")):
            with pytest.raises(RegistryDenied):
                await client.resolve(reference, Platform(), login, quiet)


@pytest_twisted.ensureDeferred
async def test_a_mirror_of_docker_hub(public: DockerRegistry, tmp_path: Path) -> None:
    """A mirror under Docker Hub's name has Docker Hub's repositories."""
    oci_layout(tmp_path, LAYERS["amd64"])
    public.push(tmp_path, "library/ubuntu:24.04")
    mirror = {"registry-1.docker.io": {"remotetype": "dockerv2", "url": f"http://{public.host}"}}
    config = load_config(
        {"Locations": mirror, "DefaultImageLocation": "registry-1.docker.io"}
    ).config
    (name,) = config.locations
    location = Location(name, config.locations[name].url)
    names = RegistryNames({name: location}, config.locate)
    client = RegistryClient(REACTOR, names, Proxies({}))
    try:
        for reference in ("ubuntu:24.04", "docker.io/ubuntu:24.04", "library/ubuntu:24.04"):
            image, _ = await client.resolve(
                ImageReference.parse(reference), Platform(), None, quiet
            )
            assert image.repository == "library/ubuntu"
    finally:
        await client.close()
        await pause(0.02, REACTOR)
