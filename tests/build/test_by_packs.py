"""Images that are composed of packs: what is converted once, what is shared, and what is repaired.

What every builder promises is in `test_builder.py` and `test_converted.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build.pack_places import PackPlaces, PackSweep
from shiftergw.errors import BlobCorrupt, NoSpace
from shiftergw.model.images import Digest
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from shiftergw.squashfs.superblock import SIZE, Superblock
from tests.build.bad_sector import bad_sector
from tests.build.packing import ComingLayer
from tests.build.parts import content_of, converter
from tests.build.site import DAY, ID, OTHER_ID, Site, StoredLayer, real
from tests.images import compress, entry, tar_of
from tests.parts import need
from tests.squashfs.parts import read_file
from tests.work.waiting import until

NOISE = os.urandom(300_000)


class CountingSite(Site):
    """A site that composes images of packs, and counts the runs of `mksquashfs`."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Count in a file of `directory`."""
        self._log = directory / "runs"
        program = directory / "bin" / "mksquashfs"
        program.parent.mkdir()
        text = f'echo "$@" >>{self._log}; exec {need("mksquashfs")} "$@"'
        super().__init__(directory, threads, converter(program, text), "packs")

    @property
    def runs(self) -> int:
        """Return how many times the program has run."""
        with suppress(FileNotFoundError):
            return len(self._log.read_text().splitlines())
        return 0

    @property
    def packs(self) -> list[Path]:
        """Return the packs, the oldest first."""
        packs = self.pack_directory.glob("*.pack")
        return sorted(packs, key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def counting_site(tmp_path: Path, threads: Threads) -> CountingSite:
    """Return a site with packs."""
    return CountingSite(tmp_path, threads)


@pytest_twisted.ensureDeferred
async def test_only_new_layers_are_converted(counting_site: CountingSite) -> None:
    """An image with one more layer runs `mksquashfs` once, and has the files of all layers."""
    site = counting_site
    base = [site.layer([entry("a", NOISE)]), site.layer([entry("b", b"lower")], "zstd")]
    first = await site.build_image(base)
    assert site.runs == 2
    above = site.layer([entry("b", b"upper"), entry("copy", NOISE)])
    second = await site.build_image([*base, above], image_id=OTHER_ID)
    assert site.runs == 3
    content = content_of(second.path)
    assert {name: data for name, (_, _, data) in content.items()} == {
        "a": NOISE,
        "b": b"upper",
        "copy": NOISE,
    }
    assert second.size < first.size + 4096  # the copy takes no data
    assert site.pack_suffixes == [".index"] * 3 + [".pack"] * 3


def data_areas(packs: list[Path]) -> dict[str, bytes]:
    """Return the data areas of packs by their digests."""
    areas = []
    for path in packs:
        content = path.read_bytes()
        tables = read_file(path).tables
        areas.append(content[tables.data_start : tables.superblock.inode_table])
    return {hashlib.sha256(area).hexdigest(): area for area in areas}


@pytest.mark.parametrize("level", [15, 3])  # packs have no compressor options for the first
@pytest_twisted.ensureDeferred
async def test_an_image_names_the_data_of_its_packs(
    counting_site: CountingSite, level: int
) -> None:
    """Its ranges are the bytes of the packs' data areas, also when the file is found later."""
    site = counting_site
    layers = [
        site.layer([entry("a", NOISE), entry("gone", NOISE[:200_000]), entry("b", NOISE[1:])]),
        site.layer([entry("c", NOISE[2:]), entry(".wh.gone", b"")]),
    ]
    image = await site.build_image(layers, compressor="zstd", level=level)
    areas, content = data_areas(site.packs), image.path.read_bytes()
    assert set(image.data.ranges) == set(areas)
    for name, ranges in image.data.ranges.items():
        for offset, position, length in ranges:
            assert content[position : position + length] == areas[name][offset : offset + length]
    assert sum(image.data.sizes().values()) > 3 * 2 * (1 << 17)
    later_image = await site.build_image(layers, compressor="zstd", level=level)
    assert "verify" in later_image.seconds
    assert later_image.data == image.data


@pytest_twisted.ensureDeferred
async def test_images_share_packs_at_the_same_time(counting_site: CountingSite) -> None:
    """Two builds that need the pack of the same layer make it once."""
    site = counting_site
    base = site.layer([entry("a", NOISE)])
    builds = [
        Deferred.fromCoroutine(
            site.build_image([base, site.layer([entry("b", name)])], image_id=Digest.of(name).hex)
        )
        for name in (b"1", b"2")
    ]
    for build in builds:
        assert content_of((await build).path)["a"][2] == NOISE
    assert site.runs == 3


def remove(path: Path) -> None:
    """Remove a pack."""
    path.unlink()


def damage_metadata(path: Path) -> None:
    """Write zeros over the metadata of a pack; neither its size nor its time shows that."""
    state = path.stat()
    with path.open("r+b") as file:
        superblock = Superblock.unpack(file.read(SIZE))
        file.seek(superblock.inode_table)
        file.write(bytes(60))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def change(path: Path) -> None:
    """Write other data into a pack, now."""
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(400))


