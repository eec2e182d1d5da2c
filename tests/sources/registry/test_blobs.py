"""Downloads of blobs: resumed, bounded, paused, and ended with their sinks."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    BlobCorrupt,
    NoSpace,
    RegistryDenied,
    RegistryUnavailable,
)
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import PARALLEL_BLOBS
from shiftergw.sources.registry.retry import Patience
from tests.images import (
    make_image,
    tar_of,
)
from tests.patience import stretch
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    HASTY,
    REACTOR,
    SHORT,
    Sink,
    quiet,
    serving,
)
from tests.sources.registry.simple_images import IMAGE, LAYER, fetch, layer_of

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
