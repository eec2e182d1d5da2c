"""Notice when the packing of an image's layers only waits for other pulls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PackingWaits:
    """Counts the layers that are packed now, and those of them that wait for other pulls.

    While each of them waits, the stage of the build is "QUEUED" if one of them waits for a slot of
    the machine, or else "PACKING ELSEWHERE".
    """

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        """Call `on_stage` with a stage of a wait, and with "PACKING" when the work goes on."""
        self._on_stage = on_stage
        self._packing = 0
        self._waiting = 0
        self._queueing = 0
        self._stage = "PACKING"

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

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """Count a layer as one that waits for a slot of the machine, during the block."""
        self._queueing += 1
        self._update()
        try:
            yield
        finally:
            self._queueing -= 1
            self._update()

    def _update(self) -> None:
        stage = "PACKING"
        if 0 < self._waiting + self._queueing == self._packing:
            stage = "QUEUED" if self._queueing else "PACKING ELSEWHERE"
        if stage != self._stage:
            self._stage = stage
            self._on_stage(stage)
