"""Images of a registry are resolved, verified and downloaded, despite faults of the network."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    NoMatchingPlatform,
    RegistryDenied,
    RegistryUnavailable,
)
from shiftergw.model.images import Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from tests.images import (
    INDEX,
    MANIFEST,
    descriptor,
    json_bytes,
    make_image,
    make_index,
    tar_of,
)
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    PUBLIC,
    Network,
    Sink,
    open_client,
    quiet,
    serving,
)
from tests.sources.registry.simple_images import AMD64, IMAGE, LAYER, fetch, layer_of, resolve

ARM64 = make_image([tar_of({"a": b"arm"})], architecture="arm64")


# resolve


@pytest_twisted.ensureDeferred
async def test_a_tag() -> None:
    """A tag resolves to its manifest: layers, configuration, digest, and location."""
    registry = FakeRegistry(IMAGE)
    async with serving(registry) as client:
        image, config = await client.resolve(ImageReference.parse("team/app"), AMD64, None, quiet)
    assert image.digest == image.source_digest == IMAGE.digest
    assert [str(layer.digest) for layer in image.layers] == [
        layer["digest"] for layer in IMAGE.document["layers"]
    ]
    assert (image.location, image.repository, image.private) == ("test", "team/app", False)
    assert config.cmd == ("/bin/sh",)
    first = registry.requests[0]
    assert first.path == "/v2/team/app/manifests/latest"
    assert INDEX in (first.header("Accept") or "")
    assert (first.header("User-Agent") or "").startswith("shiftergw/")
    assert first.header("Authorization") is None


@pytest_twisted.ensureDeferred
async def test_an_index() -> None:
    """The manifest for the platform is selected; the source digest is that of the index."""
    registry = FakeRegistry(IMAGE, ARM64)
    index = registry.add(make_index([IMAGE, ARM64]), INDEX, "both")
    async with serving(registry) as client:
        image = await resolve(client, "team/app:both", Platform("arm64"))
        with pytest.raises(NoMatchingPlatform, match="ppc64le"):
            await resolve(client, "team/app:both", Platform("ppc64le"))
    assert (image.digest, image.source_digest) == (ARM64.digest, index)


@pytest_twisted.ensureDeferred
async def test_a_tag_that_moves_meanwhile() -> None:
    """The tag is requested once; all further requests have the digests of the first answer."""
    registry = FakeRegistry(IMAGE, ARM64)
    index = registry.add(make_index([IMAGE]), INDEX, "moving")

    def move(ask: Ask) -> None:
        if not ask.path.endswith("/moving"):
            registry.tags["moving"] = str(ARM64.digest)

    registry.misbehave = move
    blob, content = layer_of(IMAGE)
    sink = Sink()
    async with serving(registry) as client:
        image = await resolve(client, "team/app:moving")
        await client.blob(image, blob, None, quiet, 0, sink)
    assert (image.digest, image.source_digest) == (IMAGE.digest, index)
    assert bytes(sink.content) == content
    assert [ask.path.endswith("/moving") for ask in registry.requests].count(True) == 1


def add_nested_indexes(registry: FakeRegistry, depth: int) -> None:
    """Serve `IMAGE` below `depth` nested indexes as `deep`."""
    content, media_type = IMAGE.manifest, MANIFEST
    for _ in range(depth):
        entry = descriptor(content, media_type, platform={"architecture": "amd64", "os": "linux"})
        content = json_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
        media_type = INDEX
        registry.add(content, INDEX, "deep")


@pytest_twisted.ensureDeferred
async def test_nested_indexes() -> None:
    """Indexes may hold indexes, four deep."""
    registry = FakeRegistry(IMAGE)
    async with serving(registry) as client:
        add_nested_indexes(registry, 4)
        assert (await resolve(client, "team/app:deep")).digest == IMAGE.digest
        add_nested_indexes(registry, 5)
        with pytest.raises(ManifestInvalid, match="nested"):
            await resolve(client, "team/app:deep")


@pytest_twisted.ensureDeferred
async def test_the_next_candidate() -> None:
    """If a candidate is missing, or has no file system, the next one is tried."""
    empty, missing_image = make_image([]), make_image([tar_of({"gone": b""})])
    registry = FakeRegistry(IMAGE, empty)
    registry.add(make_index([missing_image, empty, IMAGE]), INDEX, "some")
    registry.add(make_index([missing_image, empty]), INDEX, "none")
    async with serving(registry) as client:
        assert (await resolve(client, "team/app:some")).digest == IMAGE.digest
        with pytest.raises(ImageNotFound, match=str(missing_image.digest)):
            await resolve(client, "team/app:none")


@pytest_twisted.ensureDeferred
async def test_a_candidate_without_a_platform() -> None:
    """If the index names no platform, the configuration decides."""
    registry = FakeRegistry(IMAGE, ARM64)
    entries = [descriptor(image.manifest, image.media_type) for image in (IMAGE, ARM64)]
    registry.add(json_bytes({"schemaVersion": 2, "manifests": entries}), INDEX, "bare")
    async with serving(registry) as client:
        image = await resolve(client, "team/app:bare", Platform("arm64"))
        assert image.digest == ARM64.digest
        with pytest.raises(NoMatchingPlatform):
            await resolve(client, "team/app:latest", Platform("arm64"))


@pytest_twisted.ensureDeferred
async def test_an_index_without_end() -> None:
    """An index with a thousand entries costs some requests, not a thousand."""
    registry = FakeRegistry(IMAGE)
    images = [make_image([tar_of({str(n): b""})]) for n in range(1000)]
    registry.add(make_index(images), INDEX, "many")
    async with serving(registry) as client:
        with pytest.raises(ImageNotFound):
            await resolve(client, "team/app:many")
    assert len(registry.requests) == 32


@pytest_twisted.ensureDeferred
async def test_a_digest() -> None:
    """A digest wins over the tag beside it, and is checked."""
    registry = FakeRegistry(IMAGE, ARM64)
    reference = f"team/app:ignored@{IMAGE.digest}"
    async with serving(registry) as client:
        assert (await resolve(client, reference)).source_digest == IMAGE.digest
        assert registry.requests[0].path == f"/v2/team/app/manifests/{IMAGE.digest}"
        registry.documents[str(IMAGE.digest)] = (ARM64.manifest, MANIFEST)
        with pytest.raises(BlobCorrupt):
            await resolve(client, reference)


@pytest_twisted.ensureDeferred
async def test_other_bytes_than_named() -> None:
    """Manifests of an index and configurations that do not have their digest are refused."""
    registry = FakeRegistry(IMAGE)
    registry.documents[str(ARM64.digest)] = (IMAGE.manifest, MANIFEST)
    registry.add(make_index([ARM64]), INDEX, "child")
    async with serving(registry) as client:
        with pytest.raises(BlobCorrupt, match=f"a manifest that is not {ARM64.digest}"):
            await resolve(client, "team/app:child", Platform("arm64"))
        config = IMAGE.document["config"]["digest"]
        registry.blobs[config] = registry.blobs[config].replace(b"/bin/sh", b"/bin/no")
        with pytest.raises(BlobCorrupt, match="configuration"):
            await resolve(client)


@pytest_twisted.ensureDeferred
async def test_a_registry_that_names_no_digest() -> None:
    """Without `Docker-Content-Digest` the digest is computed from the bytes."""

    def misbehave(ask: Ask) -> object:
        if "/manifests/" in ask.path:
            return ask.answer(200, IMAGE.manifest, Content_Type="text/plain; charset=utf-8")
        return None

    async with serving(FakeRegistry(IMAGE, misbehave=misbehave)) as client:
        image = await resolve(client)
    assert image.digest == image.source_digest == IMAGE.digest


@pytest.mark.parametrize(("name", "repository"), [("ubuntu", "library/ubuntu"), ("a/b", "a/b")])
@pytest_twisted.ensureDeferred
async def test_docker_hub(name: str, repository: str) -> None:
    """On Docker Hub a name of one component is in `library`."""
    registry = await FakeRegistry(IMAGE).start()
    network = Network({"registry-1.docker.io": [PUBLIC]})
    try:
        port = registry.host.rpartition(":")[2]
        async with open_client(f"http://docker.io:{port}", network) as client:
            image = await resolve(client, name)
    finally:
        await registry.stop()
    assert image.repository == repository
    assert registry.requests[0].path == f"/v2/{repository}/manifests/latest"


@pytest_twisted.ensureDeferred
async def test_too_large() -> None:
    """Neither manifest nor configuration may be larger than its limit."""
    registry = FakeRegistry(IMAGE)
    registry.add(b" " * (4 << 20) + IMAGE.manifest, MANIFEST, "large")
    config = {**IMAGE.document["config"], "size": (8 << 20) + 1}
    registry.add(json_bytes({**IMAGE.document, "config": config}), MANIFEST, "config")
    async with serving(registry) as client:
        for tag in ("large", "config"):
            with pytest.raises(ManifestInvalid, match="larger"):
                await resolve(client, f"team/app:{tag}")


@pytest_twisted.ensureDeferred
async def test_layers_without_diff_ids() -> None:
    """The configuration has one `diff_id` for each layer, or none at all."""
    registry = FakeRegistry()
    for tag, diff_ids in {"none": [], "two": [str(IMAGE.digest)] * 2}.items():
        content = json_bytes(
            {"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        )
        registry.blobs[str(Digest.of(content))] = content
        layers = IMAGE.document["layers"][:1]
        config = descriptor(content, "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "config": config, "layers": layers}
        registry.add(json_bytes(manifest), MANIFEST, tag)
    async with serving(registry) as client:
        assert len((await resolve(client, "team/app:none")).layers) == 1
        with pytest.raises(ManifestInvalid, match="diff_ids"):
            await resolve(client, "team/app:two")


@pytest_twisted.ensureDeferred
async def test_an_absent_tag() -> None:
    """The error for a missing tag has the registry's words in printable form; it is final."""

    def misbehave(ask: Ask) -> object:
        return ask.answer(
            404, b'{"errors":[{"message":"no\\u001b[31m such \\n tag"},{"code":"X"}]}'
        )

    registry = FakeRegistry(misbehave=misbehave)
    async with serving(registry) as client:
        with pytest.raises(ImageNotFound) as caught:
            await resolve(client, "team/app:absent")
    assert "has no image team/app:absent (" in caught.value.what
    assert r"no\x1b[31m such tag; X" in caught.value.what
    assert len(registry.requests) == 1


