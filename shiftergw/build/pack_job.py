"""The making of one pack: early while its layer arrives, or of the file of the layer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.build.arrival_meter import ArrivalMeter
from shiftergw.build.converted import disk_errors, make_empty
from shiftergw.build.direct_packer import pack_directly
from shiftergw.build.pack_archive import pack_by_mksquashfs
from shiftergw.build.pack_feed import PackedLayer
from shiftergw.build.pack_files import Pack, PackFiles
from shiftergw.build.packing_slots import PackingSlots, hold_large_window, share_of
from shiftergw.build.written_pack import WrittenPack, install_pack, read_written_pack
from shiftergw.errors import (
    BlobCorrupt,
    ImageTooLarge,
    LayerInvalid,
    NoSpace,
    PackCorrupt,
)
from shiftergw.oci.budget import LayersPending
from shiftergw.oci.compression import LargeWindow, WindowRefused, opening_of
from shiftergw.oci.tar import LayerIndex, ReadFile, index_layer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import POLL_SECONDS, tried_file_lock
from shiftergw.plumbing.timing import pause, within

if TYPE_CHECKING:
    from shiftergw.build.packer import Packer
    from shiftergw.model.images import Opening
    from shiftergw.oci.budget import LayerBudget
    from shiftergw.plumbing.file_slots import TakenSlot
    from shiftergw.ports import Layer

HEAD_START_SECONDS = 2 * POLL_SECONDS
"""Seconds by which the process that reads a layer early is ahead of the others at the lock.

It may learn that much later than they do that the layer has arrived.
"""

LOOK_SECONDS = 10.0
"""Seconds between two looks at a packing whose layer is arriving."""

IDLE_SHARE = 0.8
"""A packing that waits for its layer for more than this part of the time is idle."""

_EARLY_ERRORS = (
    BlobCorrupt,
    LayerInvalid,
    ImageTooLarge,
    NoSpace,
    LayersPending,
    WindowRefused,
)
"""Errors after which an early packing ends, and the layer is packed from its file.

