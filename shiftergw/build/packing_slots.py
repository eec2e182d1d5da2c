"""How many layers the workers of a machine pack at the same time, and what each packing may use.

All workers of a machine share a directory of slots. A packing holds one slot while its `mksquashfs`
runs; so does the conversion of a whole image, with its check, which counts as the packing of one
layer. The number of slots follows from the processors and the memory that the options of a system
allow; each has an equal share of that memory. There are more slots than processors, because a
packing whose layer is arriving often waits for it. The first slot is kept for small layers, so that
none of them waits for large ones.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shiftergw.oci.compression import LARGE_WINDOWS
from shiftergw.plumbing.file_slots import FileSlots
from shiftergw.plumbing.locks import POLL_SECONDS
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions
    from shiftergw.plumbing.file_slots import TakenSlot

MOST_SLOTS = 8
"""Layers that are packed at the same time on one machine."""

MOST_LANES = 4
"""Layers of one image that are packed at the same time; other images need slots, too."""

LEAST_MEMORY = 64 << 20
"""Bytes of memory of each `mksquashfs`, if there are several."""

SMALL_LAYER = 16 << 20
"""Bytes of the largest compressed layer that may have the first slot: it takes a few seconds."""


@dataclass(frozen=True, slots=True)
class PackingSlots:
    """The slots of all packings of this machine, as packings with these options may use them.

    A context of `queueing` is open while a packing waits for a slot.
    """

    tools: BuildTools
    options: SquashOptions
    queueing: Callable[[], AbstractContextManager[None]]

    def take(self, size: int) -> AbstractAsyncContextManager[TakenSlot]:
        """Return a context that holds a slot for a layer of this compressed size.

        Small layers have a queue of their own. Waits without a limit; cancellable. The caller must
        hold no lock that others wait for.
        """
        return self._slots.take(self._numbers(size), self._queue(size), self.queueing)

    def try_take(self, size: int) -> AbstractAsyncContextManager[TakenSlot | None]:
        """Return a context that holds a slot if one is free and no packing waits for it."""
        return self._slots.try_take(self._numbers(size), self._queue(size))

    async def is_needed(self, slot: TakenSlot) -> bool:
        """Return whether a packing that may have this slot waits: large layers may not have 0."""
        queues = ("small", "large") if slot.number else ("small",)
        for queue in queues:
            if await self._slots.has_queue(queue):
                return True
        return False

    @property
    def _slots(self) -> FileSlots:
        tools = self.tools
        return FileSlots(tools.slot_directory, tools.threads, tools.clock)

    def _numbers(self, size: int) -> range:
        return range(self._is_large(size), slot_count(self.options))

    def _queue(self, size: int) -> str:
        return "large" if self._is_large(size) else "small"

    def _is_large(self, size: int) -> bool:
        """Return whether the first slot is kept from a layer of this size."""
        return size > SMALL_LAYER and slot_count(self.options) > 1


@asynccontextmanager
async def hold_large_window(clock: IReactorTime) -> AsyncIterator[None]:
    """Hold the memory for one of the large zstd windows of this process during the block.

    Waits without a limit; cancellable. The caller must hold no slot and no lock.
    """
    while not LARGE_WINDOWS.acquire(blocking=False):
        await pause(POLL_SECONDS, clock)
    try:
        yield
    finally:
        LARGE_WINDOWS.release()


def slot_count(options: SquashOptions) -> int:
    """Return how many layers are packed at the same time on a machine with these options."""
    memory_shares = options.memory_bytes // LEAST_MEMORY
    return max(1, min(2 * _processors_of(options), memory_shares, MOST_SLOTS))


def count_parallel_layers(options: SquashOptions, layers: int) -> int:
    """Return how many of the layers of an image are packed at the same time, within the options."""
    return max(1, min(layers, _processors_of(options), slot_count(options), MOST_LANES))


def share_of(options: SquashOptions, running: int) -> SquashOptions:
    """Return the options of a `mksquashfs` that is one of `running` when it starts.

    All of them together have the configured memory. Each has an equal part of the processors, so
    that all together have about the configured number; two parts if it is not configured, because
    some layers take longer than others. A packing that is alone has all processors.
    """
    memory = f"{options.memory_bytes // slot_count(options) >> 10}K"
    if running == 1:
        return replace(options, memory=memory)
    processors = options.processors or 2 * _processors_of(options)
    return replace(options, memory=memory, processors=-(-processors // running))


def _processors_of(options: SquashOptions) -> int:
    return options.processors or len(os.sched_getaffinity(0))
