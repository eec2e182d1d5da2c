"""Data of a channel that waits for the server's window, and the producer that makes more of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from shiftergw.plumbing.channel import Buffer

HIGH_WATER = 1 << 20
"""Waiting bytes at which a producer is paused; it is resumed below half of that."""


class ProducerState(Enum):
    """What the producer of a channel does."""

    ABSENT = auto()
    PULL = auto()  # it makes one piece each time it is asked
    STREAMING = auto()
    PAUSE = auto()  # a streaming producer, until less data waits


class OutgoingData:
    """The waiting data of one channel; its bytes must not change until they are sent."""

    def __init__(self) -> None:
        """Start empty, without a producer."""
        self.size = 0
        """Waiting bytes."""
        self._queue: deque[memoryview] = deque()
        self._producer: Any = None
        self._state = ProducerState.ABSENT

    def append(self, pieces: Iterable[Buffer]) -> None:
        """Add buffers in order; pause the producer if too much is waiting."""
        for piece in pieces:
            view = memoryview(piece).cast("B")
            if view:
                self._queue.append(view)
                self.size += len(view)
        if self._state is ProducerState.STREAMING and self.size >= HIGH_WATER:
            self._state = ProducerState.PAUSE
            self._producer.pauseProducing()

    def fill(self, buffer: memoryview) -> None:
        """Move as many waiting bytes as the buffer has into it; there must be that many."""
        start, end = 0, len(buffer)
        queue = self._queue
        while start < end:
            piece = queue[0]
            length = min(len(piece), end - start)
            buffer[start : start + length] = piece[:length]
            start += length
            if length == len(piece):
                queue.popleft()
            else:
                queue[0] = piece[length:]
        self.size -= end

    def drop(self) -> None:
        """Forget the waiting data, and stop the producer."""
        self._queue.clear()
        self.size = 0
        if self._producer is not None:
            producer = self._producer
            self.unregister()
            producer.stopProducing()

    # The producer

    def register(self, producer: Any, streaming: bool) -> None:
        """Pause and resume `producer`; a pull producer is asked when there is room."""
        if self._producer is not None:
            raise RuntimeError("a channel has one producer")
        self._producer = producer
        self._state = ProducerState.STREAMING if streaming else ProducerState.PULL

    def unregister(self) -> None:
        """Stop pausing and resuming the producer."""
        self._producer, self._state = None, ProducerState.ABSENT

    def refill(self) -> None:
        """Ask a pull producer for data, and resume a paused one, if little is waiting."""
        if self.size >= HIGH_WATER // 2:
            return
        if self._state is ProducerState.PAUSE:
            self._state = ProducerState.STREAMING
            self._producer.resumeProducing()
        elif self._state is ProducerState.PULL:
            self._producer.resumeProducing()