class DamagingStates(list[str]):
    """A record of states; damages a file when the image is put together for the first time."""

    def __init__(self, site: CountingSite, damage: Callable[[Path], None]) -> None:
        """Damage the first pack of this site."""
        super().__init__()
        self._site = site
        self._damage: Callable[[Path], None] | None = damage

    def append(self, state: str) -> None:
        """Record a state."""
        super().append(state)
        if state == "COMPOSITION" and self._damage is not None:
            self._damage(self._site.packs[0])
            self._damage = None


@pytest.mark.parametrize("damage", [remove, damage_metadata])
@pytest_twisted.ensureDeferred
async def test_a_pack_that_is_damaged_is_made_again(
    counting_site: CountingSite, damage: Callable[[Path], None]
) -> None:
    """The same build makes it from the layer, whenever the damage shows; the plan stays valid."""
    site = counting_site
    layers = [site.layer([entry("a", NOISE)]), site.layer([entry("b", b"b" * 3000)])]
    await site.build_image(layers, image_id="ef" * 32)
    site.states = DamagingStates(site, damage)
    image = await site.build_image(layers)
    assert site.runs == 3
    content = content_of(image.path)
    assert (content["a"][2], content["b"][2]) == (NOISE, b"b" * 3000)
    assert site.states == ["PACKING", "COMPOSITION", "REPAIR", "COMPOSITION", "CHECK"]
    other_image = await site.build_image(layers, image_id=OTHER_ID)
    assert (site.runs, other_image.sha256) == (3, image.sha256)


@pytest.mark.parametrize(
    ("code", "is_shared"), [(errno.EIO, False), (errno.EUCLEAN, False), (errno.EIO, True)]
)
@pytest_twisted.ensureDeferred
async def test_a_pack_that_the_disk_cannot_read_is_made_again(
    counting_site: CountingSite, code: int, is_shared: bool
) -> None:
    """A bad sector shows while the image is composed or, where blocks are shared, checked."""
    site = counting_site
    layers = [site.layer([entry("a", NOISE)]), site.layer([entry("b", NOISE[1:])])]
    first = await site.build_image(layers)
    site.states.clear()
    with bad_sector(site.packs[0], code, is_shared=is_shared):
        second = await site.build_image(layers, image_id=OTHER_ID)
    assert (site.runs, second.sha256) == (3, first.sha256)
    states = [state for state in site.states if state != "CHECK"]
    assert states == ["PACKING", "COMPOSITION", "REPAIR", "COMPOSITION"]


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_no_damage_of_packs(
    counting_site: CountingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pack is hashed for it."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shiftergw.build.by_packs.compose", fail)
    with pytest.raises(NoSpace):
        await counting_site.build_image([counting_site.layer([entry("a", NOISE)])])
    assert counting_site.states == ["PACKING", "COMPOSITION"]


@pytest_twisted.ensureDeferred
async def test_a_pack_that_was_damaged_before_is_made_again(counting_site: CountingSite) -> None:
    """A pack whose time has changed is hashed before its use, and the log names it."""
    site = counting_site
    layers = [site.layer([entry("a", NOISE)])]
    first = await site.build_image(layers)
    change(site.packs[0])
    with capturedLogs() as log:
        second = await site.build_image(layers, image_id=OTHER_ID)
    assert site.runs == 2
    assert second.sha256 == first.sha256
    assert any("is damaged (its bytes have changed)" in formatEvent(event) for event in log)


