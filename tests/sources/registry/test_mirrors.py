"""Images come verified from mirrors, and from the location itself if no mirror can serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import (
    ConfigurationError,
    ImageNotFound,
    RegistryDenied,
    RetryLater,
)
from shiftergw.model.images import Digest, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.logins import basic
from tests.images import (
    MANIFEST,
    descriptor,
    json_bytes,
    make_image,
    tar_of,
)
from tests.registries import Ask, FakeRegistry, Misbehave
from tests.sources.registry.mirror_images import NEW, OLD, asks, fails, layer_path
from tests.sources.registry.mirror_site import Site, site
from tests.sources.registry.network import Sink

ALICE, MIRROR_LOGIN = RegistryLogin("alice", "one"), RegistryLogin("gateway", "m:rror")


def requires(login: RegistryLogin) -> Misbehave:
    """Return the behavior of a registry that refuses requests without this login."""

    def misbehave(ask: Ask) -> object:
        if ask.header("Authorization") == basic(login):
            return None
        return ask.answer(401, WWW_Authenticate='Basic realm="test"')

    return misbehave


@pytest_twisted.ensureDeferred
async def test_a_mirror_serves_the_image() -> None:
    """The location answers one HEAD request; all documents and layers come from the mirror."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW)
    sink = Sink()
    async with site(origin, mirror) as place:
        image = await place.resolve()
        await place.fetch(image, sink)
    assert (image.digest, image.location, image.repository) == (NEW.digest, "test", "team/app")
    assert (image.private, image.mirror) == (False, mirror.host)
    assert Digest.of(bytes(sink.content)) == image.layers[0].digest
    assert asks(origin) == ["HEAD manifests/latest"]
    assert asks(mirror) == [
        f"GET manifests/{NEW.digest}",
        f"GET blobs/{image.config_blob.digest}",
        f"GET {layer_path(NEW)}",
    ]
    assert place.words == [f"Getting the image from the mirror {mirror.host}"]


@pytest_twisted.ensureDeferred
async def test_a_stale_mirror() -> None:
    """The location decides on a tag, even if a mirror still has the old image."""
    origin, stale, fresh = FakeRegistry(NEW), FakeRegistry(OLD), FakeRegistry(NEW)
    async with site(origin, stale, fresh) as place:
        image = await place.resolve()
        assert (image.digest, image.mirror) == (NEW.digest, fresh.host)
        assert await place.client.head(ImageReference.parse("team/app"), None, print) == NEW.digest
    assert asks(stale) == [f"GET manifests/{NEW.digest}"]
    assert asks(origin) == ["HEAD manifests/latest"] * 2


@pytest_twisted.ensureDeferred
async def test_a_standalone_mirror() -> None:
    """A standalone mirror decides on tags, and the location gets no request."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(OLD)
    async with site(origin, mirror, standalone=True) as place:
        image = await place.resolve()
        assert await place.client.head(ImageReference.parse("team/app"), None, print) == OLD.digest
        await place.client.prove(image, None, print)
        await place.fetch(image, Sink())
        assert (image.digest, image.private) == (OLD.digest, False)
        assert origin.requests == []
        # What it does not have comes from the location.
        assert (await place.resolve(f"team/app@{NEW.digest}")).mirror == ""
    assert asks(mirror)[-1] == f"GET manifests/{NEW.digest}"


@pytest_twisted.ensureDeferred
async def test_paths_of_mirrors() -> None:
    """A mirror of several registries has the repositories of each below a path of its own."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW)
    async with site(origin, mirror, name="docker.io", path="hub-proxy/cache") as place:
        image = await place.resolve("ubuntu")
    assert image.repository == "library/ubuntu"
    assert {ask.path.rpartition("/v2/")[2].partition("/man")[0] for ask in mirror.requests[:1]} == {
        "hub-proxy/cache/library/ubuntu"
    }
    assert origin.requests[0].path.startswith("/v2/library/ubuntu/")


