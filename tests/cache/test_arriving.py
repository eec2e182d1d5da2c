"""Reading a blob during its download: proven bytes only, and no end before it is complete."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from threading import Event

import pytest

from shiftergw.cache.arriving import Arriving
from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import StopRequested, decompress
from tests.images import compress
from tests.patience import patient

CONTENT = os.urandom(400_000) + bytes(400_000)
STOP = Event()

Beside = Callable[[Callable[[], object]], Future[object]]
"""Runs a function in another thread."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with more bytes on the disk than are proven."""
    file = tmp_path / "blob"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def beside() -> Iterator[Beside]:
    """Give a function that runs functions in another thread."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit


def test_no_more_is_read_than_is_there(path: Path) -> None:
    """Bytes beyond the proven size, which may be of an earlier attempt, are not read."""
    arriving = Arriving(path)
    arriving.grow(10)
    with arriving.open(STOP) as reader:
        assert reader.read(4) == CONTENT[:4]
        buffer = bytearray(100)
        assert reader.readinto(buffer) == 6
        assert buffer == CONTENT[4:10] + bytes(94)
        arriving.grow(12)
        assert reader.read(100) == CONTENT[10:12]


def test_the_end_comes_with_the_whole(path: Path, beside: Beside) -> None:
    """A reader of all bytes gets the end only when they are proven."""
    arriving = Arriving(path)
    arriving.grow(len(CONTENT))
    with arriving.open(STOP) as reader:
        assert reader.read(len(CONTENT)) == CONTENT
        end = beside(lambda: reader.read(1))
        assert not end.done()
        arriving.complete(path)
        assert end.result(patient(5)) == b""
        assert reader.readinto(bytearray(1)) == 0
        reader.seek(7)
        assert reader.read(3) == CONTENT[7:10]


def test_a_reader_waits_for_bytes(path: Path, beside: Beside) -> None:
    """A waiting reader gets the bytes that arrive."""
    arriving = Arriving(path)
    with arriving.open(STOP) as reader:
        first = beside(lambda: reader.read(100))
        assert not first.done()
        arriving.grow(3)
        assert first.result(patient(5)) == CONTENT[:3]


def test_an_aborted_download_stays_aborted(path: Path, beside: Beside) -> None:
    """After `abort`, current and new readers fail, even if more bytes arrive."""
    arriving = Arriving(path)
    arriving.grow(5)
    with arriving.open(STOP) as reader:
        assert reader.read(5) == CONTENT[:5]
        waiting = beside(lambda: reader.read(1))
        arriving.abort()
        with pytest.raises(BlobCorrupt):
            waiting.result(patient(5))
        arriving.grow(len(CONTENT))
        arriving.complete(path)
        arriving.abort()  # its writer closes the file
        with pytest.raises(BlobCorrupt):
            reader.read(1)
    with arriving.open(STOP) as late_reader, pytest.raises(BlobCorrupt):
        late_reader.read(1)


def test_a_complete_download_cannot_be_aborted(path: Path) -> None:
    """The writer of a complete blob may close the file."""
    arriving = Arriving(path)
    arriving.grow(len(CONTENT))
    with arriving.open(STOP) as reader:
        arriving.complete(path)
        arriving.abort()
        assert reader.read(len(CONTENT)) == CONTENT
        assert reader.read(1) == b""


def test_a_file_that_is_cut_has_not_ended(path: Path) -> None:
    """The writer may begin anew between a reader's check and its read."""
    arriving = Arriving(path)
    arriving.grow(10)
    with arriving.open(STOP) as reader:
        path.write_bytes(b"")
        with pytest.raises(BlobCorrupt, match="began anew"):
            reader.read(4)
        with pytest.raises(BlobCorrupt, match="began anew"):
            reader.readinto(bytearray(4))


def test_a_complete_download_is_read_under_its_final_name(path: Path) -> None:
    """Its old name may be that of another download by then; without any file the reader fails."""
    arriving = Arriving(path)
    arriving.grow(len(CONTENT))
    whole = path.with_name("whole")
    path.rename(whole)
    path.write_bytes(b"another download")
    arriving.complete(whole)
    with arriving.open(STOP) as reader:
        assert reader.read(2 * len(CONTENT)) == CONTENT
    whole.unlink()
    with pytest.raises(BlobCorrupt, match="no longer in the cache"):
        arriving.open(STOP)


def test_a_download_that_gets_its_final_name(path: Path, beside: Beside) -> None:
    """A reader that comes between the rename and the end of the download waits for that end."""
    arriving = Arriving(path)
    arriving.grow(len(CONTENT))
    whole = path.with_name("whole")
    path.rename(whole)
    opening = beside(lambda: arriving.open(STOP))
    assert not opening.done()
    arriving.complete(whole)
    reader = opening.result()
    assert isinstance(reader, FileIO)
    with reader:
        assert reader.read(len(CONTENT)) == CONTENT


def test_a_download_that_fails_before_it_is_opened(path: Path, beside: Beside) -> None:
    """A reader that waits for the end of a download without a file hears of its failure."""
    arriving = Arriving(path)
    path.unlink()
    opening = beside(lambda: arriving.open(STOP))
    assert not opening.done()
    arriving.abort()
    with pytest.raises(BlobCorrupt, match="came to nothing"):
        opening.result()


def test_a_reader_is_stopped(path: Path, beside: Beside) -> None:
    """A waiting reader stops soon after its flag is set."""
    stop, arriving = Event(), Arriving(path)
    with arriving.open(stop) as reader:
        waiting = beside(lambda: reader.read(1))
        assert not waiting.done()
        stop.set()
        with pytest.raises(StopRequested):
            waiting.result(patient(5))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("step", [1, 3, 1000, 300_000])
def test_any_compression_is_unpacked_on_its_way(
    path: Path, beside: Beside, compression: str, step: int
) -> None:
    """Decompression yields the bytes of the whole file, in whatever pieces it arrives."""
    blob = compress(CONTENT, compression)
    path.write_bytes(blob)
    arriving = Arriving(path)
    reader = arriving.open(STOP)
    positions: list[int] = []
    unpacking = beside(lambda: b"".join(decompress(lambda _: reader, STOP, positions.append)))
    for size in (*range(step, min(len(blob), 20 * step), step), len(blob)):
        arriving.grow(size)
        while reader.tell() < size:
            time.sleep(0.001)
    assert not unpacking.done()
    arriving.complete(path)
    assert unpacking.result(patient(20)) == CONTENT
    assert positions[-1] == len(blob)
