"""Images of a registry are resolved, verified and downloaded, despite faults of the network."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    BlobCorrupt,
    GatewayError,
    ImageNotFound,
    ManifestInvalid,
    NoMatchingPlatform,
    NoSpace,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import PARALLEL_BLOBS, RegistryClient
from shiftergw.sources.registry.retry import Interruption, Patience
from tests.images import (
    INDEX,
    MANIFEST,
    MadeImage,
    descriptor,
    json_bytes,
    make_image,
    make_index,
    tar_of,
)
from tests.patience import stretch
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    HASTY,
    PUBLIC,
    REACTOR,
    SHORT,
    Network,
    Sink,
    a_client,
    quiet,
    serving,
)

AMD64 = Platform()
IMAGE = make_image([tar_of({"a": b"a" * 5000}), tar_of({"b": b"b"})], config={"Cmd": ["/bin/sh"]})
ARM64 = make_image([tar_of({"a": b"arm"})], architecture="arm64")
LAYER = make_image([tar_of({"big": bytes(range(256)) * 4000})], compression="plain")


async def resolve(
    client: RegistryClient, reference: str = "team/app", platform: Platform = AMD64
) -> ResolvedImage:
    """Resolve a reference for an anonymous user."""
    image, _ = await client.resolve(ImageReference.parse(reference), platform, None, quiet)
    return image


def layer_of(image: MadeImage) -> tuple[Descriptor, bytes]:
    """Return the descriptor and the bytes of the first layer."""
    layer = image.document["layers"][0]
    digest = Digest.parse(layer["digest"])
    return Descriptor(digest, layer["size"], layer["mediaType"]), image.blobs[digest]


async def fetch(client: RegistryClient, image: MadeImage, sink: Sink, offset: int = 0) -> None:
    """Download the first layer of an image."""
    blob, _ = layer_of(image)
    resolved_image = ResolvedImage(image.digest, image.digest, blob, (blob,), "test", "team/app")
    await client.blob(resolved_image, blob, None, quiet, offset, sink)


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
async def test_a_candidate_nobody_vouched_for() -> None:
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
        async with a_client(f"http://docker.io:{port}", network) as client:
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
async def test_what_is_not_there() -> None:
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


# Being asked to wait, and broken connections.


@pytest_twisted.ensureDeferred
async def test_slow_down() -> None:
    """The client waits after a 429 with `Retry-After`, and reports the reason to the user."""
    messages: list[str] = []

    def misbehave(ask: Ask) -> object:
        body = b'{"errors":[{"message":"too many"}]}'
        return not ask.registry.requests and ask.answer(429, body, Retry_After="1")

    registry = FakeRegistry(IMAGE, misbehave=misbehave)
    async with serving(registry) as client:
        start = REACTOR.seconds()
        reference = ImageReference.parse("team/app")
        image, _ = await client.resolve(reference, AMD64, None, messages.append)
    assert image.digest == IMAGE.digest
    assert REACTOR.seconds() - start >= 1
    assert messages == ["waiting 1 s: The registry 'test' asked to slow down: too many"]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
@pytest_twisted.ensureDeferred
async def test_a_registry_that_stays_away(status: int) -> None:
    """After three such answers the pull must wait, and other pulls are not blocked."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(status, b"<html>"))
    async with serving(registry) as client:
        with pytest.raises(RetryLater, match=f"status {status}") as caught:
            await resolve(client)
    assert len(registry.requests) == 3
    assert (caught.value.why, caught.value.registry) == (f"test (status {status})", "")
    assert not caught.value.is_fixed


@pytest_twisted.ensureDeferred
async def test_hang_ups_and_silence() -> None:
    """If a connection is closed, reset or silent before the answer, the request is repeated."""

    def misbehave(ask: Ask) -> object:
        return {1: ask.hang_up, 2: lambda: ask.hang_up(reset=True), 3: lambda: True}.get(
            ask.nth, lambda: None
        )()

    registry = FakeRegistry(IMAGE, misbehave=misbehave)
    async with serving(registry, patience=Patience(tries=4, first=0.01)) as client:
        reference = ImageReference.parse("team/app")
        assert (await client.resolve(reference, AMD64, None, quiet))[0].digest == IMAGE.digest
    assert sum(ask.path.endswith("/latest") for ask in registry.requests) == 4


