"""Limits on the layers of an image, and on the time of each stage."""

from __future__ import annotations

import tarfile

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import ImageTooLarge, TimedOut
from shiftergw.model.build_options import BuildLimits, StageLimits
from shiftergw.model.images import Platform
from shiftergw.model.references import ImageReference
from shiftergw.oci import budget
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from tests.images import compress, entry, tar_of
from tests.job.pipeline_bench import LOWER, UPPER, PipelineBench, RecordingWatcher, real, sending
from tests.work.waiting import until


@pytest_twisted.ensureDeferred
async def test_limits_count_only_for_verified_bytes(pipeline_bench: PipelineBench) -> None:
    """Too many entries, in bytes that prove wrong, are not blamed on the image."""
    pipeline_bench.pipeline._limits = BuildLimits(entries=3)
    good, large = tar_of([entry("good", b"")]), tar_of([entry(f"{n}", b"") for n in range(10)])
    image = pipeline_bench.image(good)

    async def send(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(large[:512])
        await until(lambda: pipeline_bench.reader_positions() == [512])
        sink.write(large[512:5120])
        await until(lambda: pipeline_bench.reader_positions() == [])
        await sending(good)(0, sink)

    pipeline_bench.sends[image.layers[0].digest] = send
    assert await pipeline_bench.convert(image) == 1


@pytest_twisted.ensureDeferred
async def test_too_many_layers_are_refused_by_the_manifest(pipeline_bench: PipelineBench) -> None:
    """A manifest with too many layers fails before any download; the error names the key."""
    pipeline_bench.answer = pipeline_bench.image(LOWER, UPPER, LOWER)
    pipeline_bench.pipeline._limits = BuildLimits(layers=2)
    with pytest.raises(ImageTooLarge, match=r"has 3 layers, .* at most 2\.") as caught:
        await pipeline_bench.pipeline.resolve(
            ImageReference("app"), Platform(), None, RecordingWatcher()
        )
    assert "`MaxLayers`" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_a_repeated_layer_is_read_once_but_counted_each_time(
    pipeline_bench: PipelineBench,
) -> None:
    """Two hundred uses of a small blob take as long as one use, and count as two hundred."""
    tar = tar_of([entry("zeros", bytes(1 << 20))])
    blob = compress(tar)
    pipeline_bench.pipeline._limits = BuildLimits(layers_size=200 * len(tar) - 1)
    with pytest.raises(ImageTooLarge, match="unpack to more than"):
        await pipeline_bench.convert(pipeline_bench.image(*[blob] * 200))
    pipeline_bench.pipeline._limits = BuildLimits(layers_size=200 * len(tar))
    assert await pipeline_bench.convert(pipeline_bench.image(*[blob] * 200)) == 1


@pytest_twisted.ensureDeferred
async def test_a_layer_at_several_places_is_unpacked_for_each(
    pipeline_bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MaxRatio` also limits files that symlinks of later layers move to other paths."""
    monkeypatch.setattr(budget, "RATIO_FREE", 3 << 20)
    zeros = compress(tar_of([entry("d/zeros", bytes(1 << 20))]))
    moves = [
        tar_of([entry(f"d{n}"), entry("d", type=tarfile.SYMTYPE, linkname=f"d{n}")])
        for n in range(4)
    ]
    layers = [blob for move in moves for blob in (move, zeros)]
    limits = BuildLimits(ratio=1)
    pipeline_bench.pipeline._limits = limits
    with pytest.raises(ImageTooLarge, match="unpack to more than") as caught:
        await pipeline_bench.convert(pipeline_bench.image(*layers))
    assert "`MaxRatio`" in caught.value.remedy
    assert await pipeline_bench.convert(pipeline_bench.image(*layers[:4])) > 0
    assert await pipeline_bench.convert(pipeline_bench.image(*[zeros] * 4)) > 0


@pytest.mark.parametrize("stage", ["fetch", "examination"])
@pytest_twisted.ensureDeferred
async def test_a_stage_has_a_time_limit(pipeline_bench: PipelineBench, stage: str) -> None:
    """A slow download fails and names the key; an examination starts when all layers are there."""
    image = pipeline_bench.image(LOWER)
    pipeline_bench.sends[image.layers[0].digest] = sending(LOWER, SharedResult())
    pipeline_bench.pipeline._limits = BuildLimits(stages=StageLimits(**{stage: 0.3}))
    converting = Deferred.fromCoroutine(pipeline_bench.convert(image))
    if stage == "fetch":
        with pytest.raises(
            TimedOut, match=r"Fetching the image took longer than 0.3 seconds"
        ) as caught:
            await converting
        assert "`StageLimits.fetch`" in caught.value.remedy
    else:  # waiting for the layer counts as download
        await pause(0.6, real)
        assert not converting.called
        converting.cancel()
        with pytest.raises(CancelledError):
            await converting
