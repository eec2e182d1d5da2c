"""The files of a machine that make room for each other: layers, packs, and converted files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet import reactor

from shiftergw.app import worker
from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.metric_counts import MetricCounts
from shiftergw.build.pack_files import PackFiles, hold_pack
from shiftergw.errors import NoSpace
from shiftergw.model.images import Descriptor, Digest
from shiftergw.plumbing.services import run_services
from tests.cache.downloads import Source, fetch_blob, image_of
from tests.configurations import load_config
from tests.parts import small_disk

real: Any = reactor
SIZE = 200_000
KEY = "0" * 12
PRIVATE = image_of("lib/secret", private=True)
PUBLIC = image_of("lib/app", private=False)


class Disk:
    """A disk of 2 MiB with the cache and the converted files of a site."""

    def __init__(self, directory: Path) -> None:
        """Begin without files."""
        names = {"CacheDirectory": f"{directory}/cache", "ExpandDirectory": f"{directory}/expand"}
        self.metrics = MetricCounts()
        self.parts = ConversionParts(real, load_config(names).config, self.metrics)
        self.expand = directory / "expand"
        self.expand.mkdir()
        self.directories = {
            is_private: self.parts.caches.of(image).pack_directory.parent
            for is_private, image in ((True, PRIVATE), (False, PUBLIC))
        }

    def blob(self, age: float, name: str, *, is_private: bool = False) -> Path:
        """Make a whole blob that was last used some seconds ago."""
        return make(self.directories[is_private] / "sha256" / hex_of(name), age)

    def pack(self, age: float, name: str, *, is_private: bool = False) -> PackFiles:
        """Make a pack of a layer that was last used some seconds ago."""
        directory = self.directories[is_private] / "packs"
        files = PackFiles(directory, Digest("sha256", hex_of(name)), KEY)
        make(files.pack, age)
        make(files.sidecar, age, b"")
        return files

    def converted_file(self, age: float, name: str) -> Path:
        """Make a converted file that was last used some seconds ago."""
        return make(self.expand / f"{hex_of(name)}-{KEY}.squashfs", age)


def hex_of(name: str) -> str:
    """Return the digits of the digest of a layer or an image."""
    return Digest.of(name.encode()).hex


def make(path: Path, age: float, content: bytes = bytes(SIZE)) -> Path:
    """Make a file that was last touched some seconds before a fixed time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Give a disk of 2 MiB."""
    with small_disk(tmp_path / "disk", "size=2m"):
        yield Disk(tmp_path / "disk")


def exist(*paths: Path) -> list[bool]:
    """Return which files exist."""
    return [path.exists() for path in paths]


@pytest_twisted.ensureDeferred
async def test_one_order_of_removal_for_all_kinds(disk: Disk) -> None:
    """An arriving layer removes what was last used longest ago, public or private; in use stays.

    Of a layer and its pack the layer goes first: the pack is of use to more pulls.
    """
    in_use = disk.pack(90, "in use")
    oldest = disk.pack(80, "oldest", is_private=True)
    old = disk.converted_file(70, "old")
    young = disk.blob(60, "young", is_private=True)
    whole_layer, its_pack = disk.blob(30, "both"), disk.pack(20, "both")
    # A system with other options has used the layer since its pack was used.
    used_layer, older_pack = disk.blob(40, "used"), disk.pack(50, "used")
    new = b"n" * 900_000
    blob = Descriptor(Digest.of(new), len(new))
    descriptor = hold_pack(in_use)
    assert descriptor is not None
    os.utime(in_use.sidecar, (1e9 - 90, 1e9 - 90))
    async with run_services([disk.parts.threads]):
        cache = disk.parts.caches.of(PUBLIC)
        await cache.check_space([blob])
        with pytest.raises(NoSpace):
            await cache.check_space([Descriptor(Digest.of(b"large"), 3_000_000)])
        await fetch_blob(cache, blob, Source(new), lambda _: None)
    os.close(descriptor)
    assert exist(whole_layer, oldest.pack, oldest.sidecar, old) == [False] * 4
    assert exist(in_use.pack, young, its_pack.pack, used_layer, older_pack.pack) == [True] * 5
    counts = {(name, *labels): numbers for name, labels, numbers in disk.metrics.entries()}
    for kind in ("layers", "packs", "images"):
        assert counts.pop(("shiftergw_evictions_total", kind)) == [1]
        assert counts.pop(("shiftergw_evicted_bytes_total", kind)) == [SIZE]
    assert counts == {}


@pytest_twisted.ensureDeferred
async def test_layers_and_packs_make_room_for_converted_files(disk: Disk) -> None:
    """The builder counts and removes what the cache has on the same disk."""
    blob, pack, old_file = disk.blob(3, "a"), disk.pack(2, "b"), disk.converted_file(1, "c")
    async with run_services([disk.parts.threads]):
        await disk.parts.builder.check_space(3_600_000)
        with pytest.raises(NoSpace):
            await disk.parts.builder.check_space(4_300_000)
        assert exist(blob, pack.pack, old_file) == [True] * 3


@pytest_twisted.ensureDeferred
async def test_old_packs_of_all_places_are_swept(disk: Disk) -> None:
    """Public and private ones, with all that belongs to them; no other kind is."""
    packs = [disk.pack(9, "a"), disk.pack(9, "b", is_private=True), disk.pack(1, "c")]
    blob = disk.blob(9, "d")
    async with run_services([disk.parts.threads]):
        assert await disk.parts.packs.sweep(1e9 - 5) == 2
        assert exist(*(files.pack for files in packs), blob) == [False, False, True, True]
        assert await disk.parts.caches.sweep(1e9 - 5) == 1
    assert exist(packs[2].pack, blob) == [True, False]


@pytest_twisted.ensureDeferred
async def test_packs_of_all_places_are_scrubbed(disk: Disk) -> None:
    """Those without a sound sidecar are damaged."""
    packs = [disk.pack(9, "a"), disk.pack(9, "b", is_private=True), disk.pack(1, "c")]
    async with run_services([disk.parts.threads]):
        assert await disk.parts.scrub.scrub(1e9 - 5) == 2
    assert exist(*(files.pack for files in packs)) == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "intervals"),
    [({}, [7 * 86400]), ({"ScrubCache": "1:00:00:00"}, [86400]), ({"ScrubCache": "0:0:0:0"}, [])],
)
def test_the_interval_of_the_scrub(
    changes: dict[str, str], intervals: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers scrub the cache every week, or as often as `ScrubCache` says, or never."""
    seconds: list[float] = []

    def record(_cache: Any, interval: float, _clock: Any) -> Service:
        seconds.append(interval)
        return Service()

    monkeypatch.setattr(worker, "Scrubbing", record)
    worker.worker_service(real, load_config(changes).config)
    assert seconds == intervals
