"""Packs and images on a full disk: unused files make room for them, and no part stays."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.build import pack_job
from shiftergw.build.pack_files import Pack
from shiftergw.build.written_pack import WrittenPack, install_pack
from shiftergw.errors import NoSpace
from shiftergw.plumbing.threads import Threads
from tests import images
from tests.build.packing import PackSite, budget, files_of
from tests.build.site import OTHER_ID, Site
from tests.images import tar_of
from tests.parts import small_disk
from tests.work.waiting import until

NOISE = random.Random(1).randbytes(3_000_000)
PERIODIC_NOISE = NOISE[:200_000] * 15
"""A layer of zstd has it once, and a pack each time: it is further apart than blocks are long."""


@pytest.fixture(params=["mksquashfs", "direct"])
def packs(request: pytest.FixtureRequest, tmp_path: Path, threads: Threads) -> Iterator[PackSite]:
    """Return each packer."""
    site = PackSite(tmp_path, threads, packer=request.param)
    yield site
    site.end()


@pytest_twisted.ensureDeferred
async def test_a_pack_larger_than_its_layer(packs: PackSite) -> None:
    """Unused packs make room for it once the disk is full; those in use stay."""
    old_layer = packs.layer(tar_of({"a": NOISE}))
    layer = packs.layer(tar_of({"a": PERIODIC_NOISE}), "zstd")
    assert layer.size < 300_000
    with small_disk(packs.directory, "size=5m"):
        async with AsyncExitStack() as use:
            await packs.packer().pack(old_layer, budget(), packs.reports.append, use)
            with pytest.raises(NoSpace):
                await packs.pack(layer)
            assert packs.names == [".index", ".pack"]
        assert files_of(await packs.pack(layer)) == {b"a": PERIODIC_NOISE}
        assert packs.names == [".index", ".pack"]


@pytest.mark.parametrize("packs", ["mksquashfs"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_an_early_packing_that_fills_the_disk(packs: PackSite) -> None:
    """Its part is removed at once, not when the layer has arrived; no pack is for its sake.

    The packer of our own may write the last blocks only when more bytes arrive.
    """
    layer = packs.coming_layer(tar_of({"a": NOISE}), "plain")
    old_layer = packs.layer(tar_of({"a": NOISE[:600_000]}))
    with small_disk(packs.directory, "size=3m"):
        await packs.pack(old_layer)
        packing = Deferred.fromCoroutine(packs.pack(layer))
        layer.arrive(1_500_000)
        await until(lambda: packs.part_size(layer) > 500_000)
        layer.arrive(2_900_000)
        await until(lambda: packs.parts(layer) == [])
        assert packs.packer().files(old_layer.digest).exist()
        layer.complete()
        assert files_of(await packing) == {b"a": NOISE}
        assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_a_sidecar_that_does_not_fit(
    packs: PackSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack that was made early is made of the file, with room for its sidecar.

    No image is composed of the new part file before it is complete.
    """
    attempts: list[WrittenPack] = []

    def install(written_pack: WrittenPack, stop: Event) -> Pack:
        attempts.append(written_pack)
        if len(attempts) == 1:
            raise OSError(errno.ENOSPC, "the disk is full")
        with pytest.raises(FileNotFoundError):
            attempts[0].open()
        return install_pack(written_pack, stop)

    monkeypatch.setattr(pack_job, "install_pack", install)
    layer = packs.coming_layer(tar_of({"a": NOISE}))
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(2_000_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    layer.complete()
    assert files_of(await packing) == {b"a": NOISE}
    assert (len(attempts), packs.names) == (2, [".index", ".pack"])
    os.close(attempts[0].open())


@pytest_twisted.ensureDeferred
async def test_an_image_larger_than_was_estimated(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unused images make room for it once the disk is full; those in use stay."""
    monkeypatch.setattr(site.converter, "space", lambda _: 1)
    layers = [
        site.layer([images.entry(f"noise{number}", os.urandom(1_200_000))]) for number in range(4)
    ]
    with small_disk(site.directory, "size=3m"):
        async with site.build(layers[:1]) as used:
            old_image = await site.build_image(layers[1:2], image_id=OTHER_ID)
            await site.build_image(layers[2:3], image_id="ef" * 32)
            assert (used.path.exists(), old_image.path.exists()) == (True, False)
            with pytest.raises(NoSpace):
                await site.build_image(layers[1:], image_id="01" * 32)
            assert used.path.exists()
            assert not [name for name in site.names if name.endswith(".part")]
