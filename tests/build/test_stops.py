"""A stop is heard within a second in each stage of packing and composing, however large its input.

Each stage runs with a flag that measures the processor time between two checks of it, without the
collections of garbage of the tests' own objects. With `SHIFTERGW_LONG=1` there are a million
entries in one directory.
"""

from __future__ import annotations

import gc
import gzip
import io
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import zstandard

from shiftergw.build.check import difference
from shiftergw.build.compose import compose
from shiftergw.build.pack_archive import PackArchive
from shiftergw.build.pack_feed import PackFeed
from shiftergw.build.pack_files import Pack, PackFiles, find_pack
from shiftergw.build.pack_options import pack_arguments
from shiftergw.build.written_pack import install_pack, read_written_pack
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import Digest
from shiftergw.oci.budget import Budget
from shiftergw.oci.compression import StopRequested, opening_of
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.oci.header import END, header
from shiftergw.oci.stored_index import decode_index, encode_index
from shiftergw.oci.tar import HARDLINK, Entry, LayerIndex, index_layer
from shiftergw.oci.tree import REGULAR
from tests.matrices import LONG
from tests.oci.test_sparse import pax
from tests.parts import need

COUNT = 1_000_000 if LONG else 12_000
"""Entries of the layer."""

LONGEST_SECONDS = 1.0 if LONG else 0.25
"""Processor time between two checks of the flag."""

TRIES = 3
"""Other work on the machine makes single runs slower; a missing check makes all of them slow."""

OPTIONS = SquashOptions("zstd", 1, memory="64M", processors=1)
DIGEST = Digest.of(b"layer")
PIECES = 2000


class MeasuringStop(Event):
    """A flag that measures the processor time of its own thread between two checks of it.

    It sets itself at the check with the number `last`, if that is not 0.
    """

    def __init__(self, last: int = 0) -> None:
        """Begin to measure."""
        super().__init__()
        self.checks = 0
        self.longest = 0.0
        self._last = last
        self._thread = threading.get_ident()
        self._time = time.thread_time()

    def is_set(self) -> bool:
        """Measure, and return whether the flag is set."""
        self.measure()
        self.checks += 1
        if self.checks == self._last:
            self.set()
        return super().is_set()

    def measure(self) -> None:
        """Measure the time since the last check."""
        if threading.get_ident() != self._thread:
            return
        now = time.thread_time()
        self.longest = max(self.longest, now - self._time)
        self._time = now


