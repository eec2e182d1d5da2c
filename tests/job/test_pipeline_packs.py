"""A pipeline whose images are composed of packs: what pulls share, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import BlobCorrupt, RegistryDenied
from shiftergw.model.images import Digest, ImageConfig
from shiftergw.model.records import Progress
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from tests.build.parts import content_of
from tests.build.site import TREE, Site
from tests.job.pipeline_bench import (
    CHECKING,
    LOWER,
    OPTIONS,
    PROVEN,
    PULLING,
    UPPER,
    PipelineBench,
    RecordingWatcher,
    sending,
)
from tests.job.test_pipeline_damage import flip, forget_converted
from tests.work.waiting import until


def pack_bench(directory: Path, threads: Threads, site: Site | None = None) -> PipelineBench:
    """Return a pipeline whose images are composed of packs."""
    bench = PipelineBench(directory, threads, site)
    bench.options = replace(OPTIONS, builder="packs")
    return bench


@pytest.fixture
def bench(tmp_path: Path, threads: Threads) -> PipelineBench:
    """Return a pipeline with packs and the real `mksquashfs`."""
    return pack_bench(tmp_path, threads)


def packs_of(bench: PipelineBench) -> list[Path]:
    """Return the packs that the builder has."""
    return sorted(bench.cache.pack_directory.glob("*.pack"))


@pytest_twisted.ensureDeferred
async def test_a_layer_is_packed_while_it_arrives(bench: PipelineBench) -> None:
    """The progress is that of the download until its end, and then that of the build."""
    gate: SharedResult[None] = SharedResult()
    image, watcher = bench.image(LOWER, UPPER), RecordingWatcher()
    bench.sends[image.layers[0].digest] = sending(LOWER, gate)
    converting = Deferred.fromCoroutine(bench.build(image, watcher))
    await until(lambda: bench.reader_positions() == [len(LOWER) // 2])
    assert watcher.messages == [PULLING]
    gate.set_result(None)
    squashfs = await converting
    assert squashfs.report.entries > len(TREE) - 2
    assert set(squashfs.seconds) == {"fetch", "pack", "plan", "compose", "check"}
    assert watcher.messages == [
        PULLING,
        "Converting layers",
        "Putting the image together",
        CHECKING,
    ]
    assert watcher.progress[-1] == Progress("check", squashfs.size, squashfs.size)
    assert len(packs_of(bench)) == 2


@pytest_twisted.ensureDeferred
async def test_a_slow_pull_of_a_shared_layer_holds_up_no_other_image(
    bench: PipelineBench, tmp_path: Path
) -> None:
    """A pull that has the layer packs it, though another pull has begun the same pack before."""
    gate: SharedResult[None] = SharedResult()
    quick = pack_bench(tmp_path / "elsewhere", bench.threads, bench.site)
    quick.cache.pack_directory = bench.cache.pack_directory
    image = bench.image(LOWER, UPPER)
    bench.sends[image.layers[0].digest] = sending(LOWER, gate)
    converting = Deferred.fromCoroutine(bench.convert(image))
    await until(lambda: bench.reader_positions() == [len(LOWER) // 2])
    assert await quick.convert(quick.image(LOWER)) > len(TREE) - 2
    assert not converting.called
    gate.set_result(None)
    assert await converting > 0
    assert len(packs_of(bench)) == 2


@pytest.mark.parametrize("diff_id", [PROVEN.diff_ids[0], Digest.of(b"a guess")])
@pytest_twisted.ensureDeferred
async def test_a_user_without_the_layer_gets_nothing_of_its_pack(
    bench: PipelineBench, tmp_path: Path, diff_id: Digest
) -> None:
    """The pack of another pull exists, but this user cannot fetch the layer."""
    await bench.convert(bench.image(LOWER))
    stranger = pack_bench(tmp_path / "elsewhere", bench.threads, bench.site)
    stranger.config = ImageConfig(diff_ids=(diff_id, PROVEN.diff_ids[1]))
    image = stranger.image(LOWER, UPPER)

    async def refuse(_offset: int, _sink: BlobSink) -> None:
        raise RegistryDenied("No.")

    stranger.sends[image.layers[0].digest] = refuse
    with pytest.raises(RegistryDenied):
        await stranger.convert(image)


@pytest_twisted.ensureDeferred
async def test_a_wrong_diff_id_is_refused_as_without_a_pack(bench: PipelineBench) -> None:
    """The pack exists, and has proven another `diff_id` than the image claims."""
    await bench.convert(bench.image(LOWER))
    image = bench.image(LOWER, UPPER)
    bench.config = ImageConfig(diff_ids=(Digest.of(b"other"), PROVEN.diff_ids[1]))
    with pytest.raises(BlobCorrupt, match="unpacks to other bytes"):
        await bench.convert(image)
    assert image.layers[0].digest.hex in bench.cached_files()


@pytest.mark.parametrize("has_pack", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_layer_that_is_damaged_in_the_cache(
    bench: PipelineBench, tmp_path: Path, has_pack: bool
) -> None:
    """With its pack the layer is not read; without, the same pull fetches it again."""
    bench.config = PROVEN
    image = bench.image(LOWER, UPPER)
    first = await bench.build(image, RecordingWatcher())
    content = content_of(first.path)
    forget_converted(tmp_path)
    if not has_pack:
        for pack in packs_of(bench):
            pack.unlink()
    blob = bench.cache_place / image.layers[0].digest.hex
    flip(blob)
    second = await bench.build(image, RecordingWatcher())
    assert content_of(second.path) == content
    assert (Digest.of(blob.read_bytes()) == image.layers[0].digest) is not has_pack
