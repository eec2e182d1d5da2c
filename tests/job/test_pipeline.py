"""From layers that arrive to a squashfs file: the real cache and builder, observed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from shiftergw.cache import blobs
from shiftergw.errors import (
    ImageNotFound,
    LayerInvalid,
    ManifestInvalid,
    NoSpace,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from tests.build.site import TREE
from tests.images import compress, entry, tar_of
from tests.job.pipeline_bench import (
    CHECKING,
    LOWER,
    PULLING,
    UPPER,
    VERIFYING,
    PipelineBench,
    RecordingWatcher,
    Send,
    real,
    sending,
)
from tests.work.waiting import until


@pytest_twisted.ensureDeferred
async def test_a_layer_is_examined_while_it_arrives(pipeline_bench: PipelineBench) -> None:
    """The progress is that of the download until its end, and then that of the build."""
    gate: SharedResult[None] = SharedResult()
    image = pipeline_bench.image(LOWER, UPPER)
    pipeline_bench.sends[image.layers[0].digest] = sending(LOWER, gate)
    watcher = RecordingWatcher()
    converting = Deferred.fromCoroutine(pipeline_bench.build(image, watcher))
    await until(lambda: pipeline_bench.reader_positions() == [len(LOWER) // 2])
    assert watcher.messages == [PULLING]
    assert {progress.stage for progress in watcher.progress} == {"fetch"}
    gate.set_result(None)
    squashfs = await converting
    assert squashfs.report.entries > len(TREE) - 2
    assert set(squashfs.seconds) == {"fetch", "index", "plan", "squash", "check"}
    assert watcher.messages == [PULLING, "Examining image", "Converting image", CHECKING]
    assert pipeline_bench.cached_files() == sorted(layer.digest.hex for layer in image.layers)


@pytest_twisted.ensureDeferred
async def test_a_pull_that_waits_for_another_conversion_says_so(
    pipeline_bench: PipelineBench,
) -> None:
    """One of two pulls converts; the progress of the second pull names its wait."""
    image = pipeline_bench.image(LOWER, UPPER)
    watchers = [RecordingWatcher(), RecordingWatcher()]
    await gatherResults(
        [Deferred.fromCoroutine(pipeline_bench.convert(image, watcher)) for watcher in watchers]
    )
    assert sorted(watcher.messages for watcher in watchers) == [
        [PULLING, "Examining image", "Converting image", CHECKING],
        [PULLING, "Waiting for the same conversion for another pull", VERIFYING],
    ]


@pytest_twisted.ensureDeferred
async def test_a_conversion_does_not_wait_for_layers_of_another_pull(
    pipeline_bench: PipelineBench, tmp_path: Path
) -> None:
    """Of two pulls of one image, the quicker one converts, and the other one uses its file."""
    gate: SharedResult[None] = SharedResult()
    slow, quick = (
        pipeline_bench,
        PipelineBench(tmp_path / "elsewhere", pipeline_bench.threads, pipeline_bench.site),
    )
    image = quick.image(LOWER)
    slow.sends[image.layers[0].digest] = sending(LOWER, gate)
    watcher = RecordingWatcher()
    converting = Deferred.fromCoroutine(slow.convert(image, watcher))
    await until(lambda: slow.reader_positions() == [len(LOWER) // 2])
    entries = await quick.convert(image)
    assert not converting.called
    gate.set_result(None)
    assert await converting == entries
    assert watcher.messages == [PULLING, "Examining image", VERIFYING]


@pytest_twisted.ensureDeferred
async def test_a_user_without_the_layers_gets_no_converted_file(
    pipeline_bench: PipelineBench,
) -> None:
    """The converted file of another pull exists, but this user cannot fetch its layers."""
    image = pipeline_bench.image(LOWER, UPPER)
    await pipeline_bench.convert(image)
    (pipeline_bench.cache_place / image.layers[1].digest.hex).unlink()

    async def refuse(_offset: int, _sink: BlobSink) -> None:
        raise RegistryDenied("No.")

    pipeline_bench.sends[image.layers[1].digest] = refuse
    with pytest.raises(RegistryDenied):
        await pipeline_bench.convert(image)
    assert pipeline_bench.cached_files() == [image.layers[0].digest.hex]


@pytest_twisted.ensureDeferred
async def test_a_download_that_must_wait_keeps_its_partial_files(
    pipeline_bench: PipelineBench,
) -> None:
    """The next attempt resumes the partial layers."""
    image = pipeline_bench.image(LOWER, UPPER)
    offsets: list[int] = []

    async def wait(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        raise RetryLater(1.0, "registry (rate limit)", RegistryDenied("No."))

    async def resume(offset: int, sink: BlobSink) -> None:
        offsets.append(offset)
        await sending(LOWER)(0, sink)

    pipeline_bench.sends[image.layers[0].digest] = wait
    with pytest.raises(RetryLater):
        await pipeline_bench.convert(image)
    pipeline_bench.sends[image.layers[0].digest] = resume
    await pipeline_bench.convert(image)
    assert offsets == [1000]


@pytest.mark.parametrize("error", [RegistryUnavailable, RegistryDenied, ImageNotFound])
@pytest_twisted.ensureDeferred
async def test_a_pull_resumes_the_downloads_of_a_failed_one(
    pipeline_bench: PipelineBench, error: type[PullError]
) -> None:
    """Partial layers stay in the cache, those of interrupted downloads beside the failed one too.

    Clients that threw them away never got a large image over a bad line (podman#7497, #14616).
    """
    image = pipeline_bench.image(LOWER, UPPER)
    offsets: dict[str, int] = {}

    async def fail(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        await until((pipeline_bench.cache_place / f"{image.layers[1].digest.hex}.partial").exists)
        raise error("The registry is gone.")

    async def hesitate(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(UPPER[:100])
        await SharedResult[None]().wait()

    def resume(name: str, blob: bytes) -> Send:
        async def send(offset: int, sink: BlobSink) -> None:
            offsets[name] = offset
            await sending(blob)(offset, sink)

        return send

    lower, upper = (layer.digest for layer in image.layers)
    pipeline_bench.sends = {lower: fail, upper: hesitate}
    with pytest.raises(error):
        await pipeline_bench.convert(image)
    pipeline_bench.sends = {lower: resume("lower", LOWER), upper: resume("upper", UPPER)}
    await pipeline_bench.convert(image)
    assert offsets["lower"] == 1000
    assert offsets["upper"] in {0, 100}  # as much as was written before the cancellation
    assert pipeline_bench.cached_files() == sorted([lower.hex, upper.hex])


@pytest_twisted.ensureDeferred
async def test_an_image_without_room_leaves_nothing(pipeline_bench: PipelineBench) -> None:
    """A full disk gets its room back at once."""
    image = pipeline_bench.image(LOWER)

    async def fill(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        raise NoSpace("The disk is full.")

    pipeline_bench.sends[image.layers[0].digest] = fill
    with pytest.raises(NoSpace):
        await pipeline_bench.convert(image)
    assert pipeline_bench.cached_files() == []


@pytest_twisted.ensureDeferred
async def test_an_invalid_layer_ends_the_other_downloads(pipeline_bench: PipelineBench) -> None:
    """A blob with the right digest that is no archive fails at once; no partial layers stay."""
    bad = compress(b"this is no archive. " * 1000)
    image = pipeline_bench.image(bad, LOWER)
    pipeline_bench.sends[image.layers[1].digest] = sending(LOWER, SharedResult())
    with pytest.raises(LayerInvalid):
        await pipeline_bench.convert(image)
    assert pipeline_bench.cached_files() == [image.layers[0].digest.hex]


@pytest_twisted.ensureDeferred
async def test_a_restarted_download_is_read_again(pipeline_bench: PipelineBench) -> None:
    """The first try is a valid archive of two files; the image has the file of the second try."""
    first, second = tar_of([entry("a", b""), entry("b", b"")]), tar_of([entry("a", b"1" * 512)])
    image = pipeline_bench.image(second)

    async def hesitate(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(first[:1024])
        await until(lambda: pipeline_bench.reader_positions() == [1024])
        await sending(second)(0, sink)

    pipeline_bench.sends[image.layers[0].digest] = hesitate
    assert await pipeline_bench.convert(image) == 1


@pytest.mark.parametrize("foreign", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_layer_that_its_registry_lacks(
    pipeline_bench: PipelineBench, foreign: bool
) -> None:
    """A layer with addresses elsewhere is called foreign only if the registry does not have it."""
    image = pipeline_bench.image(LOWER, UPPER)
    layers = (image.layers[0], replace(image.layers[1], has_urls=foreign))
    assert await pipeline_bench.convert(replace(image, layers=layers)) > 0

    async def lack(_: int, __: BlobSink) -> None:
        raise ImageNotFound("The registry has no such layer.")

    lacking = pipeline_bench.image(compress(tar_of([entry("other", b"1")])))
    pipeline_bench.sends[lacking.layers[0].digest] = lack
    lacking = replace(lacking, layers=(replace(lacking.layers[0], has_urls=foreign),))
    kind = ManifestInvalid if foreign else ImageNotFound
    with pytest.raises(kind, match="foreign layer" if foreign else "no such layer"):
        await pipeline_bench.convert(lacking)


@pytest_twisted.ensureDeferred
async def test_a_blob_may_be_several_layers(pipeline_bench: PipelineBench) -> None:
    """The blob is downloaded once."""
    image = pipeline_bench.image(LOWER, UPPER, LOWER)
    assert await pipeline_bench.convert(image) >= await pipeline_bench.convert(
        pipeline_bench.image(LOWER, UPPER)
    )
    assert len(pipeline_bench.cached_files()) == 2


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_does_not_block_the_reactor(
    pipeline_bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that waits for the cache's disk can be cancelled."""
    hangs, answers = Event(), Event()

    def hold(*_: Any) -> None:
        hangs.set()
        answers.wait()

    monkeypatch.setattr(blobs, "hold", hold)
    running = Deferred.fromCoroutine(pipeline_bench.convert(pipeline_bench.image(LOWER)))
    while not hangs.is_set():
        await pause(0.01, real)
    try:
        running.cancel()
        with pytest.raises(CancelledError):
            await running
    finally:
        answers.set()


@pytest_twisted.ensureDeferred
async def test_a_pull_can_be_cancelled_while_layers_arrive(pipeline_bench: PipelineBench) -> None:
    """A cancelled pull ends at once; the next pull resumes its partial layers."""
    image = pipeline_bench.image(LOWER)
    pipeline_bench.sends[image.layers[0].digest] = sending(LOWER, SharedResult())
    converting = Deferred.fromCoroutine(pipeline_bench.convert(image))
    await until(lambda: pipeline_bench.reader_positions() == [len(LOWER) // 2])
    converting.cancel()
    with pytest.raises(CancelledError):
        await converting
    assert pipeline_bench.reader_positions() == []
    half = pipeline_bench.cache_place / f"{image.layers[0].digest.hex}.partial"
    assert half.stat().st_size == len(LOWER) // 2
    pipeline_bench.sends[image.layers[0].digest] = sending(LOWER)
    assert await pipeline_bench.convert(image) > 0
