"""Images that registries have in the format of Docker schema 1."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import BlobCorrupt, ManifestInvalid, NoMatchingPlatform, RegistryUnavailable
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from tests.images import compress, entry, oci_layout, tar_of
from tests.oci.schema1_manifests import layer_history, schema_1_manifest, sign
from tests.parts import need
from tests.patience import patient
from tests.registries import Ask, DockerRegistry, FakeRegistry
from tests.sources.registry.network import Sink, open_client, quiet

TYPE = "application/vnd.docker.distribution.manifest.v1+json"
SIGNED_TYPE = "application/vnd.docker.distribution.manifest.v1+prettyjws"
LAYERS = [compress(tar_of({"etc/motd": b"hello"})), compress(tar_of({"b": b"b" * 10_000}))]
EMPTY = compress(tar_of({}))
HISTORIES = [
    layer_history(0),
    layer_history(1, throwaway=True),
    layer_history(2, config={"Env": ["A=b"], "Cmd": ["sh"]}),
]
CONTENT = schema_1_manifest([Digest.of(blob) for blob in (LAYERS[0], EMPTY, LAYERS[1])], HISTORIES)
REFERENCE = ImageReference.parse("team/app:1")


@pytest_twisted.async_yield_fixture()
async def registry() -> AsyncIterator[FakeRegistry]:
    """Yield a registry with the layers of the image."""
    running = await FakeRegistry().start()
    running.blobs = {str(Digest.of(blob)): blob for blob in (*LAYERS, EMPTY)}
    yield running
    await running.stop()


def serve(registry: FakeRegistry, content: bytes, media_type: str) -> None:
    """Serve a manifest under the digest of its payload, which `CONTENT` is."""
    registry.documents[str(Digest.of(CONTENT))] = (content, media_type)
    registry.tags["1"] = str(Digest.of(CONTENT))


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(CONTENT, TYPE), (sign(CONTENT), SIGNED_TYPE), (sign(CONTENT), "application/json")],
)
@pytest_twisted.ensureDeferred
async def test_an_image(content: bytes, media_type: str, registry: FakeRegistry) -> None:
    """The image is read with its configuration; the sizes of its layers come from the registry."""
    serve(registry, content, media_type)
    async with open_client(f"http://{registry.host}") as client:
        image, config = await client.resolve(REFERENCE, Platform(), None, quiet)
        assert image.digest == image.source_digest == Digest.of(CONTENT)
        assert [layer.size for layer in image.layers] == list(map(len, LAYERS))
        assert (config.env, config.cmd, config.diff_ids) == (("A=b",), ("sh",), ())
        for layer, blob in zip(image.layers, LAYERS, strict=True):
            sink = Sink()
            await client.blob(image, layer, None, quiet, 0, sink)
            assert sink.content == blob
        by_digest = ImageReference.parse(f"team/app@{Digest.of(CONTENT)}")
        assert (await client.resolve(by_digest, Platform(), None, quiet))[0] == image
        with pytest.raises(NoMatchingPlatform):
            await client.resolve(REFERENCE, Platform("arm64"), None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_manifest_with_another_payload(registry: FakeRegistry) -> None:
    """The digest is that of the payload: another payload with the same digest is refused."""
    other_content = schema_1_manifest([Digest.of(LAYERS[0])], HISTORIES[:1])
    serve(registry, sign(other_content), SIGNED_TYPE)
    reference = ImageReference.parse(f"team/app@{Digest.of(CONTENT)}")
    async with open_client(f"http://{registry.host}") as client:
        with pytest.raises(BlobCorrupt):
            await client.resolve(reference, Platform(), None, quiet)


@pytest_twisted.ensureDeferred
async def test_signatures_that_are_damaged(registry: FakeRegistry) -> None:
    """A manifest without a recognizable payload is refused."""
    serve(registry, CONTENT[:-2] + b',"signatures": [{}]\n}', SIGNED_TYPE)
    async with open_client(f"http://{registry.host}") as client:
        with pytest.raises(ManifestInvalid, match="signatures"):
            await client.resolve(REFERENCE, Platform(), None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_registry_that_tells_no_sizes(registry: FakeRegistry) -> None:
    """Without the size of a layer the image cannot be read, and the error says why."""

    def misbehave(ask: Ask) -> object:
        if ask.method != "HEAD":
            return None
        ask.request.setResponseCode(200)
        ask.request.finish()
        return True

    registry.misbehave = misbehave
    serve(registry, CONTENT, TYPE)
    async with open_client(f"http://{registry.host}") as client:
        with pytest.raises(RegistryUnavailable, match="does not tell the size of a layer"):
            await client.resolve(REFERENCE, Platform(), None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_manifest_that_skopeo_pushes(tmp_path: Path) -> None:
    """A signed manifest that skopeo has pushed to a real registry is read, layers in order."""
    need("docker-registry")
    layers = [tar_of([entry("etc"), entry("etc/motd", b"hello")]), tar_of({"b": b"b" * 10_000})]
    oci_layout(tmp_path / "layout", layers, config={"Env": ["A=b"]})
    with DockerRegistry(tmp_path / "registry", accepts_schema_1=True) as docker_registry:
        _push(f"oci:{tmp_path}/layout:latest", f"docker://{docker_registry.host}/team/app:1")
        async with open_client(f"http://{docker_registry.host}") as client:
            image, config = await client.resolve(REFERENCE, Platform(), None, quiet)
            assert await client.head(REFERENCE, None, quiet) == image.digest
            for layer, tar in zip(image.layers, layers, strict=True):
                sink = Sink()
                await client.blob(image, layer, None, quiet, 0, sink)
                assert sink.content == compress(tar)
    assert config.env == ("A=b",)
    assert config.diff_ids == ()


def _push(source: str, target: str) -> None:
    subprocess.run(
        [
            *[need("skopeo"), "--insecure-policy", "copy", "--quiet", "--format", "v2s1"],
            *["--dest-tls-verify=false", source, target],
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=patient(60),
    )