@pytest_twisted.ensureDeferred
async def test_nobody_listens() -> None:
    """The error for a refused connection has neither host nor port."""
    registry = await FakeRegistry().start()
    await registry.stop()
    async with a_client(f"http://{registry.host}") as client:
        with pytest.raises(RetryLater, match=r"'test'.*refused") as caught:
            await resolve(client)
    assert caught.value.why == "test (unreachable)"
    assert registry.host not in str(caught.value)
    assert registry.host in caught.value.detail


# blob


@pytest_twisted.ensureDeferred
async def test_a_blob() -> None:
    """A layer streams into the sink, as it is stored."""
    registry = FakeRegistry(IMAGE)
    sink = Sink()
    async with serving(registry) as client:
        await fetch(client, IMAGE, sink)
    assert sink.content == layer_of(IMAGE)[1]
    assert sink.offsets == [0]
    assert sink.producer is None
    assert registry.requests[0].header("Accept-Encoding") == "identity"
    assert registry.requests[0].header("Range") is None


@pytest_twisted.ensureDeferred
async def test_blobs_of_a_public_image_come_without_a_login() -> None:
    """If the manifest is public and the layers are private, the image does not count as public."""
    registry = FakeRegistry(IMAGE)
    blob, _ = layer_of(IMAGE)

    def close(ask: Ask) -> object:
        basic = 'Basic realm="x"'
        return "/blobs/" in ask.path and ask.answer(401, WWW_Authenticate=basic)

    registry.misbehave = close
    resolved_image = ResolvedImage(IMAGE.digest, IMAGE.digest, blob, (blob,), "test", "team/app")
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied):
            await client.blob(resolved_image, blob, RegistryLogin("a", "b"), quiet, 0, Sink())
        with pytest.raises(RegistryDenied):
            await client.prove(resolved_image, RegistryLogin("a", "b"), quiet)
    assert all(ask.header("Authorization") is None for ask in registry.requests)


@pytest_twisted.ensureDeferred
async def test_resuming() -> None:
    """Bytes that the sink has are not requested again."""
    registry = FakeRegistry(LAYER)
    content = layer_of(LAYER)[1]
    sink = Sink(content[:1000])
    async with serving(registry) as client:
        await fetch(client, LAYER, sink, 1000)
    assert sink.content == content
    assert sink.offsets == [1000]
    assert registry.requests[0].header("Range") == "bytes=1000-"


@pytest_twisted.ensureDeferred
async def test_a_sink_that_drops_bytes_before_the_first_answer() -> None:
    """A sink may find late that bytes of another source are wrong: the download resumes there."""
    content = layer_of(LAYER)[1]
    sink = Sink(content[:1000])

    def drop(ask: Ask) -> None:
        if ask.nth == 1:
            del sink.content[600:]

    async with serving(FakeRegistry(LAYER, misbehave=drop), patience=HASTY) as client:
        await fetch(client, LAYER, sink, 1000)
    assert sink.content == content
    assert sink.offsets == [600]


