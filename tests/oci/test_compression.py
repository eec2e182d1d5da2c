"""Blobs of every compression, complete and damaged."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
import zstandard

from shiftergw.errors import LayerInvalid
from shiftergw.oci import compression
from shiftergw.oci.compression import (
    LargeWindow,
    StopRequested,
    WindowRefused,
    decompress,
    opening_of,
)

PLAIN = b"".join(b"line %d\n" % n for n in range(200_000))
HALF = len(PLAIN) // 2
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (10).to_bytes(4, "little") + b"0123456789"


def zstd(data: bytes, checksum: bool = False) -> bytes:
    """Return one zstd frame."""
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


def zstd_of_unknown_size(data: bytes) -> bytes:
    """Return one zstd frame without a content size but with a window descriptor, as in streams."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        writer.write(data)
    return out.getvalue()


def read(tmp_path: Path, blob: bytes) -> bytes:
    """Return the uncompressed bytes of a blob."""
    path = tmp_path / "blob"
    path.write_bytes(blob)
    return b"".join(decompress(opening_of(path), Event()))


WHOLE: dict[str, Callable[[], bytes]] = {
    "plain": lambda: PLAIN,
    "gzip": lambda: gzip.compress(PLAIN),
    "gzip, two members": lambda: gzip.compress(PLAIN[:HALF]) + gzip.compress(PLAIN[HALF:]),
    "gzip, trailing zeros": lambda: gzip.compress(PLAIN) + bytes(1000),
    "gzip, an empty member": lambda: gzip.compress(b"") + gzip.compress(PLAIN),
    "zstd": lambda: zstd(PLAIN),
    "zstd with a checksum": lambda: zstd(PLAIN, checksum=True),
    "zstd, unknown size": lambda: zstd_of_unknown_size(PLAIN),
    "zstd, two frames": lambda: zstd(PLAIN[:HALF]) + zstd_of_unknown_size(PLAIN[HALF:]),
    "zstd, an empty frame": lambda: zstd(b"") + zstd(PLAIN),
    "zstd:chunked": lambda: zstd(PLAIN[:HALF]) + SKIPPABLE + zstd(PLAIN[HALF:]) + SKIPPABLE,
    "zstd, skippable first": lambda: SKIPPABLE + zstd(PLAIN),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_complete_blobs_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    """The whole content is read for any compression and any number of parts."""
    assert read(tmp_path, WHOLE[kind]()) == PLAIN


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind != "plain"])
def test_truncated_blobs_are_rejected(tmp_path: Path, kind: str) -> None:
    """A compressed blob that ends too early is an error, wherever it ends."""
    blob = WHOLE[kind]()
    boundaries = {
        blob.find(magic, 1) for magic in (gzip.compress(b"")[:4], zstd(b"")[:4], SKIPPABLE)
    }
    zeros = {len(blob) - n for n in range(1, 1000)} if "zeros" in kind else set()
    cuts = {1 << n for n in range(2, 20)} | {len(blob) - n for n in (1, 2, 3, 4, 5, 9, 17)}
    for cut in sorted(c for c in cuts - boundaries - zeros if 4 <= c < len(blob)):
        with pytest.raises(LayerInvalid, match=r"too early|damaged"):
            read(tmp_path, blob[:cut])


@pytest.mark.parametrize("garbage", [b"x", b"xy", b"garbage after the end", bytes(1) + b"x"])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_garbage_after_the_end_is_rejected(tmp_path: Path, kind: str, garbage: bytes) -> None:
    """Bytes after the last part that do not form a part are an error."""
    with pytest.raises(LayerInvalid):
        read(tmp_path, WHOLE[kind]() + garbage)


def test_a_gzip_header_without_end_is_rejected(tmp_path: Path) -> None:
    """A name or comment of half a megabyte is too long."""
    with pytest.raises(LayerInvalid, match="gzip"):
        read(tmp_path, b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 900_000)


