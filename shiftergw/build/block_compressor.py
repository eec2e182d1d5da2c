"""Compress blocks of data in threads, and keep their order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from shiftergw.squashfs.compressors import Compress


class BlockCompressor:
    """Compresses blocks in threads, and gives them back in their order.

    A context manager: at its end the threads have ended.
    """

    def __init__(
        self, make_compressor: Callable[[], Compress], threads: int, window: int = 0
    ) -> None:
        """Compress in `threads` threads, each with a compressor of its own.

        `window` is the number of blocks that are pending at most, by default two for each thread.
        """
        self._make_compressor = make_compressor
        self._most_pending = window or 2 * threads
        self._pending: deque[tuple[bytes, Future[bytes]]] = deque()
        self._compressors = threading.local()
        self._executor = ThreadPoolExecutor(threads, "compress")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def is_full(self) -> bool:
        """Return whether a block should be taken before another one is added."""
        return len(self._pending) >= self._most_pending

    @property
    def is_ready(self) -> bool:
        """Return whether the first block that was not taken yet is compressed."""
        return bool(self._pending) and self._pending[0][1].done()

    @property
    def is_empty(self) -> bool:
        """Return whether all blocks were taken."""
        return not self._pending

    def add(self, content: bytes) -> None:
        """Begin to compress a block."""
        self._pending.append((content, self._executor.submit(self._compress, content)))

    def next_block(self) -> tuple[bytes, bytes]:
        """Wait for the first block that was not taken yet; return its content and what it became.

        The latter may have more bytes than the content.
        """
        content, future = self._pending.popleft()
        return content, future.result()

    def _compress(self, content: bytes) -> bytes:
        compress: Compress | None = getattr(self._compressors, "compress", None)
        if compress is None:
            compress = self._compressors.compress = self._make_compressor()
        return compress(content)
