"""Images with the files in which enroot looks for their configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.model.build_options import BuilderName
from shiftergw.model.images import Digest, ImageConfig
from shiftergw.oci.enroot import enroot_layer
from tests.build.parts import content_of
from tests.images import entry, tar_of
from tests.job.pipeline_bench import PipelineBench, RecordingWatcher
from tests.job.workbench import Bench

# An image with such a file of its own, and with a link in place of the directory.
TAR = tar_of(
    [
        entry("usr/etc/environment", b"OLD=1\n"),
        entry("usr/etc/motd", b"hello\n"),
        entry("etc", b"", type=b"2", linkname="usr/etc"),
    ]
)
CONFIG = ImageConfig(env=("NEW=1",), diff_ids=(Digest.of(TAR),))


async def built_files(bench: PipelineBench) -> dict[str, bytes | str]:
    """Build the image and return the content or target of its entries."""
    squashfs = await bench.build(bench.image(TAR), RecordingWatcher())
    return {name: content for name, (_, _, content) in content_of(squashfs.path).items()}


@pytest.mark.parametrize("builder", ["whole", "packs"])
@pytest_twisted.ensureDeferred
async def test_the_files_are_in_the_image(
    builder: BuilderName, pipeline_bench: PipelineBench
) -> None:
    """They replace those of the image where a program finds them, with each builder."""
    options = replace(pipeline_bench.options, builder=builder)
    contents = {}
    for has_files in (False, True):
        pipeline_bench.options = replace(options, enroot_files=has_files)
        pipeline_bench.config = CONFIG
        contents[has_files] = await built_files(pipeline_bench)
    paths = {"environment": b"NEW=1\n", "fstab": b"", "rc.local": b"", "motd": b"hello\n"}
    assert {name: contents[True][f"usr/etc/{name}"] for name in paths} == paths
    assert "usr/etc/rc" in contents[True]
    assert contents[False]["usr/etc/environment"] == b"OLD=1\n"
    assert len(contents[True]) == len(contents[False]) + 3


@pytest_twisted.ensureDeferred
async def test_an_old_image(pipeline_bench: PipelineBench) -> None:
    """An image whose configuration has no `diff_ids` gets the files, too."""
    pipeline_bench.options = replace(pipeline_bench.options, enroot_files=True)
    pipeline_bench.config = replace(CONFIG, diff_ids=())
    assert (await built_files(pipeline_bench))["usr/etc/environment"] == b"NEW=1\n"


@pytest_twisted.ensureDeferred
async def test_an_image_without_a_configuration(pipeline_bench: PipelineBench) -> None:
    """Such an image stays as it is: it may be one that enroot has made."""
    pipeline_bench.options = replace(pipeline_bench.options, enroot_files=True)
    pipeline_bench.config = ImageConfig(diff_ids=CONFIG.diff_ids)
    assert (await built_files(pipeline_bench))["usr/etc/environment"] == b"OLD=1\n"


@pytest_twisted.ensureDeferred
async def test_settings_that_no_metadata_can_hold(bench: Bench) -> None:
    """The files have the settings of the image, also those that its record has to leave out."""
    bench.source.config = replace(bench.source.config, cmd=("echo", "it's"))
    for name, target in bench.targets.items():
        bench.targets[name] = replace(target, options=replace(target.options, enroot_files=True))
    record = await bench.pull()
    layer = enroot_layer(bench.source.config)
    assert layer is not None
    assert Digest.of(layer) in bench.cache.downloads
    assert record.cmd is None
