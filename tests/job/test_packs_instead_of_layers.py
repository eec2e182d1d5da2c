"""Packs in the cache stand for their layers, which are neither kept nor downloaded."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build.pack_files import pack_groups
from shiftergw.build.packer import Packer
from shiftergw.cache.blob_cache import BlobCaches
from shiftergw.errors import BlobCorrupt, RegistryDenied
from shiftergw.job.pipeline import Pipeline
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import BuiltImage, Descriptor, Digest, ImageConfig
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.states import check_step
from tests.build.bad_sector import bad_sector
from tests.build.parts import content_of
from tests.build.test_by_packs import damage_metadata
from tests.job.pipeline_bench import (
    LOWER,
    PROVEN,
    TARS,
    UPPER,
    PipelineBench,
    RecordingWatcher,
    real,
    sending,
)
from tests.job.test_pipeline_damage import forget_converted
from tests.job.test_pipeline_packs import pack_bench, packs_of

BLOBS = LOWER, UPPER


class PackedImage:
    """An image whose packs are in the cache; its layers and its converted file no longer are."""

    def __init__(self, bench: PipelineBench, directory: Path) -> None:
        """Record the downloads of the image, which has yet to be converted."""
        self.bench = bench
        self.directory = directory
        self.watcher = RecordingWatcher()
        self.downloads: list[Digest] = []
        bench.config = PROVEN
        self.image = bench.image(*BLOBS)
        for layer, blob in zip(self.image.layers, BLOBS, strict=True):
            bench.sends[layer.digest] = self._recording(layer.digest, blob)

    def _recording(self, digest: Digest, blob: bytes) -> Any:
        async def send(offset: int, sink: BlobSink) -> None:
            self.downloads.append(digest)
            await sending(blob)(offset, sink)

        return send

    async def convert(self) -> BuiltImage:
        """Convert the image, and remove its layers and the converted file."""
        squashfs = await self.bench.build(self.image, self.watcher)
        self.forget()
        return squashfs

    def forget(self) -> None:
        """Remove the layers and the converted file, as if they had not been used for long."""
        forget_converted(self.directory)
        for path in self.bench.cache_place.iterdir():
            path.unlink()

    async def build(self) -> BuiltImage:
        """Convert the image once more, and record that alone."""
        self.watcher = RecordingWatcher()
        self.downloads.clear()
        return await self.bench.build(self.image, self.watcher)

    def file_of(self, layer: Descriptor, suffix: str = ".pack") -> Path:
        """Return the pack of a layer, or its sidecar."""
        (path,) = self.bench.cache.pack_directory.glob(f"{layer.digest.hex}-*{suffix}")
        return path


@pytest.fixture
def packed_image(tmp_path: Path, threads: Threads) -> PackedImage:
    """Return an image with packs and without layers."""
    image = PackedImage(pack_bench(tmp_path, threads), tmp_path)
    pytest_twisted.blockon(Deferred.fromCoroutine(image.convert()))
    return image


@pytest_twisted.ensureDeferred
async def test_a_layer_with_a_pack_is_not_downloaded(
    packed_image: PackedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is the same, and its layers count as fetched from the beginning."""
    spaces: list[tuple[Sequence[Descriptor], bool]] = []

    async def check_space(layers: Sequence[Descriptor], *, with_packs: bool) -> None:
        spaces.append((layers, with_packs))

    monkeypatch.setattr(packed_image.bench.cache, "check_space", check_space)
    await packed_image.bench.pipeline.check_space(packed_image.image, packed_image.bench.options)
    squashfs = await packed_image.build()
    assert content_of(squashfs.path)["data"][2]
    assert (packed_image.downloads, packed_image.bench.cached_files()) == ([], [])
    assert spaces == [([], True)]
    fetches = [progress for progress in packed_image.watcher.progress if progress.stage == "fetch"]
    total = len(LOWER) + len(UPPER)
    assert {(progress.done, progress.total) for progress in fetches} == {(total, total)}


@pytest_twisted.ensureDeferred
async def test_a_new_layer_is_downloaded(packed_image: PackedImage) -> None:
    """Layers without a pack are downloaded, and those with one are not."""
    packed_image.file_of(packed_image.image.layers[1]).unlink()
    await packed_image.build()
    assert packed_image.downloads == [packed_image.image.layers[1].digest]
    assert len(packs_of(packed_image.bench)) == 2


@pytest_twisted.ensureDeferred
async def test_other_options_need_the_layer(packed_image: PackedImage) -> None:
    """A pack of another compression, and the builder of whole images, replace no layer."""
    options = packed_image.bench.options
    for changes in ({"level": 2}, {"builder": "whole"}):
        packed_image.bench.options = replace(options, **cast("Any", changes))
        await packed_image.build()
        assert len(packed_image.downloads) == 2
        packed_image.forget()


def damage_index(packed_image: PackedImage, layer: Descriptor) -> None:
    """Change the last byte of a sidecar."""
    path = packed_image.file_of(layer, ".index")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_pack(packed_image: PackedImage, layer: Descriptor) -> None:
    """Cut the end of a pack off."""
    path = packed_image.file_of(layer)
    path.write_bytes(path.read_bytes()[:-4096])


def damage_pack(packed_image: PackedImage, layer: Descriptor) -> None:
    """Damage a pack in a way that its size and its time do not show."""
    damage_metadata(packed_image.file_of(layer))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("damage", [damage_index, cut_pack, damage_pack])