@pytest_twisted.ensureDeferred
async def test_an_image_of_the_location_comes_whole_from_there() -> None:
    """A mirror without the manifest gets no request for layers, even if it has them.

    containers/image does the same: the first place that serves the manifest serves all the rest.
    """
    origin, mirror = FakeRegistry(NEW), FakeRegistry(OLD)
    mirror.blobs.update({str(digest): blob for digest, blob in NEW.blobs.items()})
    sink = Sink()
    async with site(origin, mirror) as place:
        image = await place.resolve()
        await place.fetch(image, sink)
    assert image.mirror == ""
    assert Digest.of(bytes(sink.content)) == image.layers[0].digest
    assert asks(mirror) == [f"GET manifests/{NEW.digest}"]
    assert asks(origin)[-1] == f"GET {layer_path(NEW)}"


@pytest_twisted.ensureDeferred
async def test_an_image_that_the_location_refuses() -> None:
    """An image that the location refuses is not read from a mirror that has it."""
    for status, error in ((404, ImageNotFound), (403, RegistryDenied), (429, RetryLater)):
        mirror = FakeRegistry(NEW)
        async with site(FakeRegistry(NEW, misbehave=fails(status)), mirror) as place:
            with pytest.raises(error):
                await place.resolve()
        assert mirror.requests == []


@pytest_twisted.ensureDeferred
async def test_a_private_image() -> None:
    """A private image is for users whose login the location accepts; no mirror gets that login."""
    origin = FakeRegistry(NEW, misbehave=requires(ALICE))
    mirror = FakeRegistry(NEW)
    sink = Sink()
    async with site(origin, mirror) as place:
        for login in (None, RegistryLogin("mallory", "x")):
            with pytest.raises(RegistryDenied):
                await place.resolve(login=login)
        assert mirror.requests == []
        image = await place.resolve(login=ALICE)
        await place.fetch(image, sink, ALICE)
    assert (image.private, image.mirror) == (True, mirror.host)
    assert Digest.of(bytes(sink.content)) == image.layers[0].digest
    # The location has shown each layer, too.
    assert asks(origin)[-1] == f"HEAD {layer_path(NEW)}"
    assert {ask.header("Authorization") for ask in mirror.requests} == {None}


@pytest_twisted.ensureDeferred
async def test_a_layer_of_another_repository() -> None:
    """A private image whose layer the location hides from its reader is refused."""
    hides_layer = requires(ALICE)

    def misbehave(ask: Ask) -> object:
        if ask.path.endswith(layer_path(NEW)):
            return ask.answer(404)
        return hides_layer(ask)

    async with site(FakeRegistry(NEW, misbehave=misbehave), FakeRegistry(NEW)) as place:
        with pytest.raises(ImageNotFound):
            await place.resolve(login=ALICE)


@pytest_twisted.ensureDeferred
async def test_the_login_of_the_gateway_at_a_mirror(tmp_path: Path) -> None:
    """The gateway logs in to a mirror with its own login, which no other server gets."""
    file = tmp_path / "login"
    file.write_text(f"{MIRROR_LOGIN.user}:{MIRROR_LOGIN.password}\n")
    file.chmod(0o640)
    origin = FakeRegistry(NEW, misbehave=requires(ALICE))
    mirror = FakeRegistry(NEW, misbehave=requires(MIRROR_LOGIN))
    async with site(origin, mirror, login_file=file) as place:
        with pytest.raises(RegistryDenied):
            await place.resolve()
        image = await place.resolve(login=ALICE)
        await place.fetch(image, Sink(), ALICE)
    assert image.mirror == mirror.host
    assert {ask.header("Authorization") for ask in origin.requests} == {None, basic(ALICE)}
    assert {ask.header("Authorization") for ask in mirror.requests} == {None, basic(MIRROR_LOGIN)}


@pytest_twisted.ensureDeferred
async def test_a_login_that_other_users_can_read(tmp_path: Path) -> None:
    """The start is refused while other users can read the gateway's login."""
    file = tmp_path / "login"
    file.write_text("gateway:secret")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to every user") as caught:
        async with site(FakeRegistry(NEW), FakeRegistry(NEW), login_file=file):
            pass
    assert "secret" not in f"{caught.value}{caught.value.remedy}".replace("the secret in it", "")


