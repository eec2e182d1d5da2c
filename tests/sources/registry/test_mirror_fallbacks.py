"""What happens after a mirror has failed, lied, or asked to wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import (
    NoSpace,
)
from shiftergw.model.images import Digest
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.registries import Ask, FakeRegistry, Misbehave
from tests.sources.registry.mirror_images import NEW, OLD, asks, fails, layer_path
from tests.sources.registry.mirror_site import site
from tests.sources.registry.network import REACTOR, Sink
from tests.store.places import running


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
