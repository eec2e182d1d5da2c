"""Pack the layers of images: each layer blob becomes one pack, in one pass while it arrives.

Theory of operation. Of the processes that need the pack of a blob, one reads it while it arrives.
It holds the early lock, which nobody waits for: its download may take long, since it may come from
another registry than theirs. The lock of the pack is taken only after the own layer has arrived.
Who has it uses the pack that is there, or makes it, from the file or of what was read early.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.build.converted import disk_errors, make_empty
from shiftergw.build.mksquashfs import Mksquashfs
from shiftergw.build.pack_archive import PackArchive
from shiftergw.build.pack_feed import PackFeed
from shiftergw.build.pack_files import (
    Pack,
    PackFiles,
    find_pack,
    hold_pack,
    install_pack,
    remove_damaged_pack,
)
from shiftergw.build.pack_options import pack_arguments, pack_key
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    ImageTooLarge,
    LayerInvalid,
    NoSpace,
    PackCorrupt,
    duration,
)
from shiftergw.oci.compression import opening_of
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import POLL_SECONDS, file_lock, tried_file_lock
from shiftergw.plumbing.timing import pause, within

if TYPE_CHECKING:
    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions
    from shiftergw.model.images import Digest, Opening
    from shiftergw.oci.budget import LayerBudget
    from shiftergw.ports import Layer


HEAD_START_SECONDS = 2 * POLL_SECONDS
"""Seconds by which the process that reads a layer early is ahead of the others at the lock.

