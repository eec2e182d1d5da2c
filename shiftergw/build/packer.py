"""Pack the layers of images: each layer blob becomes one pack, in one pass while it arrives.

Theory of operation. Of the processes that need the pack of a blob, one reads it while it arrives,
if a slot is free (`packing_slots`). It holds the early lock. No process waits for that lock,
because the download of its holder may come from a slower registry. A process takes the lock of the
pack only after the layer of its own pull has arrived. It then uses the pack that exists, or makes
it from the file or from what was read early. It waits for no slot and no other layer meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.build.converted import disk_errors
from shiftergw.build.pack_files import Pack, PackFiles, find_pack, hold_pack, remove_damaged_pack
from shiftergw.build.pack_job import PackJob
from shiftergw.build.pack_options import pack_key
from shiftergw.build.packing_slots import PackingSlots
from shiftergw.build.written_pack import WrittenPack
from shiftergw.errors import ImageTooLarge, duration
from shiftergw.oci.budget import LayersPending
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.locks import POLL_SECONDS, file_lock
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions
    from shiftergw.model.images import Digest
    from shiftergw.oci.budget import LayerBudget
    from shiftergw.ports import Layer


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes and finds the packs of this machine, for one set of options.

    `tools_key` is what `pack_search.tools_key` returned; `seconds` limits the packing of a layer
    from the time when it arrived. Packs are in `directory`. A context of `waiting` is open while
    another process packs the layer, and one of `queueing` while the packing waits for a slot of
    this machine.
    """

    tools: BuildTools
    options: SquashOptions
    tools_key: str
    seconds: float
    directory: Path
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    queueing: Callable[[], AbstractContextManager[None]] = nullcontext

    def files(self, digest: Digest) -> PackFiles:
        """Return the names of the files of a layer blob's pack."""
        return PackFiles(self.directory, digest, pack_key(self.options, self.tools_key))

    async def find(
        self, digest: Digest, diff_id: Digest | None, cost: LayerBudget, use: AsyncExitStack
    ) -> Pack | None:
        """Return the pack of a layer blob, or None if there is none that can be used.

        It stays in place at least until `use` is closed. Waits for other layers if the budget
        depends on them. Raises `BlobCorrupt` if its `diff_id` is another one, and the errors of
        `cost`.
        """
        while True:
            try:
                return await self.find_at_once(digest, diff_id, cost, use)
            except LayersPending:
                await self.wait_for_layers(cost)

    async def find_at_once(
        self, digest: Digest, diff_id: Digest | None, cost: LayerBudget, use: AsyncExitStack
    ) -> Pack | None:
        """Do what `find` does, but raise `LayersPending` if the budget depends on other layers."""
        cost.may_wait = False
        files, stop, tools = self.files(digest), Event(), self.tools

        def find() -> Pack | None:
            pack = find_pack(files, stop)
            if pack is None or (diff_id and diff_id.algorithm != pack.diff_id.algorithm):
                return None  # a digest of another algorithm proves nothing
            pack.check_claim(diff_id)
            cost.reset()
            cost.update(pack.index.cost, stop)
            return pack

        with disk_errors():
            async with AsyncExitStack() as hold:
                if not await self.hold(files, hold):
                    return None
                pack = await tools.readers.run_until(stop.set, find)
                if pack is not None:
                    await use.enter_async_context(hold.pop_all())
        return pack

    async def wait_for_layers(self, cost: LayerBudget) -> None:
        """Wait until all layers of the image of this budget have arrived. Cancellable."""
        cost.reset()
        while not cost.is_decidable:
            await pause(POLL_SECONDS, self.tools.clock)

    async def hold(self, files: PackFiles, use: AsyncExitStack) -> bool:
        """Keep a pack in place until `use` is closed; return whether it is there."""
        threads = self.tools.threads
        descriptor = await threads.acquire(partial(hold_pack, files), _close)
        if descriptor is not None:
            use.push_async_callback(threads.release, _close, descriptor)
        return descriptor is not None

    async def pack(
        self,
        layer: Layer,
        cost: LayerBudget,
        report: Callable[[int], None],
        use: AsyncExitStack,
        on_written: Callable[[WrittenPack], None] = lambda _: None,
    ) -> Pack:
        """Return the pack of a layer; make it while the layer arrives unless it exists.

        It stays in place at least until `use` is closed. One process at a time packs a layer blob
        that has arrived; the others wait for it. All packings of this machine share its slots.
        `report` gets the compressed bytes that were read so far, and `on_written` a new pack before
        it is installed (`written_pack`), both on the reactor's thread. Raises `LayerInvalid`,
        `BlobCorrupt` (the `diff_id` differs), `ImageTooLarge`, `ConversionFailed`, `NoSpace`. After
        an error nothing runs any longer, and no part of a pack is left.
        """
        files, threads = self.files(layer.digest), self.tools.threads
        with disk_errors():
            await threads.run(private_directory, self.directory)
        opening = await layer.wait_for_opening()
        if opening is not None and await threads.run(files.exist):
            opening = None
        slots = PackingSlots(self.tools, self.options, self.queueing)
        job = PackJob(self, files, layer, cost, report, slots, on_written)
        pack = await job.run(opening, use)
        report(layer.size)
        return pack

    async def discard_damaged(self, digest: Digest) -> bool:
        """Remove a pack whose bytes are damaged; return whether the pack is gone."""
        files, stop = self.files(digest), Event()
        with disk_errors():
            async with self.lock(files):
                return await self.tools.threads.run_until(
                    stop.set, remove_damaged_pack, files, stop
                )

    @asynccontextmanager
    async def lock(self, files: PackFiles) -> AsyncIterator[None]:
        """Hold the lock of the process that makes or removes a pack."""
        tools = self.tools
        async with AsyncExitStack() as locks:
            with ExitStack() as wait:
                on_wait = partial(wait.enter_context, self.waiting())
                lock = file_lock(
                    files.lock, tools.threads, tools.clock, on_wait, self.seconds, self.late_error
                )
                await locks.enter_async_context(lock)
            yield

    def late_error(self) -> ImageTooLarge:
        """Return the error of a layer whose packing takes too long."""
        return ImageTooLarge.for_limit(
            f"Packing a layer took longer than {duration(self.seconds)}.",
            "StageLimits.conversion",
        )


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