It waits neither for other layers nor for the memory of a large window: it holds a slot for as long
as its download takes.
"""


@dataclass(slots=True)
class PackJob:
    """Makes the pack of a layer in `files`, or finds that another process has made it.

    `report` gets the compressed bytes that were read so far. `on_written` gets a new pack before it
    is installed, and once more if that failed and the pack was made again.
    """

    packer: Packer
    files: PackFiles
    layer: Layer
    cost: LayerBudget
    report: Callable[[int], None]
    slots: PackingSlots
    on_written: Callable[[WrittenPack], None]
    _arrival: Deferred[None] = field(default_factory=Deferred, init=False)
    """Fires when the layer is on this machine."""
    _has_large_window: bool = field(default=False, init=False)
    """Whether the layer is known to need a large zstd window."""

    async def run(self, opening: Opening | None, use: AsyncExitStack) -> Pack:
        """Find or make the pack of a layer that arrives by `opening`, or of its file."""
        packer = self.packer
        while True:
            try:
                return await within(
                    packer.seconds,
                    packer.tools.clock,
                    self._find_or_make(opening, use),
                    packer.late_error,
                    since=self._arrival,
                )
            except LayersPending:
                opening = None
                await packer.wait_for_layers(self.cost)

    async def _find_or_make(self, opening: Opening | None, use: AsyncExitStack) -> Pack:
        async with self._early_lock() as is_first:
            try:
                pack = await self._find_or_make_early(opening if is_first else None, is_first, use)
                while pack is None:
                    pack = await self._make_of_file(use)
            finally:
                await self._remove_part()
        return pack

    @asynccontextmanager
    async def _early_lock(self) -> AsyncIterator[bool]:
        async with tried_file_lock(self.files.early_lock, self.packer.tools.threads) as is_first:
            yield is_first

    async def _remove_part(self) -> None:
        """Remove the part file in a thread: that of a large file takes long."""
        with suppress(OSError):
            await self.packer.tools.threads.release(self.files.part.unlink, missing_ok=True)
        self.files.renew_part()  # an image may be composed of the file that was removed

    async def _find_or_make_early(
        self, opening: Opening | None, is_first: bool, use: AsyncExitStack
    ) -> Pack | None:
        """Return the pack once the layer has arrived, if it exists or was made of `opening`."""
        async with AsyncExitStack() as locks:
            locking = self._lock_after_arrival(locks, is_first=is_first)
            contents: PackedLayer | None = None
            if opening is None:
                await locking
            else:
                contents, _ = await gather_or_cancel([self._compress_early(opening), locking])
            if is_first:  # nobody else makes this pack now
                await self.packer.tools.threads.run(self.files.remove_other_parts)
            pack = await self._find(use)
            if pack is None and contents is not None:
                with suppress(NoSpace):  # for its sidecar: it is made of the file, which makes room
                    return await self._install(contents, use)
                await self._remove_part()
        return pack

    async def _lock_after_arrival(self, locks: AsyncExitStack, *, is_first: bool) -> None:
        """Take the lock of the pack once the layer has arrived."""
        tools = self.packer.tools
        await self.layer.wait_for_file()
        if not self._arrival.called:
            self._arrival.callback(None)
        if not is_first:
            await pause(HEAD_START_SECONDS, tools.clock)
        await locks.enter_async_context(self.packer.lock(self.files))

    async def _make_of_file(self, use: AsyncExitStack) -> Pack | None:
        """Return the pack that is made of the file of the layer.

        Returns None after another process has made it. Also returns None if the layer turns out to
        need a large window, which the next call waits for without a slot and a lock.
        """
        packer, files, tools = self.packer, self.files, self.packer.tools
        async with AsyncExitStack() as use_of_window:
            if self._has_large_window:
                await use_of_window.enter_async_context(hold_large_window(tools.clock))
            async with (
                self.slots.take(self.layer.size) as slot,
                tried_file_lock(files.lock, tools.threads) as is_alone,
            ):
                if is_alone:
                    pack = await self._find(use)
                    if pack is None:
                        try:
                            pack = await self._make_with_room(slot, use)
                        except WindowRefused:
                            await self._remove_part()
                    return pack
        async with packer.lock(files):
            return await self._find(use)

    async def _make_with_room(self, slot: TakenSlot, use: AsyncExitStack) -> Pack:
        """Make the pack of the file of the layer, under its lock.

        If the disk is full all the same, because the pack is larger than its layer or by a quota,
        more unused files are removed, and the pack is made anew.
        """
        path = await self.layer.wait_for_file()
        if path is None:
            raise PackCorrupt("A converted layer is no longer in the cache.")
        await self._make_room_for(path, is_full=False)
        window = LargeWindow.OWN if self._has_large_window else LargeWindow.REFUSE
        while True:
            try:
                contents = await self._compress(opening_of(path), slot, window)
                return await self._install(contents, use)
            except NoSpace:
                await self._remove_part()
                if not await self._make_room_for(path, is_full=True):
                    raise

    async def _make_room_for(self, layer: Path, *, is_full: bool) -> bool:
        """Remove unused files until the size of this layer is free; see `DiskBudget.make_room`.

        Returns whether anything was removed.
        """
        packer = self.packer
        make_room = packer.tools.budget.make_room

        def remove_files() -> bool:
            with suppress(FileNotFoundError):  # its opening says so
                size = max(1, layer.stat().st_size)
                return make_room(packer.directory, size, is_full=is_full, is_estimate=True)
            return False

        with disk_errors():
            return await packer.tools.threads.run(remove_files)

    async def _find(self, use: AsyncExitStack) -> Pack | None:
        layer = self.layer
        return await self.packer.find_at_once(layer.digest, layer.diff_id, self.cost, use)

    async def _compress_early(self, opening: Opening) -> PackedLayer | None:
        """Write the part file while the layer arrives; return None if that is not possible."""
        self.cost.may_wait = False  # not while it holds a slot, and soon the lock
        async with self.slots.try_take(self.layer.size) as slot:
            # The digest of these bytes is not verified yet: the download may be damaged. Its size
            # is but a claim, for which no other pack is removed.
            if slot is not None:
                with suppress(*_EARLY_ERRORS):
                    contents = await self._compress_unless_idle(opening, slot)
                    if contents is not None:
                        return contents
                await self._remove_part()  # until it is made anew, others need the disk
        self.cost.reset()  # bytes that are not used must not count against the image's limits
        return None

    async def _compress_unless_idle(self, opening: Opening, slot: TakenSlot) -> PackedLayer | None:
        """Write the part file; return None if the slot is needed, and the download is too slow."""
        meter = ArrivalMeter(opening)
        compressing = Deferred.fromCoroutine(self._compress(meter.open, slot))
        is_given_up = False

        async def give_up_when_idle() -> None:
            nonlocal is_given_up
            seconds = meter.seconds()
            while not compressing.called:
                await pause(LOOK_SECONDS, self.packer.tools.clock)
                last_seconds, seconds = seconds, meter.seconds()
                is_idle = seconds - last_seconds > IDLE_SHARE * LOOK_SECONDS
                if is_idle and await self.slots.is_needed(slot):
                    is_given_up = True
                    compressing.cancel()

        watching = Deferred.fromCoroutine(give_up_when_idle())
        try:
            return await compressing
        except CancelledError:
            if is_given_up:
                return None
            raise
        finally:
            watching.cancel()
            with suppress(CancelledError):
                await watching

    async def _compress(
        self, opening: Opening, slot: TakenSlot, large_window: LargeWindow = LargeWindow.REFUSE
    ) -> PackedLayer:
        """Write the part file; return the index of the layer and the digests of its contents."""
        tools, part = self.packer.tools, self.files.part
        options = share_of(self.packer.options, slot.holders)

        def read(
            read_file: ReadFile, stop: Event, report_position: Callable[[int], None]
        ) -> LayerIndex:
            return index_layer(
                opening,
                self.layer.diff_id,
                self.cost,
                stop,
                report_position,
                read_file,
                large_window=large_window,
            )

        with disk_errors():
            await tools.threads.run(make_empty, part)
            write = pack_directly if options.packs_directly else pack_by_mksquashfs
            try:
                return await write(tools, options, part, read, self.report)
            except WindowRefused:
                self._has_large_window = True
                raise

    async def _install(self, contents: PackedLayer, use: AsyncExitStack) -> Pack:
        """Put the pack with these contents in its place, under its lock."""
        files, threads, stop = self.files, self.packer.tools.threads, Event()
        with disk_errors():
            new_pack = await threads.run_until(stop.set, read_written_pack, files, *contents, stop)
            self.on_written(new_pack)
            pack = await threads.run_until(stop.set, install_pack, new_pack, stop)
            await self.packer.hold(files, use)  # no other process removes it under the lock
        return pack
