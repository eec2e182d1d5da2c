"""Layers and converted files that are damaged: they are fetched or built again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build import whole
from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import BlobCorrupt, LayerInvalid
from shiftergw.model.images import Descriptor, Digest, ImageConfig
from shiftergw.ports import BlobSink, Layer
from shiftergw.states import State, check_step
from tests.build.site import TREE
from tests.images import tar_of
from tests.job.pipeline_bench import (
    LOWER,
    PROVEN,
    UPPER,
    PipelineBench,
    RecordingWatcher,
    real,
    sending,
)
from tests.work.waiting import until


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    """Fill a file with zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def halve(path: Path) -> None:
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forget_converted(directory: Path) -> None:
    """Remove the converted files, as if they had not been used for long."""
    for path in directory.rglob("*.squashfs"):
        path.unlink()


@pytest.mark.parametrize("is_damaged_again", [True, False])
@pytest_twisted.ensureDeferred
async def test_wrong_bytes_are_blamed_on_the_download(
    pipeline_bench: PipelineBench, is_damaged_again: bool
) -> None:
    """A layer of wrong bytes is downloaded again, and the image is not blamed."""
    tar = tar_of(TREE)
    image = pipeline_bench.image(tar)
    damaged_tar = tar[:512] + b"x" * 512 + tar[1024:]

    async def send(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(tar[:512])
        await until(lambda: pipeline_bench.reader_positions() == [512])
        sink.write(b"x" * 512)
        await until(lambda: pipeline_bench.reader_positions() == [])
        sink.write(tar[1024:])
        pipeline_bench.sends[image.layers[0].digest] = sending(
            damaged_tar if is_damaged_again else tar
        )

    pipeline_bench.sends[image.layers[0].digest] = send
    if not is_damaged_again:
        assert await pipeline_bench.convert(image) > 1
        return
    with pytest.raises(BlobCorrupt, match="arrived 2 times with other bytes"):
        await pipeline_bench.convert(image)
    assert pipeline_bench.cached_files() == []


@pytest.mark.parametrize("config", [PROVEN, ImageConfig()], ids=["diff_ids", "none"])
@pytest.mark.parametrize("damage", [flip, zero, halve])
@pytest_twisted.ensureDeferred
async def test_a_layer_damaged_in_the_cache_is_fetched_again(
    pipeline_bench: PipelineBench,
    tmp_path: Path,
    damage: Callable[[Path], None],
    config: ImageConfig,
) -> None:
    """The same pull continues with the right bytes, and its stages never go back."""
    pipeline_bench.config = config
    image = pipeline_bench.image(LOWER, UPPER)
    entries = await pipeline_bench.convert(image)
    forget_converted(tmp_path)
    damage(pipeline_bench.cache_place / image.layers[0].digest.hex)
    watcher = RecordingWatcher()
    with capturedLogs() as log:
        assert await pipeline_bench.convert(image, watcher) == entries
    texts = [formatEvent(event) for event in log]
    # A file of another size counts as absent, unless its digest is checked first.
    is_logged = damage is not halve or config is not PROVEN
    assert any("damaged in the cache" in text for text in texts) is is_logged
    assert Digest.of((pipeline_bench.cache_place / image.layers[0].digest.hex).read_bytes()) == (
        image.layers[0].digest
    )
    for (before, _), (after, _) in pairwise(watcher.stages):
        check_step(before, after)


class DiscardingCache(BlobFiles):
    """A cache whose first blob is found damaged by another process as soon as it is in use."""

    discards = 1

    @asynccontextmanager
    async def get(self, blob: Descriptor, *args: Any) -> AsyncIterator[Path]:
        """Give the file of a blob, which is gone by then."""
        async with super().get(blob, *args) as path:
            if self.discards:
                self.discards -= 1
                flip(path)
                assert await BlobFiles(self._directory, self._threads, real).discard(blob.digest)
            yield path


@pytest_twisted.ensureDeferred
async def test_a_layer_that_another_pull_discards_is_fetched_again(
    pipeline_bench: PipelineBench, tmp_path: Path
) -> None:
    """A damaged file of a blob in use is removed, even just before it is opened."""
    pipeline_bench.config = PROVEN
    image = pipeline_bench.image(LOWER, UPPER)
    entries = await pipeline_bench.convert(image)
    forget_converted(tmp_path)
    pipeline_bench.cache = DiscardingCache(tmp_path / "cache", pipeline_bench.threads, real)
    assert await pipeline_bench.convert(image) == entries
    assert pipeline_bench.cache.discards == 0


class LayerRemover(RecordingWatcher):
    """A watcher that removes a file when the conversion begins for the first time."""

    def __init__(self, path: Path) -> None:
        """Remove `path`."""
        super().__init__()
        self._path = path
        self.removals = 0

    def enter_stage(self, state: State, message: str) -> None:
        """Remove the file before `mksquashfs` starts."""
        super().enter_stage(state, message)
        if message == "Converting image" and not self.removals:
            self._path.unlink()
            self.removals += 1


@pytest_twisted.ensureDeferred
async def test_a_layer_that_is_discarded_before_the_conversion_is_fetched_again(
    pipeline_bench: PipelineBench,
) -> None:
    """A layer that was examined is read again for the data of its files."""
    pipeline_bench.config = PROVEN
    image = pipeline_bench.image(LOWER, UPPER)
    remover = LayerRemover(pipeline_bench.cache_place / image.layers[1].digest.hex)
    assert await pipeline_bench.convert(image, remover) > 0
    assert remover.removals == 1


@pytest_twisted.ensureDeferred
async def test_a_cache_that_damages_layers_ends_the_pull(
    pipeline_bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged layers are fetched once more only, and the error does not blame the image."""
    image = pipeline_bench.image(LOWER)
    path = pipeline_bench.cache_place / image.layers[0].digest.hex
    tries: list[None] = []

    async def examine_damaged(layers: Sequence[Layer], *_: Any) -> NoReturn:
        tries.append(None)
        await layers[0].wait_for_file()
        flip(path)
        raise LayerInvalid("A layer cannot be read.")

    monkeypatch.setattr(whole, "examine_layers", examine_damaged)
    with pytest.raises(BlobCorrupt, match="cache damages"):
        await pipeline_bench.convert(image)
    assert len(tries) == 2


@pytest.mark.parametrize("damage", [flip, zero, halve])
@pytest_twisted.ensureDeferred
async def test_a_damaged_converted_file_is_built_again(
    pipeline_bench: PipelineBench, damage: Callable[[Path], None]
) -> None:
    """A converted file whose digest is wrong is not delivered."""
    image, watcher = pipeline_bench.image(LOWER, UPPER), RecordingWatcher()
    first = await pipeline_bench.build(image, RecordingWatcher())
    damage(first.path)
    with capturedLogs() as log:
        second = await pipeline_bench.build(image, watcher)
    assert second.sha256 == first.sha256
    assert any("is damaged, and is made again" in formatEvent(event) for event in log)
    assert (State.CONVERSION, "Converting image") in watcher.stages


@pytest.mark.parametrize("damage", [flip, zero])
@pytest.mark.parametrize("is_same_image", [True, False])
@pytest_twisted.ensureDeferred
async def test_two_pulls_recover_from_one_damaged_layer(
    pipeline_bench: PipelineBench,
    tmp_path: Path,
    damage: Callable[[Path], None],
    is_same_image: bool,
) -> None:
    """The first pull removes the layer; the second pull finds it removed or replaced."""
    pipeline_bench.config = PROVEN
    image = pipeline_bench.image(LOWER, UPPER)
    entries = await pipeline_bench.convert(image)
    forget_converted(tmp_path)
    damage(pipeline_bench.cache_place / image.layers[0].digest.hex)
    first = Deferred.fromCoroutine(pipeline_bench.convert(image))
    if not is_same_image:
        image, pipeline_bench.config = (
            pipeline_bench.image(LOWER),
            ImageConfig(diff_ids=PROVEN.diff_ids[:1]),
        )
    second = Deferred.fromCoroutine(pipeline_bench.convert(image))
    numbers = await gatherResults([first, second], consumeErrors=True)
    assert entries in numbers