@pytest_twisted.ensureDeferred
async def test_damage_of_an_image_is_no_damage_of_its_packs(
    counting_site: CountingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that sound packs cannot cause is raised, and they stay."""
    site = counting_site
    problem = BlobCorrupt("A failure of the composer.")

    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr("shiftergw.build.by_packs.compose", fail)
    with pytest.raises(BlobCorrupt) as caught:
        await site.build_image([site.layer([entry("a", NOISE)])])
    assert caught.value is problem
    assert (site.names, site.pack_suffixes) == ([], [".index", ".pack"])


@pytest_twisted.ensureDeferred
async def test_a_pack_is_used_only_after_the_own_layer_has_arrived(
    counting_site: CountingSite, tmp_path: Path
) -> None:
    """A pull that cannot fetch a layer gets nothing of its pack, not even a verdict on it.

    The pack may be of another user's private image.
    """
    site = counting_site
    tar = tar_of([entry("secret", NOISE)])
    await site.build_image([site.layer([entry("secret", NOISE)])])
    for diff_id in (Digest.of(tar), Digest.of(b"a guess")):
        layer = ComingLayer(tmp_path / "arriving", compress(tar), diff_id)
        building = Deferred.fromCoroutine(site.build_image([layer], image_id=OTHER_ID))
        layer.arrive(1000)
        await deferLater(real, 0.3)
        assert not building.called
        building.cancel()
        with pytest.raises(CancelledError):
            await building
    assert site.runs == 1


@pytest_twisted.ensureDeferred
async def test_options_that_packs_cannot_keep(counting_site: CountingSite) -> None:
    """The image is built as a whole, and no pack is made."""
    image = await counting_site.build_image(counting_site.two, extra=("-no-fragments",))
    assert set(image.seconds) == {"index", "plan", "squash", "check"}
    assert counting_site.pack_suffixes == []


@pytest_twisted.ensureDeferred
async def test_packs_outlive_converted_files(counting_site: CountingSite, threads: Threads) -> None:
    """Each kind has its own sweep; a pack is swept when it was not used for long."""
    site = counting_site
    layers = [site.layer([entry("a", NOISE)])]
    packs = PackSweep(PackPlaces(site.pack_directory, lambda: [site.pack_directory]), threads)
    await site.build_image(layers)
    age([site.directory, site.pack_directory])
    assert await site.builder.sweep(time.time() - DAY) == 1
    assert (site.names, site.pack_suffixes) == ([], [".index", ".pack"])
    await site.build_image(layers)
    assert await packs.sweep(time.time() - DAY) == 0
    age([site.directory, site.pack_directory])
    assert await packs.sweep(time.time() - DAY) == 1
    assert site.pack_suffixes == []
    assert site.names == [f"{ID}-{site.options().key}.{end}" for end in ("json", "squashfs")]


def age(directories: list[Path]) -> None:
    """Have files that were not used for many years."""
    for directory in directories:
        for path in directory.iterdir():
            os.utime(path, (1, 1))


@pytest_twisted.ensureDeferred
async def test_a_build_that_waits_for_other_builds(counting_site: CountingSite) -> None:
    """Its stage says so while none of its layers is packed; it goes on when a slot is free."""
    site = counting_site
    directory = site.builder._tools.slot_directory
    directory.mkdir(parents=True)
    layers = [site.layer([entry("a", NOISE)]), site.layer([entry("b", NOISE)])]
    with tried_lock(directory / "0.slot"):
        building = Deferred.fromCoroutine(site.build_image(layers))
        await until(lambda: site.states == ["PACKING", "QUEUED"])
        assert site.runs == 0
    await building
    assert site.states[:3] == ["PACKING", "QUEUED", "PACKING"]
    assert site.states[-2:] == ["COMPOSITION", "CHECK"]


@pytest_twisted.ensureDeferred
async def test_a_layer_that_occurs_twice(counting_site: CountingSite) -> None:
    """It is packed once, and its files are as the last layer leaves them."""
    site = counting_site
    low = StoredLayer(site.layer([entry("a", b"low")]))
    high = site.layer([entry("a", b"high")])
    image = await site.build_image([low, high, low])
    assert content_of(image.path)["a"][2] == b"low"
    assert site.runs == 2