def cut(ask: Ask, *, reset: bool = False) -> object:
    """End the first two answers after a third of the bytes of the request."""
    if ask.nth > 2:
        return None
    content = ask.registry.blobs[ask.path.rpartition("/")[2]]
    start = int((ask.header("Range") or "bytes=0-")[6:-1])
    rest = content[start:]
    fields = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    ask.begin(rest[: len(rest) // 3], len(rest), 206 if start else 200, **fields if start else {})
    if reset:
        REACTOR.callLater(0.05, ask.hang_up, reset=True)
        return True
    return ask.hang_up()


@pytest.mark.parametrize("reset", [False, True])
@pytest_twisted.ensureDeferred
async def test_broken_off(reset: bool) -> None:
    """A body that ends early is resumed at its end, and never counts as complete."""
    registry = FakeRegistry(LAYER, misbehave=lambda ask: cut(ask, reset=reset))
    sink = Sink()
    async with serving(registry) as client:
        await fetch(client, LAYER, sink)
    assert sink.content == layer_of(LAYER)[1]
    assert len(sink.offsets) == 3
    assert sink.offsets == sorted(sink.offsets)
    assert [ask.header("Range") is None for ask in registry.requests] == [True, False, False]


@pytest_twisted.ensureDeferred
async def test_a_body_of_unknown_length() -> None:
    """A body that ends with its connection is complete if its size is right, and else broken."""
    content = layer_of(LAYER)[1]

    def misbehave(ask: Ask) -> object:
        channel: Any = ask.request.channel
        length = 1000 if ask.nth == 1 else len(content)
        channel.transport.write(b"HTTP/1.0 200 OK\r\n\r\n" + content[:length])
        return ask.hang_up()

    sink = Sink()
    async with serving(FakeRegistry(misbehave=misbehave)) as client:
        await fetch(client, LAYER, sink)
    assert sink.content == content
    assert sink.offsets == [0, 0]


@pytest_twisted.ensureDeferred
async def test_a_stall() -> None:
    """A body that stalls for too long is requested again."""
    content = layer_of(LAYER)[1]

    def misbehave(ask: Ask) -> object:
        return ask.nth == 1 and ask.begin(content[:5000], len(content))

    registry = FakeRegistry(LAYER, misbehave=misbehave)
    sink = Sink()
    messages: list[str] = []
    async with serving(registry) as client:
        blob, _ = layer_of(LAYER)
        resolved_image = ResolvedImage(
            LAYER.digest, LAYER.digest, blob, (blob,), "test", "team/app"
        )
        await client.blob(resolved_image, blob, None, messages.append, 0, sink)
    assert sink.offsets == [0, 5000]
    assert sink.content == content
    assert messages == ["waiting 1 s: The registry 'test' sent nothing for 0.3 s."]


@pytest_twisted.ensureDeferred
async def test_a_short_blob() -> None:
    """A blob with fewer bytes than the manifest says is an error."""
    content = layer_of(LAYER)[1]
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(200, content[:-1]))
    async with serving(registry) as client:
        with pytest.raises(RegistryUnavailable, match=f"{len(content) - 1} bytes"):
            await fetch(client, LAYER, Sink())
    assert len(registry.requests) == 3


@pytest_twisted.ensureDeferred
async def test_ranges_ignored() -> None:
    """If a registry answers a `Range` with the whole blob, the blob starts at its beginning."""
    content = layer_of(LAYER)[1]
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(200, content))
    sink = Sink(content[:1000])
    async with serving(registry) as client:
        await fetch(client, LAYER, sink, 1000)
    assert sink.offsets == [0]
    assert sink.content == content


@pytest.mark.parametrize(
    "content_range",
    ["bytes 999-1023/1024", "bytes 0-1023999/1024000", "bytes 1000-1023/1024", "nonsense", ""],
)
@pytest_twisted.ensureDeferred
async def test_another_part(content_range: str) -> None:
    """Another range than the requested one is refused; the blob is requested from its start."""
    content = layer_of(LAYER)[1]

    def misbehave(ask: Ask) -> object:
        return ask.header("Range") is not None and ask.answer(
            206, b"x" * 24, Content_Range=content_range
        )

    registry = FakeRegistry(LAYER, misbehave=misbehave)
    sink = Sink(content[:1000])
    async with serving(registry) as client:
        await fetch(client, LAYER, sink, 1000)
    assert sink.content == content
    assert sink.offsets == [0]


@pytest_twisted.ensureDeferred
async def test_a_part_unasked() -> None:
    """A partial answer to a request for the whole blob is an error."""
    registry = FakeRegistry(
        misbehave=lambda ask: ask.answer(206, b"xx", Content_Range="bytes 5-6/9")
    )
    async with serving(registry) as client:
        with pytest.raises(RegistryUnavailable, match="another part"):
            await fetch(client, LAYER, Sink())
    # Twisted repeats a request whose kept connection is just closing, as on a busy machine.
    assert HASTY.tries <= len(registry.requests) <= 2 * HASTY.tries


@pytest_twisted.ensureDeferred
async def test_beyond_the_end() -> None:
    """After a 416 the download starts from the beginning."""
    content = layer_of(LAYER)[1]
    registry = FakeRegistry(LAYER)
    sink = Sink(content)
    async with serving(registry) as client:
        await fetch(client, LAYER, sink, len(content))
    assert sink.offsets == [0]
    assert sink.content == content


@pytest_twisted.ensureDeferred
async def test_a_sink_that_refuses() -> None:
    """An error of the sink, at any point, ends the download."""
    registry = FakeRegistry(LAYER)

    def full(*_: Any, **__: Any) -> None:
        raise NoSpace("Full.")

    async with serving(registry) as client:
        writing, beginning = Sink(), Sink()
        writing.on_write = full
        beginning.begin = full  # type: ignore[method-assign]
        for sink in (writing, beginning):
            with pytest.raises(NoSpace):
                await fetch(client, LAYER, sink)
            assert sink.producer is None
    assert len(registry.requests) == 2


