"""Blocks that are compressed in threads: their order, and the end of the threads."""

from __future__ import annotations

import threading
from functools import partial

from shiftergw.build.block_compressor import BlockCompressor
from shiftergw.squashfs.compressors import Compress, Compression, data_compressor

BLOCK = 1 << 17


def test_a_stop_waits_for_no_block_that_is_not_begun() -> None:
    """Only the blocks that are being compressed at the moment are awaited."""
    beginnings = threading.Semaphore(0)
    release = threading.Event()
    compressions: list[bytes] = []

    class SlowCompressor(BlockCompressor):
        """Compresses when it may."""

        def _compress(self, content: bytes) -> bytes:
            beginnings.release()
            release.wait()
            compressions.append(content)
            return content

    with SlowCompressor(partial(data_compressor, Compression.unpack(6, b""), BLOCK), 2) as slow:
        for number in range(4):
            slow.add(b"%d" % number)
        assert slow.is_full
        beginnings.acquire()
        beginnings.acquire()
        threading.Timer(0.05, release.set).start()
    assert len(compressions) == 2


def test_blocks_come_back_in_their_order() -> None:
    """Whichever thread is first, each block is what the compressor makes of it."""
    compression = Compression.unpack(1, b"")
    compress: Compress = data_compressor(compression, BLOCK)
    blocks = [bytes([n]) * n * 1000 for n in range(1, 40)]
    results: list[tuple[bytes, bytes]] = []
    with BlockCompressor(partial(data_compressor, compression, BLOCK), 3) as compressor:
        for block in blocks:
            compressor.add(block)
            if compressor.is_full:
                results.append(compressor.next_block())
        while not compressor.is_empty:
            results.append(compressor.next_block())
    assert results == [(block, compress(block)) for block in blocks]
