"""What each builder promises: one file of the layers, built once, checked, and shared."""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from shiftergw.build import image_build
from shiftergw.build.builder import SquashBuilder
from shiftergw.build.converted import ConvertedFiles
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    ImageTooLarge,
    LayerInvalid,
    NoSpace,
    RetryLater,
)
from shiftergw.model.build_options import BuilderName, BuildLimits, StageLimits
from shiftergw.model.images import Digest, LayerFile
from shiftergw.plumbing.locks import file_lock
from shiftergw.plumbing.threads import Threads
from tests import images
from tests.build.parts import content_of, converter, mount, open_descriptors, running_in
from tests.build.site import ID, OTHER_ID, REAL, TREE, Site, with_each_packer
from tests.parts import lacking, need, small_disk
from tests.work.waiting import until

real: Any = reactor


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_layers_become_one_file(site: Site) -> None:
    """The file has the merged tree with its data; beside it is its sidecar only; both private."""
    async with site.build(site.two) as image:
        content = content_of(image.path)
        data = image.path.read_bytes()
        mode = image.path.stat().st_mode & 0o777
    assert content["usr/bin/tool"] == (tarfile.REGTYPE, 0o755, b"#!tool")
    assert content["usr/bin/through"] == (tarfile.REGTYPE, 0o644, b"4")
    assert content["closed"][1:] == (0o644, b"5")
    assert content["new\nline"][2] == b"1"
    assert content["a -> b"][2] == b"2"
    assert content["\udcff\udc80"][2] == b"3"
    assert content["bin"][2] == "usr/bin"
    assert len(content["data"][2]) == 500_000
    assert "gone" not in content
    assert (image.size, image.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert mode == 0o600
    base = image.path.stem
    assert base.startswith(ID + "-")
    assert site.names == [f"{base}.json", f"{base}.squashfs"]
    assert site.directory.stat().st_mode & 0o777 == 0o700


@pytest_twisted.ensureDeferred
async def test_what_is_told_on_the_way(site: Site, builder: BuilderName) -> None:
    """States in order, progress in bytes of each step up to its end, seconds of each stage."""
    layers = site.two
    image = await site.build_image(layers)
    assert site.states == [site.converter.READING, site.converter.WRITING, "CHECK"]
    stages = {progress.stage: progress for progress in site.progress}
    layers_size = sum(layer.path.stat().st_size for layer in layers)
    read_stage, write_stage = site.converter.read_stage, site.converter.write_stage
    assert (stages[read_stage].done, stages[read_stage].total) == (layers_size, layers_size)
    writing = stages[write_stage]
    data_size = image.report.size if builder == "whole" else writing.total
    assert 0 < writing.done == writing.total == data_size <= image.report.size
    assert set(image.seconds) == site.stages
    assert image.report.modes >= 1


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_a_built_file_is_used_again(site: Site) -> None:
    """A second build of an image finds the file, verifies it, and returns the same report."""
    layers = site.two
    options = site.options()
    assert not await site.builder.has(ID, options)
    first = await site.build_image(layers)
    assert await site.builder.has(ID, options)
    assert not await site.builder.has(ID, replace(options, level=2))
    inode = first.path.stat().st_ino
    site.states.clear()
    second = await site.build_image(layers)
    assert (second.path, second.size, second.sha256) == (first.path, first.size, first.sha256)
    assert second.report == first.report
    assert second.path.stat().st_ino == inode
    assert set(second.seconds) == {"verify"}
    assert site.states == ["VERIFICATION"]


@pytest_twisted.ensureDeferred
async def test_options_have_files_of_their_own(site: Site) -> None:
    """Options that change the bytes have files of their own; other options share one."""
    layers = site.two
    gzip = await site.build_image(layers)
    zstd = await site.build_image(layers, compressor="zstd", level=3)
    assert gzip.path != zstd.path
    assert content_of(gzip.path) == content_of(zstd.path)
    reuse = await site.build_image(layers, processors=1, memory="128M")
    assert reuse.path == gzip.path
    assert set(reuse.seconds) == {"verify"}


@pytest_twisted.ensureDeferred
async def test_the_same_image_gives_the_same_bytes(
    site: Site, builder: BuilderName, tmp_path: Path
) -> None:
    """The bytes do not depend on machine, time and number of processors."""
    layers = site.two
    first = await site.build_image(layers)
    (tmp_path / "other").mkdir()
    await deferLater(real, 1.1)
    second_site = Site(tmp_path / "other", site.builder._threads, builder=builder)
    second = await second_site.build_image(layers, processors=1)
    assert second.sha256 == first.sha256
    assert second.path != first.path


@pytest_twisted.ensureDeferred
async def test_a_long_conversion_elsewhere_holds_no_worker(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that waits too long for the same conversion is postponed."""
    monkeypatch.setattr(image_build, "PATIENCE", 0.3)
    files = ConvertedFiles(site.directory, ID, site.options().key)
    await site.build_image(site.two)
    async with file_lock(files.lock, site.builder._threads, real):
        with pytest.raises(RetryLater) as caught:
            await site.build_image(site.two)
    assert caught.value.why == "the same conversion for another pull"
    assert isinstance(caught.value.failure, ConversionFailed)
    assert caught.value.limit == 2 * BuildLimits().stages.conversion  # for its slot, and its work
    await site.build_image(site.two)


@pytest_twisted.ensureDeferred
async def test_many_askers_build_once(site: Site) -> None:
    """Concurrent builds of an image wait for the first one, and all get its file."""
    layers = site.two
    running = [Deferred.fromCoroutine(site.build_image(layers)) for _ in range(4)]
    results = await gatherResults(running)
    assert len({image.sha256 for image in results}) == 1
    assert sorted(set(image.seconds) == {"verify"} for image in results) == [
        False,
        True,
        True,
        True,
    ]
    waits = {"WAITING", "VERIFICATION"}
    working_states = [state for state in site.states if state not in waits]
    assert working_states == [site.converter.READING, site.converter.WRITING, "CHECK"]
    assert [site.states.count(state) for state in sorted(waits)] == [3, 3]


@pytest_twisted.ensureDeferred
async def test_a_waiting_asker_takes_over(
    tmp_path: Path, threads: Threads, builder: BuilderName
) -> None:
    """When the first build is cancelled, the next one takes over."""
    (tmp_path / "bin").mkdir()
    mark = tmp_path / "once"
    hang_once = f"mkdir {mark} 2>/dev/null && while :; do sleep 0.1; done"
    binary = converter(tmp_path / "bin" / "mksquashfs", f'{REAL}; {hang_once}; exec "$real" "$@"')
    site = Site(tmp_path, threads, binary, builder)
    layers = site.two
    first = Deferred.fromCoroutine(site.build_image(layers))
    while not mark.exists():
        await deferLater(real, 0.01)
    second = Deferred.fromCoroutine(site.build_image(layers))
    await deferLater(real, 0.05)
    first.cancel()
    with pytest.raises(CancelledError):
        await first
    assert set((await second).seconds) == site.stages


@pytest_twisted.ensureDeferred
async def test_an_image_id_is_never_a_path(site: Site) -> None:
    """A text other than 64 hexadecimal digits makes no file name."""
    for bad in ("", "../x", "a" * 63, "A" * 64, "a" * 64 + "\n"):
        with pytest.raises(ValueError, match="names no converted file"):
            await site.build_image([], image_id=bad)
    assert not site.directory.exists()


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_an_image_without_layers(site: Site) -> None:
    """No layer, or an empty one, is an empty file system."""
    assert content_of((await site.build_image([])).path) == {}
    empty = await site.build_image([site.layer([])], image_id=OTHER_ID)
    assert content_of(empty.path) == {}


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_a_bad_layer_stops_everything(site: Site) -> None:
    """A layer that is no archive, or not the one promised, fails and leaves nothing."""
    good, bad = site.layer(TREE), site.layer([images.entry("x", b"x")])
    bad.path.write_bytes(b"no archive at all" * 100)
    with pytest.raises(LayerInvalid):
        await site.build_image([good, bad])
    with pytest.raises(BlobCorrupt):
        await site.build_image([LayerFile(good.path, Digest.of(b"other"))])
    await until(lambda: site.names == [])  # a lock that came too late goes in a thread


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_a_layer_that_vanished(site: Site, tmp_path: Path) -> None:
    """A missing file of a layer raises `BlobCorrupt`, so that the pull fetches it again."""
    with pytest.raises(BlobCorrupt) as caught:
        await site.build_image([LayerFile(tmp_path / "none")])
    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in caught.value.detail


@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.3])
@pytest_twisted.ensureDeferred
async def test_cancelling_leaves_nothing(
    tmp_path: Path, threads: Threads, builder: BuilderName, after: float
) -> None:
    """A build that is cancelled leaves no process, file, lock or descriptor behind."""
    await threads.run(int)
    descriptors = open_descriptors()
    site = Site(tmp_path, threads, builder=builder)
    noise = [images.entry(f"noise-{n}", os.urandom(3_000_000)) for n in range(4)]
    layers = [site.layer(noise, "plain")]
    running = Deferred.fromCoroutine(site.build_image(layers, compressor="xz", level=None))
    await deferLater(real, after)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert running_in(tmp_path) == []
    # A lock that a thread takes after the cancellation is released in a thread, too.
    await until(lambda: not site.directory.exists() or site.names == [])
    await until(lambda: site.pack_suffixes == [])
    await until(lambda: open_descriptors() == descriptors)


@pytest_twisted.ensureDeferred
async def test_cancelling_a_hung_conversion(
    tmp_path: Path, threads: Threads, builder: BuilderName
) -> None:
    """A `mksquashfs` that does nothing does not hold a cancelled build."""
    (tmp_path / "bin").mkdir()
    mark = tmp_path / "started"
    text = f"touch {mark}; while :; do sleep 0.1; done"
    site = Site(tmp_path, threads, converter(tmp_path / "bin" / "mksquashfs", text), builder)
    running = Deferred.fromCoroutine(site.build_image(site.two))
    await until(mark.exists)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert running_in(tmp_path / "bin") == []
    assert (site.names, site.pack_suffixes) == ([], [])


@pytest_twisted.ensureDeferred
async def test_an_error_of_the_user_of_the_file_is_the_users(site: Site) -> None:
    """An error of the body of the context is raised unchanged; the file stays."""
    with pytest.raises(FileNotFoundError):
        async with site.build(site.two):
            raise FileNotFoundError
    assert len(site.names) == 2


@pytest_twisted.ensureDeferred
async def test_a_full_disk(tmp_path: Path, threads: Threads, builder: BuilderName) -> None:
    """A disk without space ends as `NoSpace`, from `mksquashfs` and from our own writing."""
    place = tmp_path / "small"
    with small_disk(place, "size=2m,nr_inodes=10"):
        site = Site(tmp_path, threads, builder=builder)
        site.builder = SquashBuilder(place, need("mksquashfs"), threads, threads, real, real)
        with pytest.raises(NoSpace):
            await site.build_image([site.layer([images.entry("noise", os.urandom(4_000_000))])])
        assert [path for path in place.rglob("*") if path.is_file()] == []
        for number in range(20):
            try:
                (place / f"{number}").touch()
            except OSError:
                break
        with pytest.raises(NoSpace):
            await site.build_image(site.two)


@pytest_twisted.ensureDeferred
async def test_what_surely_does_not_fit_is_refused(site: Site) -> None:
    """Layers of an exabyte are refused, small ones are not; nothing is written."""
    await site.builder.check_space(1000)
    with pytest.raises(NoSpace):
        await site.builder.check_space(1 << 60)


def zeros(size: int) -> bytes:
    """Return a zstd frame of a tar with one file of `size` zeros: a few bytes for each 128 KiB."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    head = info.tobuf(tarfile.GNU_FORMAT)
    piece = 1 << 17
    blocks = (piece << 3 | 2).to_bytes(3, "little") + b"\0"
    last = (1024 << 3 | 3).to_bytes(3, "little") + b"\0"
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 0x58) + (512 << 3).to_bytes(3, "little") + head
    return frame + blocks * (size // piece) + last


@pytest_twisted.ensureDeferred
async def test_the_reading_of_layers_has_a_limit_of_time(site: Site, tmp_path: Path) -> None:
    """Half a terabyte of zeros in 16 MB ends soon, and the error names the key."""
    path = tmp_path / "zeros"
    path.write_bytes(zeros(1 << 39))
    stages = StageLimits(examination=0.3, conversion=0.3)
    limits = BuildLimits(layers_size=1 << 50, stages=stages)
    start = time.process_time()
    with pytest.raises(
        ImageTooLarge, match=r"(Examin|Pack)ing .* longer than 0\.3 seconds"
    ) as caught:
        await site.build_image([LayerFile(path)], limits=limits)
    assert re.search("`StageLimits.(examination|conversion)`", caught.value.remedy)
    assert time.process_time() - start < 3


@pytest_twisted.ensureDeferred
async def test_a_conversion_has_a_limit_of_time(
    tmp_path: Path, threads: Threads, builder: BuilderName
) -> None:
    """A program that does not end is stopped, and leaves no file."""
    slow = converter(tmp_path / "mksquashfs", "cat >/dev/null; exec sleep 60")
    site = Site(tmp_path, threads, slow, builder)
    limits = BuildLimits(stages=StageLimits(conversion=0.3))
    with pytest.raises(ImageTooLarge, match=r"Converting|Packing") as caught:
        await site.build_image(site.two, limits=limits)
    assert "`StageLimits.conversion`" in caught.value.remedy
    assert (site.names, site.pack_suffixes) == ([], [])


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_removed_is_told(site: Site) -> None:
    """A sweep that cannot remove a file raises `ConversionFailed`."""
    site.directory.mkdir(exist_ok=True)
    site.directory.joinpath(f"{'0' * 64}-{'0' * 12}.squashfs").mkdir()
    with pytest.raises(ConversionFailed, match="could not read or write its own files"):
        await site.builder.sweep(math.inf)


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_the_kernel_reads_the_same(site: Site, tmp_path: Path) -> None:
    """Mounted, the file shows data, links, modes and owners as planned."""
    place = tmp_path / "mounted"
    place.mkdir()
    async with site.build(site.two) as image:
        with mount("-t", "squashfs", "-o", "loop,ro", str(image.path), str(place)) as done:
            if not done:
                lacking("only root may mount, where there are loop devices")
            tool, alias = place / "usr/bin/tool", place / "bin/alias"
            assert tool.read_bytes() == b"#!tool"
            assert tool.samefile(alias)
            assert tool.stat().st_nlink == 2
            assert tool.stat().st_mtime == 1_700_000_000
            assert (place / "data").read_bytes() == TREE[8][1]
            assert (place / "a -> b").read_bytes() == b"2"
            assert sorted(os.fsencode(path.name) for path in place.iterdir()) == [
                b"a -> b", b"bin", b"closed", b"data", b"new\nline", b"usr", b"\xff\x80",
            ]  # fmt: skip
            assert place.stat().st_mode & 0o777 == 0o755
            assert {path.lstat().st_uid for path in place.rglob("*")} == {0}


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_layers_lie_in_the_order_of_the_manifest(site: Site) -> None:
    """The file of the upper layer is visible, whichever layer is examined first."""
    small = site.layer([images.entry("name", b"small")])
    large = site.layer([images.entry("name", b"large"), images.entry("data", os.urandom(99_999))])
    for layers, content in (([small, large], b"large"), ([large, small], b"small")):
        async with site.build(layers, image_id=Digest.of(content).hex) as image:
            assert content_of(image.path)["name"][2] == content


@pytest_twisted.ensureDeferred
async def test_entries_of_all_layers_together_are_bounded(site: Site) -> None:
    """Layers that rewrite the same few paths again and again do not fill the memory."""
    layers = [
        site.layer([images.entry(f"{n}", b"%d" % number) for n in range(5)]) for number in range(4)
    ]
    with pytest.raises(ImageTooLarge, match="together"):
        async with site.build(layers, limits=BuildLimits(entries=5)):
            raise AssertionError
    async with site.build(layers[:3], limits=BuildLimits(entries=5)) as image:
        assert image.report.entries == 5
