"""Images that the packer and the composer make together, from layers of real bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings

from shiftergw.build.compose import compose
from shiftergw.build.pack_files import Pack
from shiftergw.build.packer import Packer
from shiftergw.model.build_options import BuildLimits
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import flatten
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Layer
from tests.build.packing import PackSite
from tests.build.parts import content_of
from tests.build.site import ABOVE, CREATION_TIME, TREE, Site
from tests.images import entry, tar_of
from tests.matrices import examples
from tests.oci.layers import Layer as Entries
from tests.oci.layers import contents
from tests.oci.model import LAYERS, InvalidLayers, flatten_model
from tests.oci.test_sparse import sparse_file
from tests.parts import need


async def compose_image(packer: Packer, layers: Sequence[Layer], output: Path) -> list[Pack]:
    """Pack the layers, and write the image of their packs; return the packs."""
    budget = Budget(BuildLimits())
    async with AsyncExitStack() as use:
        packs = [await packer.pack(layer, budget.layer(), lambda _: None, use) for layer in layers]
        plan = flatten([pack.index for pack in packs], budget, keep_setuid=False)
        await packer.tools.threads.run(
            compose,
            *(plan, packs, packer.options, CREATION_TIME, output, Event(), lambda _, __: None),
        )
    return packs


def sparse_tar(directory: Path) -> bytes:
    """Return an archive with a sparse file."""
    sparse_file(directory / "holes", 5, 700_000)
    argv = [need("tar"), "--sparse", "-C", str(directory), "-cf", "-", "holes"]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "xz"])
@pytest_twisted.ensureDeferred
async def test_the_image_is_that_of_the_whole_builder(
    tmp_path: Path, threads: Threads, whole_site: Site, compressor: str
) -> None:
    """Names, modes and contents are the same, with packs that were made and that were found."""
    packs = PackSite(tmp_path, threads)
    copy = tar_of([entry("data copy", TREE[-2][1]), entry("data", b"replaced")])
    tars = [tar_of(TREE), tar_of(ABOVE), sparse_tar(tmp_path), copy]
    layers = [packs.layer(tar, "gzip") for tar in tars]
    level = None if compressor == "xz" else 1
    async with whole_site.build(layers, compressor=compressor, level=level) as image:
        expected = content_of(image.path)
    packer = packs.packer(compressor=compressor, level=level)
    images = [tmp_path / name for name in ("made", "found")]
    for output in images:
        await compose_image(packer, layers, output)
        assert content_of(output) == expected
    assert images[0].read_bytes() == images[1].read_bytes()
    assert images[0].stat().st_size <= 1.01 * image.size
    assert expected["data copy"][2] == TREE[-2][1]


def tar_of_image(image: Path) -> bytes:
    """Return the archive that `sqfs2tar` makes of an image."""
    argv = [need("sqfs2tar"), str(image)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


@settings(
    max_examples=examples(20),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # threads keep nothing
)
@given(random_layers=LAYERS)
@pytest_twisted.ensureDeferred
async def test_random_layers_become_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, threads: Threads, random_layers: list[Entries]
) -> None:
    """No entry is dropped, doubled or given another content, whatever the layers contain."""
    try:
        expected = flatten_model(random_layers).contents
    except InvalidLayers:
        return
    directory = tmp_path_factory.mktemp("random")
    packs = PackSite(directory, threads)
    layers = [packs.layer(tar_of(entries)) for entries in random_layers]
    await compose_image(packs.packer(), layers, directory / "image")
    assert contents(tar_of_image(directory / "image")) == expected