@pytest.mark.parametrize("kind", ["gzip", "zstd with a checksum"])
def test_damage_is_rejected(tmp_path: Path, kind: str) -> None:
    """A changed byte in the middle is an error that names the compression."""
    blob = bytearray(WHOLE[kind]())
    blob[len(blob) // 2] ^= 0xFF
    with pytest.raises(LayerInvalid, match=kind[:4]) as caught:
        read(tmp_path, bytes(blob))
    assert caught.value.detail


def test_a_block_of_one_repeated_byte_is_one_byte_long(tmp_path: Path) -> None:
    """Blocks of a repeated byte, which zstd stores as one byte, are skipped correctly."""
    assert read(tmp_path, zstd(bytes(10_000_000))) == bytes(10_000_000)


def test_an_empty_blob_is_empty(tmp_path: Path) -> None:
    """An empty blob has no content."""
    assert read(tmp_path, b"") == b""


def test_the_flag_stops_the_reading(tmp_path: Path) -> None:
    """After the stop flag is set, no further piece is returned."""
    path = tmp_path / "blob"
    path.write_bytes(WHOLE["gzip"]())
    stop = Event()
    pieces = decompress(opening_of(path), stop)
    assert PLAIN.startswith(next(pieces))
    stop.set()
    with pytest.raises(StopRequested):
        next(pieces)


def test_progress_is_in_compressed_bytes(tmp_path: Path) -> None:
    """The reported number rises to the size of the blob on disk."""
    path = tmp_path / "blob"
    path.write_bytes(WHOLE["zstd"]())
    positions: list[int] = []
    for _ in decompress(opening_of(path), Event(), positions.append):
        pass
    assert positions == sorted(positions)
    assert positions[-1] == path.stat().st_size


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_the_last_reading_frees_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Behind the reader, and at the end all of it; another reading leaves it for the next one."""
    ranges: list[tuple[int, int]] = []

    def record(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == path
        ranges.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", record)
    monkeypatch.setattr(compression, "_DROP_SIZE", 10_000)
    path = tmp_path / "blob"
    path.write_bytes(WHOLE[kind]())
    opening = opening_of(path)
    assert b"".join(decompress(opening, Event(), is_last_reading=True)) == PLAIN
    assert ranges[-1] == (0, path.stat().st_size)
    assert len(ranges) > 1
    ranges.clear()
    assert b"".join(decompress(opening, Event())) == PLAIN
    assert ranges == []


def test_the_last_reading_of_what_is_not_a_file() -> None:
    """Bytes in memory have no page cache."""
    blob = WHOLE["gzip"]()
    pieces = decompress(lambda _: io.BytesIO(blob), Event(), is_last_reading=True)
    assert b"".join(pieces) == PLAIN


def long_window(data: bytes, window_log: int) -> bytes:
    """Return one zstd frame with a window of 2**bits bytes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def test_windows_have_a_limit(tmp_path: Path) -> None:
    """The limit is that of `zstd`; beyond it, the error explains how to push the image."""
    assert read(tmp_path, long_window(PLAIN, 27)) == PLAIN
    with pytest.raises(LayerInvalid, match=r"a window of 1 GB; at most 128 MB is") as caught:
        read(tmp_path, long_window(PLAIN, 30))
    assert "`--long=27`" in caught.value.remedy
    with pytest.raises(LayerInvalid, match=r"a window of 256 MB"):
        read(tmp_path, zstd(PLAIN) + long_window(PLAIN, 28))


def single_segment(data: bytes) -> bytes:
    """Return one zstd frame whose window is its content, padded with zeros to 16 MiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(
        data.ljust(1 << 24, b"\0")
    )
    assert frame[4] & 0x20
    return frame


def test_a_single_segment_has_the_same_limit(tmp_path: Path) -> None:
    """The frame names no window, but the error is that about large windows."""
    frame = bytes.fromhex("28b52ffd a0 00000010")  # 256 MiB
    with pytest.raises(LayerInvalid, match="a window of 256 MB"):
        read(tmp_path, frame)


def test_a_window_that_the_caller_refuses(tmp_path: Path) -> None:
    """A reader that must not wait for memory reads blobs with small windows only."""
    path = tmp_path / "blob"
    for window_log, is_refused in ((23, False), (24, True)):
        path.write_bytes(long_window(PLAIN, window_log))
        pieces = decompress(opening_of(path), Event(), large_window=LargeWindow.REFUSE)
        if is_refused:
            with pytest.raises(WindowRefused):
                next(pieces)
        else:
            assert b"".join(pieces) == PLAIN


def test_a_window_that_the_caller_holds(tmp_path: Path) -> None:
    """A reader with `LargeWindow.OWN` takes none of `LARGE_WINDOWS` itself."""
    path = tmp_path / "blob"
    path.write_bytes(long_window(PLAIN, 27))
    with compression.LARGE_WINDOWS, compression.LARGE_WINDOWS:
        pieces = decompress(opening_of(path), Event(), large_window=LargeWindow.OWN)
        assert b"".join(pieces) == PLAIN


@pytest.mark.parametrize("kind", ["window", "single segment"])
def test_few_large_windows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A stream with a large window waits for another one to end, and checks its flag meanwhile."""
    path = tmp_path / "blob"
    path.write_bytes(long_window(PLAIN, 27) if kind == "window" else single_segment(PLAIN))
    other_blobs = [decompress(opening_of(path), Event()) for _ in range(2)]
    for pieces in other_blobs:
        next(pieces)
    refusal, stop = Event(), Event()
    acquire = compression.LARGE_WINDOWS.acquire
    ends: list[str] = []

    def acquire_or_refuse(timeout: float) -> bool:
        is_acquired = acquire(timeout=timeout)
        if not is_acquired:
            refusal.set()
        return is_acquired

    def wait() -> None:
        try:
            next(decompress(opening_of(path), stop))
        except StopRequested:
            ends.append("stopped")
        ends.append("ended")
        refusal.set()

    monkeypatch.setattr(compression.LARGE_WINDOWS, "acquire", acquire_or_refuse)
    waiting = Thread(target=wait)
    waiting.start()
    refusal.wait()
    assert not ends
    stop.set()
    waiting.join()
    assert ends == ["stopped", "ended"]
    other_blobs[0].close()
    assert b"".join(decompress(opening_of(path), Event())).startswith(PLAIN)
    other_blobs[1].close()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bytes_after_the_end_are_named(tmp_path: Path, kind: str) -> None:
    """The error is not that about a truncated blob."""
    for suffix in (b"x", b"not gzip at all", bytes(100) + b"x"):
        with pytest.raises(LayerInvalid, match=f"{kind} data has bytes after its end"):
            read(tmp_path, WHOLE[kind]() + suffix)
