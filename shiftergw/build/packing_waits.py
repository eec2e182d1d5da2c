"""Notice when the packing of an image's layers only waits for other pulls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PackingWaits:
    """Counts the layers that are packed now, and those of them that another pull is packing.

    While each of them waits, the stage of the build is "PACKING ELSEWHERE".
    """

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        """Call `on_stage` with "PACKING ELSEWHERE", and with "PACKING" when the work goes on."""
        self._on_stage = on_stage
        self._packing = 0
        self._waiting = 0
        self._is_stopped = False

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Count a layer as one that is packed, during the block."""
        self._packing += 1
        self._update()
        try:
            yield
        finally:
            self._packing -= 1
            self._update()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a layer as one that another pull is packing, during the block."""
        self._waiting += 1
        self._update()
        try:
            yield
        finally:
            self._waiting -= 1
            self._update()

    def _update(self) -> None:
        is_stopped = 0 < self._waiting == self._packing
        if is_stopped is not self._is_stopped:
            self._is_stopped = is_stopped
            self._on_stage("PACKING ELSEWHERE" if is_stopped else "PACKING")