@pytest_twisted.ensureDeferred
async def test_a_sink_that_stops() -> None:
    """A sink that stops its producer ends the download as cancelled."""
    sink = Sink()
    sink.on_write = lambda _: sink.producer.stopProducing()
    async with serving(FakeRegistry(LAYER)) as client:
        with pytest.raises(CancelledError):
            await fetch(client, LAYER, sink)


@pytest_twisted.ensureDeferred
async def test_back_pressure() -> None:
    """While the sink pauses, no data arrives, and the wait does not count as a stall."""
    limits = replace(SHORT, idle=stretch(SHORT.idle))
    image = make_image([tar_of({"big": bytes(30_000_000)})], compression="plain")
    sink = Sink()
    paused_at: list[int] = []

    def pause_once(_: bytes) -> None:
        if not paused_at:
            sink.producer.pauseProducing()
            paused_at.append(len(sink.content))
            REACTOR.callLater(2 * limits.idle, go_on)

    def go_on() -> None:
        paused_at.append(len(sink.content))
        sink.producer.resumeProducing()

    sink.on_write = pause_once
    async with serving(FakeRegistry(image), limits=limits) as client:
        await fetch(client, image, sink)
    assert len(sink.content) == layer_of(image)[0].size
    assert paused_at[1] - paused_at[0] < 1 << 20
    # On a busy machine the download may stall later; a stall counts from the end of the pause.
    assert all(offset > paused_at[1] for offset in sink.offsets[1:])


@pytest_twisted.ensureDeferred
async def test_cancelling() -> None:
    """A cancelled download ends at once with `CancelledError`, at any point."""
    content = layer_of(LAYER)[1]

    def misbehave(ask: Ask) -> object:
        if ask.nth == 1:
            return True  # no header
        return ask.begin(content[:5000], len(content)) if ask.nth == 2 else ask.answer(503)

    registry = FakeRegistry(misbehave=misbehave)
    async with serving(registry, patience=Patience(first=60, quick=600)) as client:
        for number, expected in enumerate((0, 5000, 0), 1):
            sink = Sink()
            running = Deferred.fromCoroutine(fetch(client, LAYER, sink))
            while len(registry.requests) < number or len(sink.content) < expected:
                await pause(0.01, REACTOR)
            await pause(0.1, REACTOR)  # the last one's answer arrives, and a wait begins
            running.cancel()
            with pytest.raises(CancelledError):
                await running
            assert len(sink.content) == expected
            assert sink.producer is None
    assert len(registry.requests) == 3


@pytest_twisted.ensureDeferred
async def test_blobs_at_once() -> None:
    """At most six blobs are downloaded at a time."""
    content = layer_of(LAYER)[1]
    at_once: list[int] = []

    def misbehave(ask: Ask) -> object:
        at_once.append(1 + sum(not item.request.finished for item in ask.registry.requests))
        REACTOR.callLater(0.05, ask.answer, 200, content)
        return True

    async with serving(FakeRegistry(misbehave=misbehave)) as client:
        await gather_or_cancel(fetch(client, LAYER, Sink()) for _ in range(20))
    assert len(at_once) == 20
    assert max(at_once) == PARALLEL_BLOBS


@pytest_twisted.ensureDeferred
async def test_content_coding_is_left_alone() -> None:
    """A blob that a server calls gzip-coded arrives as it was sent."""
    content = gzip.compress(b"layer")
    blob = Descriptor(Digest.of(content), len(content))
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(200, content, Content_Encoding="gzip"))
    sink = Sink()
    async with serving(registry) as client:
        resolved_image = ResolvedImage(
            IMAGE.digest, IMAGE.digest, blob, (blob,), "test", "team/app"
        )
        await client.blob(resolved_image, blob, None, quiet, 0, sink)
    assert sink.content == content


@pytest_twisted.ensureDeferred
async def test_corrupt_is_the_sinks_to_say() -> None:
    """If a body has more bytes than the descriptor says, the sink raises `BlobCorrupt`."""
    sink = Sink()

    def too_many(_: bytes) -> None:
        if len(sink.content) > layer_of(LAYER)[0].size:
            raise BlobCorrupt("More.")

    sink.on_write = too_many
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(200, layer_of(LAYER)[1] + b"x"))
    async with serving(registry) as client:
        with pytest.raises(BlobCorrupt):
            await fetch(client, LAYER, sink)


def test_interruptions_are_errors_of_the_program() -> None:
    """The error after the last try is a retryable `RegistryUnavailable`."""
    assert issubclass(Interruption, RegistryUnavailable)
    assert Interruption.retryable
    assert issubclass(Interruption, GatewayError)
