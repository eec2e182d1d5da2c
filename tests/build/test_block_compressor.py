"""Blocks that are compressed in threads: their order, and the end of the threads."""

from __future__ import annotations

import threading
from functools import partial

from shiftergw.build.block_compressor import LARGEST_BATCH, BlockCompressor
from shiftergw.squashfs.compressors import (
    Compress,
    Compression,
    blocks_compressor,
    data_compressor,
)

BLOCK = 1 << 17


def test_a_stop_waits_for_no_block_that_is_not_begun() -> None:
    """Only the blocks that are being compressed at the moment are awaited."""
    beginnings = threading.Semaphore(0)
    release = threading.Event()
    compressions: list[bytes] = []

    class SlowCompressor(BlockCompressor):
        """Compresses when it may."""

        def _compress(self, contents: list[bytes]) -> list[bytes]:
            beginnings.release()
            release.wait()
            compressions.extend(contents)
            return contents

    with SlowCompressor(partial(blocks_compressor, Compression.unpack(6, b""), BLOCK), 2) as slow:
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
    with BlockCompressor(partial(blocks_compressor, compression, BLOCK), 3) as compressor:
        for block in blocks:
            compressor.add(block)
            if compressor.is_full:
                results += compressor.next_blocks()
        while not compressor.is_empty:
            results += compressor.next_blocks()
    assert results == [(block, compress(block)) for block in blocks]


def test_blocks_go_to_threads_in_batches() -> None:
    """A window of many blocks has larger batches; the last one goes when somebody waits for it."""
    sizes: list[int] = []

    def compress(blocks: list[bytes]) -> list[bytes]:
        sizes.append(len(blocks))
        return blocks

    with BlockCompressor(lambda: compress, 2, 3 * 4 * LARGEST_BATCH) as compressor:
        for number in range(2 * LARGEST_BATCH + 1):
            assert not compressor.is_full
            compressor.add(b"%d" % number)
        blocks = [compressor.next_blocks() for _ in range(3)]
        assert compressor.is_empty
    assert list(map(len, blocks)) == [LARGEST_BATCH, LARGEST_BATCH, 1]
    assert sorted(sizes) == [1, LARGEST_BATCH, LARGEST_BATCH]
    numbers = [int(content) for batch in blocks for content, _ in batch]
    assert numbers == list(range(2 * LARGEST_BATCH + 1))
