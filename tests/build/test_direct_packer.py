"""Packs of our own: their bytes, their limits, and what takes them."""

from __future__ import annotations

import os
import random
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.build import block_compressor
from shiftergw.build.direct_packer import library_digest, threads_and_window
from shiftergw.build.pack_files import Pack
from shiftergw.errors import ConversionFailed, SquashfsUnsupported
from shiftergw.model.build_options import SquashOptions
from shiftergw.plumbing.threads import Threads
from shiftergw.squashfs.compressors import Compression, Compressor
from shiftergw.squashfs.direct_compressors import compressing_library, direct_compressor
from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK
from shiftergw.squashfs.tables import integers
from tests.build.packing import PackSite, files_of, stored_contents
from tests.build.parts import content_of, listing_of, mount
from tests.build.site import Site
from tests.images import entry, tar_of
from tests.parts import lacking, need_module, need_root
from tests.squashfs.parts import read_file
from tests.work.waiting import until

BLOCK = 1 << 17
NOISE = random.Random(3).randbytes(4 * BLOCK)
TEXT = b"".join(b"line %d of a text\n" % number for number in range(40_000))
FILES = {
    "a text": TEXT,
    "b tiny": b"x",
    "c noise": NOISE[: 2 * BLOCK + 5],
    "d hole": bytes(3 * BLOCK) + b"end",
    "e zeros": bytes(2 * BLOCK),
    "f hole between": NOISE[:BLOCK] + bytes(BLOCK) + NOISE[BLOCK : 2 * BLOCK],
    "g large": TEXT * 2,
    **{f"h{number:04}": b"%d" % number * 40 for number in range(600)},
}
COMPRESSIONS = [("gzip", 5, "128K"), ("zstd", 3, "128K"), ("zstd", 1, "1M"), ("gzip", 9, "4K")]


@pytest.fixture
def packs(tmp_path: Path, threads: Threads) -> PackSite:
    """Return our own packer."""
    return PackSite(tmp_path, threads, packer="direct")


async def pack_of(packs: PackSite, tar: bytes, **options: Any) -> Pack:
    """Return the pack of a layer; skip the test if the library of gzip is not installed."""
    if options.get("compressor") == "gzip":
        need_module("deflate")
    return await packs.pack(packs.layer(tar), **options)


@pytest.mark.parametrize(("compressor", "level", "block_size"), COMPRESSIONS)
@pytest_twisted.ensureDeferred
async def test_other_programs_and_the_kernel_read_the_pack(
    tmp_path: Path, packs: PackSite, compressor: str, level: int, block_size: str
) -> None:
    """Holes, tiny files, noise, and blocks of every size are what they were."""
    members = {"compressor": compressor, "level": level, "block_size": block_size}
    pack = await pack_of(packs, tar_of(FILES), memory="16M", **members)
    expected = {name.encode(): data for name, data in FILES.items()}
    assert files_of(pack, SquashOptions(block_size=block_size).block_bytes) == expected
    assert len(listing_of(pack.path)) == 1 + 2 + len(FILES)
    assert sum(1 for _ in read_file(pack.path).entries()) == 1 + 2 + len(FILES)
    need_root()
    point = tmp_path / "mount"
    point.mkdir()
    with mount("-o", "loop,ro", str(pack.path), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        files = sorted(path for path in point.rglob("*") if path.is_file())
        assert [path.read_bytes() for path in files] == stored_contents(pack)


@pytest_twisted.ensureDeferred
async def test_what_does_not_compress_is_stored(packs: PackSite) -> None:
    """Noise takes no more bytes than it has, and zeros none at all."""
    contents = {"noise": NOISE[:BLOCK], "small": NOISE[BLOCK : BLOCK + 500], "zeros": bytes(BLOCK)}
    pack = await pack_of(packs, tar_of(contents))
    noise, small, zeros = [data for data, _ in read_file(pack.path).file_data()]
    assert list(integers("I", noise.blocks)) == [BLOCK | STORED_BLOCK]
    assert (small.fragment, small.blocks) == (0, b"")
    assert (zeros.blocks, zeros.sparse, zeros.fragment) == (bytes(4), BLOCK - 1, NO_FRAGMENT)
    (fragment,) = read_file(pack.path).tables.fragments
    assert fragment.size == 500 | STORED_BLOCK


@pytest_twisted.ensureDeferred
async def test_the_threads_do_not_shape_the_bytes(tmp_path: Path, threads: Threads) -> None:
    """Whatever the threads and the memory, the pack is the same."""
    tar = tar_of(FILES)
    contents = set()
    for processors, memory in ((1, "1M"), (2, "1M"), (5, "64M")):
        directory = tmp_path / f"{processors}"
        directory.mkdir()
        site = PackSite(directory, threads, packer="direct")
        pack = await site.pack(site.layer(tar), processors=processors, memory=memory)
        contents.add(pack.path.read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"processors": 4}, (4, 64)),
        ({"processors": 400}, (400, 800)),
        ({"processors": 4, "block_size": "1M"}, (4, 8)),
        ({"processors": 4, "memory": "1M"}, (2, 4)),
        ({"processors": 4, "memory": "1M", "block_size": "1M"}, (1, 2)),
    ],
)
def test_threads_and_blocks_within_the_options(
    members: dict[str, Any], expected: tuple[int, int]
) -> None:
    """Processors limit the threads, and memory limits the blocks: each is there twice."""
    assert threads_and_window(SquashOptions(**members)) == expected