It may learn that much later than they do that the layer has arrived.
"""

_Contents = tuple[LayerIndex, list[bytes]]
"""The index of a layer, and the digests of its contents by number."""


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes and finds the packs of this machine, for one set of options.

    `tools_key` is what `tools_digest` returned; `seconds` limits the packing of a layer from the
    time when it has arrived. The packs lie in `directory`. A context of `waiting` is open while
    another process packs the layer.
    """

    tools: BuildTools
    options: SquashOptions
    tools_key: str
    seconds: float
    directory: Path
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def files(self, digest: Digest) -> PackFiles:
        """Return the names of the files of a layer blob's pack."""
        return PackFiles(self.directory, digest, pack_key(self.options, self.tools_key))

    async def find(
        self, digest: Digest, diff_id: Digest | None, cost: LayerBudget, use: AsyncExitStack
    ) -> Pack | None:
        """Return the pack of a layer blob, or None if there is none that can be used.

        It stays in place at least until `use` is closed. Raises `BlobCorrupt` if its `diff_id` is
        another one, and the errors of `cost`.
        """
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
    ) -> Pack:
        """Return the pack of a layer; make it while the layer arrives unless it exists.

        It stays in place at least until `use` is closed. One process at a time packs a layer blob
        that has arrived; the others wait for it. `report` gets the compressed bytes that were read
        so far, on the reactor's thread. Raises `LayerInvalid`, `BlobCorrupt` (the `diff_id`
        differs), `ImageTooLarge`, `ConversionFailed`, `NoSpace`. After an error nothing runs any
        longer, and no part of a pack is left.
        """
        files, threads = self.files(layer.digest), self.tools.threads
        with disk_errors():
            await threads.run(private_directory, self.directory)
        opening = await layer.wait_for_opening()
        if opening is not None and await threads.run(files.exist):
            opening = None
        pack = await _Packing(self, files, layer, cost, report).run(opening, use)
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

    def lock(
        self, files: PackFiles, on_wait: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Return the lock of the process that makes or removes a pack; see `file_lock`."""
        tools = self.tools
        return file_lock(
            files.lock, tools.threads, tools.clock, on_wait, self.seconds, self.late_error
        )

    def late_error(self) -> ImageTooLarge:
        """Return the error of a layer whose packing takes too long."""
        return ImageTooLarge.for_limit(
            f"Packing a layer took longer than {duration(self.seconds)}.",
            "StageLimits.conversion",
        )


@dataclass(slots=True)
class _Packing:
    """The making of one pack."""

    packer: Packer
    files: PackFiles
    layer: Layer
    cost: LayerBudget
    report: Callable[[int], None]
    _arrival: Deferred[None] = field(default_factory=Deferred, init=False)
    """Fires when the layer is on this machine."""

    async def run(self, opening: Opening | None, use: AsyncExitStack) -> Pack:
        """Find or make the pack of a layer that arrives by `opening`, or of its file."""
        packer = self.packer
        return await within(
            packer.seconds,
            packer.tools.clock,
            self._find_or_make(opening, use),
            packer.late_error,
            since=self._arrival,
        )

    async def _find_or_make(self, opening: Opening | None, use: AsyncExitStack) -> Pack:
        packer, files, layer = self.packer, self.files, self.layer
        contents: _Contents | None = None
        async with AsyncExitStack() as locks:  # files are removed before their locks are released
            early_lock = tried_file_lock(files.early_lock, packer.tools.threads)
            is_first = await locks.enter_async_context(early_lock)
            locking = self._lock_after_arrival(locks, is_first=is_first)
            if is_first:  # a process that was killed may have left the file
                locks.push_async_callback(self._remove, files.early_part)
            if is_first and opening is not None:
                contents, _ = await gather_or_cancel([self._compress_early(opening), locking])
            else:
                await locking
            pack = await packer.find(layer.digest, layer.diff_id, self.cost, use)
            if pack is None:
                locks.push_async_callback(self._remove, files.part)
                pack = await self._make(contents)
                with disk_errors():
                    await packer.hold(files, use)  # no other process removes it under the lock
        return pack

    async def _lock_after_arrival(self, locks: AsyncExitStack, *, is_first: bool) -> None:
        """Take the lock of the pack once the layer has arrived."""
        tools = self.packer.tools
        await self.layer.wait_for_file()
        self._arrival.callback(None)
        if not is_first:
            await pause(HEAD_START_SECONDS, tools.clock)
        with ExitStack() as wait:
            on_wait = partial(wait.enter_context, self.packer.waiting())
            await locks.enter_async_context(self.packer.lock(self.files, on_wait))

    async def _compress_early(self, opening: Opening) -> _Contents | None:
        """Write the early part file while the layer arrives; return None if that fails."""
        # The digest of these bytes is not verified yet: the download may be damaged. Its size is
        # but a claim, for which no other pack is removed.
        with suppress(BlobCorrupt, LayerInvalid, ImageTooLarge, NoSpace):
            return await self._compress(opening, self.files.early_part)
        self.cost.reset()  # other layers must not pay for them
        return None

    async def _make(self, contents: _Contents | None) -> Pack:
        """Put the pack in its place: the early part file with these contents, or a new one."""
        files, tools, stop = self.files, self.packer.tools, Event()
        with disk_errors():
            if contents is None:
                path = await self.layer.wait_for_file()
                if path is None:
                    raise PackCorrupt("A converted layer is no longer in the cache.")
                await tools.threads.run(self._make_room_for, path)
                contents = await self._compress(opening_of(path), files.part)
            else:
                await tools.threads.run(files.early_part.replace, files.part)
            return await tools.threads.run_until(stop.set, install_pack, files, *contents, stop)

    def _make_room_for(self, layer: Path) -> None:
        """Remove unused files until the size of this layer is free on the disk. Blocks."""
        packer = self.packer
        with suppress(FileNotFoundError):  # its opening says so
            size = layer.stat().st_size
            packer.tools.budget.make_room(packer.directory, size, is_estimate=True)

    async def _remove(self, path: Path) -> None:
        """Remove a file, if it is there, in a thread: the unlink of a large file takes long."""
        with suppress(OSError):
            await self.packer.tools.threads.release(path.unlink, missing_ok=True)

    async def _compress(self, opening: Opening, part: Path) -> _Contents:
        """Write a part file; return the index of the layer and the digests of its contents."""
        packer = self.packer
        tools, options = packer.tools, packer.options
        contents: list[_Contents] = []

        def write(pipe: int, stop: Event, report: Callable[[int, int], None]) -> None:
            archive = PackArchive(pipe, stop)
            feed = PackFeed(archive, options.block_bytes)

            def report_position(position: int) -> None:
                report(position, archive.size)

            index = index_layer(
                opening, self.layer.diff_id, self.cost, stop, report_position, feed.read_file
            )
            archive.finish()
            report(index.cost.stored_size, archive.size)
            contents.append((index, feed.digests))

        with disk_errors():
            await tools.threads.run(make_empty, part)
        program = Mksquashfs(tools.binary, tools.threads, tools.reactor, tools.clock)
        argv = pack_arguments(options, part)
        await program.run(argv, None, part, write, self.report, writers=tools.readers)
        if not contents:
            raise ConversionFailed("mksquashfs ended before it had read all of a layer.")
        return contents[0]


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
