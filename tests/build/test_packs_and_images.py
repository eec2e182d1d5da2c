"""Packs of the packer, composed to images: both agree on numbers, duplicates and holes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.build.pack_files import Pack
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import LayerFile
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import flatten
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.threads import Threads
from tests.build.pack_maker import Stack
from tests.build.packing import PackSite, budget
from tests.build.test_compose import LOWER, UPPER, assert_same, sparse_tar
from tests.images import tar_of


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "xz"])
@pytest_twisted.ensureDeferred
async def test_images_of_real_packs_are_those_of_the_other_builder(
    tmp_path: Path, threads: Threads, compressor: str
) -> None:
    """Layers with duplicates, hard links, zeros and sparse files, each packed once."""
    tars = [tar_of(LOWER), sparse_tar(tmp_path, 3, 400_000), tar_of(UPPER)]
    level = None if compressor == "xz" else 1
    site = PackSite(tmp_path, threads)
    packs: list[Pack] = []
    files: list[LayerFile] = []
    async with AsyncExitStack() as use:
        packer = site.packer(compressor=compressor, level=level)
        for number, tar in enumerate(tars):
            packs.append(await packer.pack(site.layer(tar), budget(), lambda _: None, use))
            path = tmp_path / f"layer-{number}"
            path.write_bytes(tar)
            files.append(LayerFile(path))
        indexes = [LayerIndex(list(pack.index.entries)) for pack in packs]
        plan = flatten(indexes, Budget(BuildLimits()), keep_setuid=False)
        options = SquashOptions(compressor, level, memory="64M", processors=1)
        layers = Stack(plan, files, [], options)
        layers.compose(tmp_path / "composed", packs=packs)
    assert_same(tmp_path / "composed", layers.build_whole(tmp_path / "whole"))