@pytest_twisted.ensureDeferred
async def test_a_reader_waits_for_the_compression(
    packs: PackSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer is read no faster than its blocks are compressed; a stop then ends all threads."""
    release = threading.Event()
    pending: list[int] = []

    class SlowCompressor(block_compressor.BlockCompressor):
        """Compresses when it may."""

        def add(self, content: bytes) -> None:
            super().add(content)
            pending.append(self._pending)

        def _compress(self, contents: list[bytes]) -> list[bytes]:
            release.wait()
            return contents

    monkeypatch.setattr("shiftergw.build.direct_packer.BlockCompressor", SlowCompressor)
    packing = Deferred.fromCoroutine(packs.pack(packs.layer(tar_of({"a": TEXT * 20}))))
    try:
        await until(lambda: len(pending) == 4)
        packing.cancel()
    finally:
        release.set()
    with pytest.raises(CancelledError):
        await packing
    assert max(pending) == 4
    assert packs.names == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("compress")]


@pytest_twisted.ensureDeferred
async def test_an_image_is_built_without_the_program_for_packs(
    tmp_path: Path, threads: Threads
) -> None:
    """`mksquashfs` is not run, and the image has the files of its layers."""
    site = Site(tmp_path, threads, "no-program", builder="packs")
    layers = [site.layer([entry("a", TEXT)]), site.layer([entry("b", NOISE)])]
    async with site.build(layers, compressor="zstd", packer="direct") as image:
        contents = content_of(image.path)
    assert {name: data for name, (_, _, data) in contents.items()} == {"a": TEXT, "b": NOISE}


@pytest.mark.parametrize("level", range(1, 10))
def test_gzip_is_no_larger_than_that_of_zlib(level: int) -> None:
    """At each level a library takes no more bytes than by zlib, and sources hardly more."""
    need_module("deflate")
    compress = direct_compressor(Compression(Compressor.GZIP, level), BLOCK)
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    sources = b"".join(path.read_bytes() for path in paths)
    library = compressing_library(Compressor.ZSTD)[1].read_bytes()
    for content, share in ((sources, 1.006), (library, 1.0)):
        blocks = [content[start : start + BLOCK] for start in range(0, 4 * BLOCK, BLOCK)]
        size = sum(len(compress(block)) for block in blocks)
        assert size <= share * sum(len(zlib.compress(block, level)) for block in blocks)
    assert zlib.decompress(compress(blocks[0])) == blocks[0]


def test_the_library_is_in_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other bytes of the library, another version, and another compressor give another key."""
    need_module("deflate")
    library = tmp_path / "library"
    digests = {library_digest(SquashOptions("zstd")), library_digest(SquashOptions("gzip"))}
    for version, content in (("1", b"1"), ("1", b"2"), ("2", b"2")):
        library.write_bytes(content)
        name = "shiftergw.build.direct_packer.compressing_library"
        monkeypatch.setattr(name, lambda _, version=version: (version, library))
        digests.add(library_digest(SquashOptions("zstd")))
    assert len(digests) == 5
    library.unlink()
    with pytest.raises(ConversionFailed, match="cannot read the library"):
        library_digest(SquashOptions("zstd"))


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package that the site has to install."""
    monkeypatch.setitem(sys.modules, "deflate", None)
    with pytest.raises(ConversionFailed, match="not installed") as caught:
        library_digest(SquashOptions("gzip"))
    assert "shiftergw[direct]" in caught.value.remedy


def test_compressors_of_mksquashfs_alone() -> None:
    """There is no library for xz, and libdeflate has one window."""
    with pytest.raises(SquashfsUnsupported, match="by mksquashfs alone"):
        compressing_library(Compressor.XZ)
    need_module("deflate")
    with pytest.raises(SquashfsUnsupported, match="window"):
        direct_compressor(Compression(Compressor.GZIP, 5, window=9), BLOCK)
