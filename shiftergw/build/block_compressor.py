"""Compress blocks of data in threads, and keep their order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from shiftergw.squashfs.compressors import CompressBlocks

LARGEST_BATCH = 8
"""Blocks that a thread gets at once, at most: a thread that waits for the interpreter, or wakes
another one, takes as long as the compression of a block may. A stop waits for all of a batch.
"""


class BlockCompressor:
    """Compresses blocks in threads, and gives them back in their order.

    A context manager: at its end the threads have ended.
    """

    def __init__(
        self, make_compressor: Callable[[], CompressBlocks], threads: int, window: int = 0
    ) -> None:
        """Compress in `threads` threads, each with a compressor of its own.

        `window` is the number of blocks that are pending at most, by default two for each thread.
        """
        self._make_compressor = make_compressor
        self._most_pending = window or 2 * threads
        self._batch_size = max(1, min(self._most_pending // (2 * threads), LARGEST_BATCH))
        self._next_batch: list[bytes] = []
        """The blocks that were added last, which no thread has yet."""
        self._batches: deque[tuple[list[bytes], Future[list[bytes]]]] = deque()
        self._pending = 0
        """Blocks that were added and not taken."""
        self._compressors = threading.local()
        self._executor = ThreadPoolExecutor(threads, "compress")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def is_full(self) -> bool:
        """Return whether blocks should be taken before another one is added."""
        return self._pending >= self._most_pending

    @property
    def is_ready(self) -> bool:
        """Return whether the first blocks that were not taken yet are compressed."""
        return bool(self._batches) and self._batches[0][1].done()

    @property
    def is_empty(self) -> bool:
        """Return whether all blocks were taken."""
        return not self._pending

    def add(self, content: bytes) -> None:
        """Begin to compress a block, together with the next ones."""
        self._next_batch.append(content)
        self._pending += 1
        if len(self._next_batch) == self._batch_size:
            self._begin_batch()

    def next_blocks(self) -> list[tuple[bytes, bytes]]:
        """Wait for the first blocks that were not taken yet; return each and what it became.

        The latter may have more bytes than the former.
        """
        if not self._batches:
            self._begin_batch()
        contents, future = self._batches.popleft()
        self._pending -= len(contents)
        return list(zip(contents, future.result(), strict=True))

    def _begin_batch(self) -> None:
        batch, self._next_batch = self._next_batch, []
        self._batches.append((batch, self._executor.submit(self._compress, batch)))

    def _compress(self, contents: list[bytes]) -> list[bytes]:
        compress: CompressBlocks | None = getattr(self._compressors, "compress", None)
        if compress is None:
            compress = self._compressors.compress = self._make_compressor()
        return compress(contents)