@pytest.mark.parametrize("status", [404, 403])
@pytest_twisted.ensureDeferred
async def test_a_registry_that_the_gateway_does_not_have(status: int) -> None:
    """The remedy names a host at the beginning of a name that is not a location."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(status, b"{}"))
    reference = ImageReference.parse("ghcr.io/team/app:1")
    async with serving(registry) as client:
        for login in (None, RegistryLogin("alice", "word")):
            with pytest.raises((ImageNotFound, RegistryDenied)) as caught:
                await client.resolve(reference, AMD64, login, quiet)
            assert "ghcr.io is meant to be a registry" in caught.value.remedy


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"errors":1}', b'{"errors":[1]}', b"{}", b""])
@pytest_twisted.ensureDeferred
async def test_errors_without_words(body: bytes) -> None:
    """An error body of any other shape is ignored."""
    async with serving(FakeRegistry(misbehave=lambda ask: ask.answer(404, body))) as client:
        with pytest.raises(ImageNotFound, match=r"image team/app:latest\."):
            await resolve(client)


@pytest_twisted.ensureDeferred
async def test_other_statuses() -> None:
    """The error for an unexpected status is final."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(418, b"teapot"))
    async with serving(registry) as client:
        with pytest.raises(RegistryUnavailable, match="418"):
            await resolve(client)
    assert len(registry.requests) == 1


