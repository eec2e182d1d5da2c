"""Images come verified from mirrors, and from the location itself if no mirror can serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import (
    ConfigurationError,
    ImageNotFound,
    NoSpace,
    RegistryDenied,
    RetryLater,
)
from shiftergw.model.images import Digest, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.sources.registry.logins import basic
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.images import (
    MANIFEST,
    MadeImage,
    descriptor,
    json_bytes,
    make_image,
    tar_of,
)
from tests.registries import Ask, FakeRegistry, Misbehave
from tests.sources.registry.mirror_site import Site, site
from tests.sources.registry.network import REACTOR, Sink
from tests.store.places import running

ALICE, MIRROR_LOGIN = RegistryLogin("alice", "one"), RegistryLogin("gateway", "m:rror")
NEW = make_image([tar_of({"big": bytes(range(256)) * 4000})], compression="plain")
OLD = make_image([tar_of({"old": b"old"})])


def asks(registry: FakeRegistry) -> list[str]:
    """Return the methods and last path segments of the requests to a registry."""
    return [f"{ask.method} {'/'.join(ask.path.split('/')[-2:])}" for ask in registry.requests]


def requires(login: RegistryLogin) -> Misbehave:
    """Return the behavior of a registry that refuses requests without this login."""

    def misbehave(ask: Ask) -> object:
        if ask.header("Authorization") == basic(login):
            return None
        return ask.answer(401, WWW_Authenticate='Basic realm="test"')

    return misbehave


def fails(status: int, part: str = "") -> Misbehave:
    """Return the behavior of a registry that gives this answer if a path contains `part`."""
    return lambda ask: ask.answer(status, Retry_After="600") if part in ask.path else None


def layer_path(image: MadeImage) -> str:
    """Return the end of the path of the first layer."""
    return f"blobs/{image.document['layers'][0]['digest']}"


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


@pytest.mark.parametrize(
    "misbehave",
    [
        fails(404),
        fails(403),
        fails(500),
        fails(429),
        fails(404, "blobs/"),
        lambda ask: ask.hang_up(reset=True),
        lambda ask: ask.answer(200, b"{}", Content_Type="application/json"),
        lambda ask: ask.answer(302, Location="http://169.254.169.254/latest"),
    ],
    ids=["404", "403", "500", "429", "no configuration", "reset", "other bytes", "redirect"],
)
@pytest_twisted.ensureDeferred
async def test_a_failing_mirror_is_passed_over(misbehave: Misbehave) -> None:
    """After any failure of a mirror the next place is tried, and the user gets a message."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW, misbehave=misbehave)
    second = FakeRegistry(NEW)
    async with site(origin, mirror, second) as place:
        image = await place.resolve()
    assert (image.digest, image.mirror) == (NEW.digest, second.host)
    assert f"Passing over the mirror {mirror.host}" in place.words
    assert asks(origin) == ["HEAD manifests/latest"]


@pytest_twisted.ensureDeferred
async def test_the_location_is_the_last_place() -> None:
    """If no mirror has the image, the image and its layers come from the location."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(OLD)
    async with site(origin, mirror) as place:
        image = await place.resolve()
        await place.fetch(image, Sink())
    assert (image.digest, image.mirror) == (NEW.digest, "")
    assert asks(mirror) == [f"GET manifests/{NEW.digest}"]
    assert asks(origin)[-1] == f"GET {layer_path(NEW)}"


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


@pytest_twisted.ensureDeferred
async def test_a_layer_goes_on_at_the_next_place() -> None:
    """Bytes of a mirror that failed later are not requested again from the next place."""
    layer = NEW.blobs[Digest.parse(NEW.document["layers"][0]["digest"])]

    def breaks(ask: Ask) -> object:
        if "/blobs/" not in ask.path or ask.path.endswith(str(NEW.document["config"]["digest"])):
            return None
        if ask.header("Range") is not None:
            return ask.answer(503)
        ask.begin(layer[:400_000], len(layer))
        return REACTOR.callLater(0.1, ask.hang_up) or True

    origin, second = FakeRegistry(NEW), FakeRegistry(NEW)
    mirror = FakeRegistry(NEW, misbehave=breaks)
    sink = Sink()
    async with site(origin, mirror, second) as place:
        await place.fetch(await place.resolve(), sink)
    assert bytes(sink.content) == layer
    (ask,) = second.requests
    position = int((ask.header("Range") or "").removeprefix("bytes=").removesuffix("-"))
    assert 0 < position <= 400_000
    assert sink.offsets == [0, position]
    assert f"Passing over the mirror {mirror.host}" in place.words


@pytest.mark.parametrize("length", [0, 1], ids=["as long", "longer"])
@pytest_twisted.ensureDeferred
async def test_a_wrong_layer(length: int, tmp_path: Path, threads: Threads) -> None:
    """The cache gets a layer with wrong bytes, or too many, again from the next place."""
    layer = NEW.blobs[Digest.parse(NEW.document["layers"][0]["digest"])]
    wrong = b"x" * (len(layer) + length)

    def lies(ask: Ask) -> object:
        return ask.answer(200, wrong) if ask.path.endswith(layer_path(NEW)) else None

    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW, misbehave=lies)
    cache = BlobFiles(tmp_path, threads, REACTOR)
    async with site(origin, mirror) as place:
        image = await place.resolve()

        async def download(offset: int, sink: BlobSink) -> None:
            await place.fetch(image, sink, offset=offset)

        blob = image.layers[0]
        async with cache.get(blob, download, lambda _: None, lambda _: None) as path:
            content = await threads.run(path.read_bytes)
    assert content == layer
    assert asks(mirror).count(f"GET {layer_path(NEW)}") == 1
    assert asks(origin)[-1] == f"GET {layer_path(NEW)}"
    assert f"Passing over the mirror {mirror.host}" in place.words


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_not_the_fault_of_a_mirror() -> None:
    """An error of this machine ends the download; no other place is tried."""

    def no_space(_: bytes) -> None:
        raise NoSpace("full")

    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW)
    sink = Sink()
    sink.on_write = no_space
    async with site(origin, mirror) as place:
        image = await place.resolve()
        with pytest.raises(NoSpace):
            await place.fetch(image, sink)
    assert asks(origin) == ["HEAD manifests/latest"]


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
async def test_a_mirror_that_asks_to_wait_is_skipped_for_a_while(tmp_path: Path) -> None:
    """After a mirror has limited the gateway, it gets no request until that time is over."""
    origin, mirror = FakeRegistry(NEW), FakeRegistry(NEW, misbehave=fails(429))
    async with (
        running(tmp_path / "store.sqlite") as store,
        site(origin, mirror, shared_breakers=SharedBreakers(store, "node1")) as place,
    ):
        for _ in range(3):
            assert (await place.resolve()).mirror == ""
        key = f"limit {mirror.host} anonymous node1"
        breaker = await store.check_breaker(key, REACTOR.seconds(), 0)
    assert asks(mirror) == [f"GET manifests/{NEW.digest}"]
    assert breaker is not None
    assert place.words.count(f"Passing over the mirror {mirror.host}") == 3


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
    """They are read at the location: a mirror cannot hide one, nor show an old one."""
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
    """They are read at the mirror, which decides alone; at the location only if it fails."""
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