class LargeLayer:
    """A layer of many small files in one directory, its pack, and an image of it."""

    def __init__(self, directory: Path) -> None:
        """Make everything below a directory."""
        self.directory = directory
        self.tar = directory / "layer"
        with self.tar.open("wb") as file:
            for number in range(COUNT):
                file.write(header(b"d/f%09d" % number, 0o644, 0, b"0", 8))
                file.write(b"%08d" % number + bytes(504))
            file.write(END)
        self.files = PackFiles(directory, DIGEST, "0" * 12)
        argv = [need("mksquashfs"), *pack_arguments(OPTIONS, self.files.part)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as program:
            assert program.stdin is not None
            self.index, self.digests = self.feed(self.tar, Event(), program.stdin.fileno())
        self.part = self.files.part.read_bytes()
        self.install(Event())
        self.index_bytes = encode_index(self.index, Event())
        self.pack = self.find(Event())
        self.image = directory / "image"
        self.plan = self.flatten([self.pack.index.entries], Event())
        self.compose(Event())
        argv = [need("unsquashfs"), "-lln", "-UTC", str(self.image)]
        env = {**os.environ, "LC_ALL": "C"}
        self.listing = subprocess.run(argv, stdout=subprocess.PIPE, env=env, check=True).stdout

    def feed(self, blob: Path, stop: Event, pipe: int) -> tuple[LayerIndex, list[bytes]]:
        """Index a layer, and write the contents of its files into a pipe."""
        archive = PackArchive(pipe, stop)
        feed = PackFeed(archive, OPTIONS.block_bytes)
        cost = Budget(BuildLimits()).layer()
        index = index_layer(opening_of(blob), None, cost, stop, None, feed.read_file)
        archive.finish()
        return index, feed.digests

    def feed_bytes(self, blob: bytes, stop: Event) -> None:
        """Index these bytes as a layer."""
        path = self.directory / "blob"
        path.write_bytes(blob)
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - no file
            self.feed(path, stop, null.fileno())

    def install(self, stop: Event) -> None:
        """Put the pack in its place."""
        self.files.part.write_bytes(self.part)
        install_pack(read_written_pack(self.files, self.index, self.digests, stop), stop)

    def find(self, stop: Event) -> Pack:
        """Find the pack."""
        pack = find_pack(self.files, stop)
        assert pack is not None
        return pack

    def flatten(self, layers: list[list[Entry]], stop: Event) -> Plan:
        """Plan the image of layers with these entries."""
        indexes = [LayerIndex(list(entries), DIGEST) for entries in layers]
        if isinstance(stop, MeasuringStop):
            stop.measure()
            stop.longest = 0.0  # the copies are the test's
        return flatten(indexes, Budget(BuildLimits(), stop), keep_setuid=False)

    def compose(self, stop: Event) -> None:
        """Compose the image."""
        report: Any = lambda *_: None  # noqa: E731 - a function of any arguments
        compose(self.plan, [self.pack], OPTIONS, 1, self.image, stop, report)

    def links_and_whiteouts(self) -> list[Entry]:
        """Return a link to each file of the layer below, and a whiteout of the file."""
        links = [
            entry_of(HARDLINK, b"h%09d" % number, b"d/f%09d" % number) for number in range(COUNT)
        ]
        return links + [entry_of(REGULAR, b".wh.f%09d" % number) for number in range(COUNT)]


def entry_of(kind: int, name: bytes, target: bytes = b"") -> Entry:
    """Return an entry of the directory of all files."""
    return Entry(kind, b"d", name, 0o644, 1, 0, target, 0, None, xattrs=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LargeLayer:
    """Return the layer."""
    return LargeLayer(tmp_path_factory.mktemp("large"))


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Collect no garbage meanwhile: the tests have many more objects than the stage."""
    gc.disable()
    yield
    gc.enable()


def bomb() -> bytes:
    """Return a gzip file of a tar with a file of 64 MB of zeros."""
    size = 64 << 20
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(header(b"zeros", 0o644, 0, b"0", size))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(END)
    return out.getvalue()


def sparse() -> bytes:
    """Return a tar with a sparse file of many pieces."""
    pairs = b",".join(b"%d,1" % (number << 17) for number in range(PIECES))
    return pax({b"size": b"%d" % (PIECES << 17), b"map": pairs}, bytes(PIECES))


def empty_frames() -> bytes:
    """Return a zstd file of many frames without content."""
    compressor = zstandard.ZstdCompressor()
    return compressor.compress(b"") * COUNT + compressor.compress(END)


def opaque(large: LargeLayer) -> list[Entry]:
    """Return a layer that replaces all files of the layer below."""
    return [entry_of(REGULAR, b".wh..wh..opq"), *large.pack.index.entries]


STAGES: dict[str, tuple[Callable[[LargeLayer], Any], Callable[[LargeLayer, Any, Event], object]]]
STAGES = {
    "feed": (lambda large: large.tar.read_bytes(), LargeLayer.feed_bytes),
    "bomb": (lambda _: bomb(), LargeLayer.feed_bytes),
    "gzip members": (
        lambda _: gzip.compress(b"") * COUNT + gzip.compress(END),
        LargeLayer.feed_bytes,
    ),
    "zstd frames": (lambda _: empty_frames(), LargeLayer.feed_bytes),
    "sparse": (lambda _: sparse(), LargeLayer.feed_bytes),
    "encode": (lambda _: None, lambda large, _, stop: encode_index(large.index, stop)),
    "decode": (
        lambda _: None,
        lambda large, _, stop: decode_index(large.index_bytes, DIGEST, stop),
    ),
    "install": (lambda _: None, lambda large, _, stop: large.install(stop)),
    "find": (lambda _: None, lambda large, _, stop: large.find(stop)),
    "plan": (
        lambda large: [large.pack.index.entries, large.links_and_whiteouts()],
        LargeLayer.flatten,
    ),
    "plan of an opaque directory": (
        lambda large: [large.pack.index.entries, opaque(large)],
        LargeLayer.flatten,
    ),
    "compose": (lambda _: None, lambda large, _, stop: large.compose(stop)),
    "check": (
        lambda large: io.BytesIO(large.listing),
        lambda large, listing, stop: difference(listing, large.plan.root, stop),
    ),
}
"""For each stage, what makes its input, and what runs it."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("no_collections")
def test_a_stop_is_heard_in_each_stage(large: LargeLayer, stage: str) -> None:
    """The flag is checked at least every second, and ends the stage at whatever check it is set."""
    prepare, run = STAGES[stage]
    for _ in range(TRIES):
        stop = MeasuringStop()
        data = prepare(large)
        stop.measure()
        stop.longest = 0.0
        run(large, data, stop)
        stop.measure()
        if stop.longest < LONGEST_SECONDS:
            break
    else:
        pytest.fail(f"{stop.longest:.3f} s between two checks")
    assert stop.checks > 3
    for last in {2, stop.checks // 2, stop.checks - 1}:
        ending = MeasuringStop(last)
        data = prepare(large)
        with pytest.raises(StopRequested):
            run(large, data, ending)
        assert ending.checks < last + 3