@pytest_twisted.ensureDeferred
async def test_an_unknown_location() -> None:
    """The error for a location that is no longer configured names it."""
    async with serving(FakeRegistry()) as client:
        resolved_image = ResolvedImage(
            IMAGE.digest, IMAGE.digest, layer_of(IMAGE)[0], (), "old", "x"
        )
        with pytest.raises(ImageNotFound, match="'old'"):
            await client.blob(resolved_image, layer_of(IMAGE)[0], None, quiet, 0, Sink())


# head


@pytest_twisted.ensureDeferred
async def test_head() -> None:
    """One request without a body returns the current digest of a tag."""
    registry = FakeRegistry(IMAGE)
    async with serving(registry) as client:
        reference = ImageReference.parse("team/app")
        assert await client.head(reference, None, quiet) == IMAGE.digest
        assert [(ask.method, ask.path) for ask in registry.requests] == [
            ("HEAD", "/v2/team/app/manifests/latest")
        ]
        assert await client.head(ImageReference.parse("team/app:absent"), None, quiet) is None


@pytest.mark.parametrize(
    ("status", "digest"), [(200, None), (200, "sha256:../../x"), (405, None), (501, None)]
)
@pytest_twisted.ensureDeferred
async def test_head_without_a_digest(status: int, digest: str | None) -> None:
    """An answer without a valid digest is not an error."""
    fields = {} if digest is None else {"Docker_Content_Digest": digest}
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(status, b"", **fields))
    async with serving(registry) as client:
        assert await client.head(ImageReference.parse("team/app"), None, quiet) is None


@pytest_twisted.ensureDeferred
async def test_a_missing_layer() -> None:
    """The error for a missing layer differs from that for a missing image."""
    async with serving(FakeRegistry()) as client:
        with pytest.raises(ImageNotFound, match="part of team/app") as caught:
            await fetch(client, LAYER, Sink())
    assert "Push" in caught.value.remedy
