"""Measure how long the reader of a layer waits for bytes that have not arrived yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, cast

if TYPE_CHECKING:
    from shiftergw.model.images import Opening


@dataclass(slots=True)
class ArrivalMeter:
    """Measures the reads of an `Opening`: one thread reads, any other may ask."""

    opening: Opening
    _seconds: float = field(default=0.0, init=False)
    """Seconds that all finished reads took."""
    _read_start: float | None = field(default=None, init=False)

    def open(self, stop: Event) -> BinaryIO:
        """Open the bytes for reading; see `Opening`."""
        return cast("BinaryIO", _MeteredFile(self.opening(stop), self))

    def seconds(self) -> float:
        """Return the seconds that reads took so far, including the one that is running."""
        start = self._read_start
        return self._seconds + (0.0 if start is None else time.monotonic() - start)

    def read(self, file: BinaryIO, size: int) -> bytes:
        """Read from a file, and measure it."""
        start = self._read_start = time.monotonic()
        try:
            return file.read(size)
        finally:
            self._read_start = None
            self._seconds += time.monotonic() - start


class _MeteredFile:
    """A file whose reads are measured, with what `decompress` uses of a file."""

    def __init__(self, file: BinaryIO, meter: ArrivalMeter) -> None:
        self._file = file
        self._meter = meter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        return self._meter.read(self._file, size)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._file.fileno()