@pytest.mark.parametrize(
    ("use", "name", "is_asked"),
    [
        ("digest-only", "team/app", False),
        ("digest-only", f"team/app@{NEW.digest}", True),
        ("tag-only", "team/app", True),
        ("tag-only", f"team/app@{NEW.digest}", False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_mirrors_for_some_references(use: Any, name: str, *, is_asked: bool) -> None:
    """A mirror may be only for references with, or only for those without, a digest."""
    mirror = FakeRegistry(NEW)
    async with site(FakeRegistry(NEW), mirror, use=use) as place:
        image = await place.resolve(name)
    assert image.digest == NEW.digest
    assert bool(mirror.requests) is is_asked


@pytest_twisted.ensureDeferred
async def test_a_mirror_saves_the_quota_of_the_registry() -> None:
    """Pulls of changing tags send no GET requests, which count, to the registry."""
    images = [make_image([tar_of({"n": bytes([n])})]) for n in range(20)]
    gets = 0

    def limits(ask: Ask) -> object:
        nonlocal gets
        gets += ask.method == "GET"
        return ask.answer(429, Retry_After="21600") if ask.method == "GET" else None

    origin, mirror = FakeRegistry(*images, misbehave=limits), FakeRegistry(*images)
    async with site(origin, mirror) as place:
        for image in images:
            origin.tags["latest"] = str(image.digest)
            for _ in range(2):
                assert (await place.resolve()).digest == image.digest
    assert gets == 0
    assert asks(origin) == ["HEAD manifests/latest"] * 40


@pytest.mark.parametrize("status", [200, 403, 405, 500])
@pytest_twisted.ensureDeferred
async def test_a_location_whose_head_tells_nothing(status: int) -> None:
    """If HEAD is refused or has no digest, one GET request is sent, with the user's login."""
    is_allowed = requires(ALICE)

    def misbehave(ask: Ask) -> object:
        refusal = is_allowed(ask)
        if refusal or ask.method != "HEAD" or "/manifests/" not in ask.path:
            return refusal
        return ask.answer(status)

    origin, mirror = FakeRegistry(NEW, misbehave=misbehave), FakeRegistry(NEW)
    async with site(origin, mirror) as place:
        with pytest.raises(RegistryDenied):
            await place.resolve()
        assert mirror.requests == []
        image = await place.resolve(login=ALICE)
    assert (image.digest, image.private, image.mirror) == (NEW.digest, True, mirror.host)
    assert f"GET blobs/{image.config_blob.digest}" not in asks(origin)


PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"


def attach_signature(registry: FakeRegistry, payload: bytes) -> None:
    """Store a signature of `NEW` as cosign does, under a tag that has the digest in it."""
    registry.blobs[str(Digest.of(payload))] = payload
    annotations = {"dev.cosignproject.cosign/signature": "c2lnbmF0dXJl"}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(payload, PAYLOAD_TYPE, annotations=annotations)],
    }
    registry.add(json_bytes(document), MANIFEST, f"sha256-{NEW.digest.hex}.sig")


async def signatures(place: Site, image: ResolvedImage) -> list[bytes]:
    """Return what the signatures of an image sign."""
    blobs = await place.client.signatures(image, frozenset({"cosign"}), None, place.words.append)
    return [blob.payload for blob in blobs]


@pytest_twisted.ensureDeferred
async def test_signatures_of_an_image_from_a_mirror() -> None:
    """Signatures are read at the location: a mirror cannot hide one, nor show an old one."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW)
    attach_signature(origin, b"by the location")
    attach_signature(mirror, b"by the mirror")
    async with site(origin, mirror) as place:
        image = await place.resolve()
        assert image.mirror == mirror.host
        requests = len(mirror.requests)
        assert await signatures(place, image) == [b"by the location"]
    assert len(mirror.requests) == requests


@pytest_twisted.ensureDeferred
async def test_signatures_at_a_standalone_mirror() -> None:
    """Signatures are read at the mirror, which decides alone; at the location only if it fails."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW)
    attach_signature(origin, b"by the location")
    attach_signature(mirror, b"by the mirror")
    async with site(origin, mirror, standalone=True) as place:
        image = await place.resolve()
        assert await signatures(place, image) == [b"by the mirror"]
        assert origin.requests == []
        del mirror.tags[f"sha256-{NEW.digest.hex}.sig"]
        assert await signatures(place, image) == []
        mirror.misbehave = fails(403)
        assert await signatures(place, image) == [b"by the location"]