@pytest_twisted.ensureDeferred
async def test_a_damaged_pack_has_its_layer_fetched_again(
    packed_image: PackedImage, damage: Callable[[PackedImage, Descriptor], None], count: int
) -> None:
    """The same pull fetches and packs it anew, once; its stages never go back, the log names it."""
    sound_bytes = [path.read_bytes() for path in packs_of(packed_image.bench)]
    damaged_layers = packed_image.image.layers[:count]
    for layer in damaged_layers:
        damage(packed_image, layer)
    with capturedLogs() as log:
        squashfs = await packed_image.build()
    assert content_of(squashfs.path)["data"][2]
    assert sorted(map(str, packed_image.downloads)) == sorted(
        str(layer.digest) for layer in damaged_layers
    )
    assert [path.read_bytes() for path in packs_of(packed_image.bench)] == sound_bytes
    texts = [formatEvent(event) or "" for event in log]
    assert any(packed_image.file_of(damaged_layers[0]).name in text for text in texts)
    for (before, _), (after, _) in pairwise(packed_image.watcher.stages):
        check_step(before, after)


@pytest_twisted.ensureDeferred
async def test_damage_that_is_noticed_later(
    packed_image: PackedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build ends at the first damaged pack; one that it has not read is replaced, too."""
    for layer in packed_image.image.layers:
        damage_index(packed_image, layer)
    find, second, tries = Packer.find, packed_image.image.layers[1].digest, []

    async def find_late(packer: Packer, digest: Digest, *arguments: Any) -> Any:
        if digest == second:
            tries.append(digest)
            if len(tries) == 1:
                await Deferred()  # until the other layer ends the build
        return await find(packer, digest, *arguments)

    monkeypatch.setattr(Packer, "find", find_late)
    squashfs = await packed_image.build()
    assert content_of(squashfs.path)["data"][2]
    assert len(packed_image.downloads) == 2


@pytest_twisted.ensureDeferred
async def test_a_bad_sector_has_a_layer_fetched_again(packed_image: PackedImage) -> None:
    """The disk cannot read the data of a pack whose layer is not here: one pull mends that."""
    layer = packed_image.image.layers[0]
    with bad_sector(packed_image.file_of(layer), errno.EIO):
        squashfs = await packed_image.build()
    assert content_of(squashfs.path)["data"][2]
    assert packed_image.downloads == [layer.digest]
    assert len(packs_of(packed_image.bench)) == 2


@pytest_twisted.ensureDeferred
async def test_a_claim_of_another_diff_id_is_refused(packed_image: PackedImage) -> None:
    """It is refused as by the layer itself, and the pack stays for others."""
    packed_image.bench.config = ImageConfig(diff_ids=(Digest.of(b"other"), PROVEN.diff_ids[1]))
    with pytest.raises(BlobCorrupt, match="unpacks to other bytes"):
        await packed_image.build()
    assert packed_image.downloads == []
    assert len(packs_of(packed_image.bench)) == 2


@pytest_twisted.ensureDeferred
async def test_a_claim_by_another_algorithm_needs_the_layer(packed_image: PackedImage) -> None:
    """A pack that was proven by SHA-256 proves no SHA-512."""
    proof = Digest("sha512", hashlib.sha512(TARS[0]).hexdigest())
    packed_image.bench.config = ImageConfig(diff_ids=(proof, PROVEN.diff_ids[1]))
    await packed_image.build()
    assert packed_image.downloads == [packed_image.image.layers[0].digest]


@pytest_twisted.ensureDeferred
async def test_a_manifest_without_diff_ids(packed_image: PackedImage) -> None:
    """Old manifests claim nothing; the digest of the layer has proven the pack."""
    packed_image.bench.config = ImageConfig()
    await packed_image.build()
    assert packed_image.downloads == []


@pytest_twisted.ensureDeferred
async def test_packs_of_a_private_repository_serve_it_alone(
    tmp_path: Path, threads: Threads
) -> None:
    """Neither another repository nor the public place gets anything of them, nor do they from it.

    A pull of the same repository, whose login has just read the manifest, uses them.
    """
    packed_image = PackedImage(pack_bench(tmp_path, threads), tmp_path)
    bench, caches = packed_image.bench, BlobCaches(tmp_path / "cache", threads, real)
    bench.pipeline = Pipeline(
        cast("Any", bench), caches.of, bench.site.builder, BuildLimits(), real
    )
    own = replace(packed_image.image, private=True, repository="lib/own")
    await bench.build(own, RecordingWatcher())
    forget_converted(tmp_path)
    for path in (tmp_path / "cache").rglob("sha256/*"):
        path.unlink()

    async def refuse(_offset: int, _sink: BlobSink) -> None:
        raise RegistryDenied("No.")

    bench.sends = dict.fromkeys(bench.sends, refuse)
    for stranger in (replace(own, private=False), replace(own, repository="lib/other")):
        with pytest.raises(RegistryDenied):
            await bench.build(stranger, RecordingWatcher())
        assert await bench.pipeline.find_packs(stranger, bench.options) == frozenset()
    await bench.build(own, RecordingWatcher())


@pytest_twisted.ensureDeferred
async def test_packs_in_use_stay(packed_image: PackedImage) -> None:
    """From the moment that a pull relies on them, packs are not removed, and count as used."""
    groups = pack_groups(packed_image.bench.cache.pack_directory)
    async with AsyncExitStack() as use:
        claims = [(layer.digest, None) for layer in packed_image.image.layers]
        site, place = packed_image.bench.site, packed_image.bench.cache.pack_directory
        assert (
            len(await site.builder.find_packs(place, claims, packed_image.bench.options, use)) == 2
        )
        assert groups.sweep(time.time() + 60) == 0
    assert groups.sweep(time.time() - 60) == 0
    assert groups.sweep(time.time() + 60) == 2
