"""Pack the layers of images: each layer blob becomes one pack, in one pass while it arrives."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.build.converted import disk_errors, make_empty
from shiftergw.build.mksquashfs import Mksquashfs
from shiftergw.build.pack_feed import PackFeed
from shiftergw.build.pack_files import (
    Pack,
    PackFiles,
    find_pack,
    hold_pack,
    install_pack,
    pack_groups,
)
from shiftergw.build.pack_options import pack_arguments, pack_key
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    ImageTooLarge,
    LayerInvalid,
    NoSpace,
    duration,
)
from shiftergw.oci.compression import opening_of
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import file_lock
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.build.image_build import BuildTools
    from shiftergw.model.build_options import SquashOptions
    from shiftergw.model.images import Digest, Opening
    from shiftergw.oci.budget import LayerBudget
    from shiftergw.ports import Layer


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes and finds the packs of one directory, for one set of options.

    `tools_key` is what `tools_digest` returned; `seconds` limits the packing of a layer from the
    time when it has arrived.
    """

    tools: BuildTools
    options: SquashOptions
    tools_key: str
    seconds: float

    def files(self, digest: Digest) -> PackFiles:
        """Return the names of the files of a layer blob's pack."""
        return PackFiles(self.tools.directory, digest, pack_key(self.options, self.tools_key))

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
                if not await self._hold(files, hold):
                    return None
                pack = await tools.readers.run_until(stop.set, find)
                if pack is not None:
                    await use.enter_async_context(hold.pop_all())
        return pack

    async def _hold(self, files: PackFiles, use: AsyncExitStack) -> bool:
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

        It stays in place at least until `use` is closed. One process at a time packs a layer blob;
        the others wait for it. `report` gets the compressed bytes that were read so far, on the
        reactor's thread. Raises `LayerInvalid`, `BlobCorrupt` (the `diff_id` differs),
        `ImageTooLarge`, `ConversionFailed`, `NoSpace`. After an error nothing runs any longer, and
        no part of a pack is left.
        """
        with disk_errors():
            await self.tools.threads.run(private_directory, self.tools.directory)
        opening = await layer.wait_for_opening()
        files = self.files(layer.digest)
        lock = file_lock(
            files.lock,
            self.tools.threads,
            self.tools.clock,
            limit=self.seconds,
            late=self.late_error,
        )
        async with lock:
            pack = await self.find(layer.digest, layer.diff_id, cost, use)
            if pack is None:
                pack = await _Packing(self, files, layer, cost, report).run(opening)
                with disk_errors():
                    await self._hold(files, use)  # no other process removes it under the lock
        report(layer.size)
        return pack

    def late_error(self) -> ImageTooLarge:
        """Return the error of a layer whose packing takes too long."""
        return ImageTooLarge.for_limit(
            f"Packing a layer took longer than {duration(self.seconds)}.",
            "StageLimits.conversion",
        )


@dataclass(slots=True)
class _Packing:
    """The making of one pack, under its lock."""

    packer: Packer
    files: PackFiles
    layer: Layer
    cost: LayerBudget
    report: Callable[[int], None]
    _arrival: Deferred[None] = field(default_factory=Deferred, init=False)
    """Fires when the layer is on this machine."""

    async def run(self, opening: Opening | None) -> Pack:
        """Make the pack from a layer that arrives by `opening`, or from its file."""
        tools, part = self.packer.tools, self.files.part
        try:
            pack, _ = await gather_or_cancel(
                [
                    within(
                        self.packer.seconds,
                        tools.clock,
                        self._make(opening),
                        self.packer.late_error,
                        since=self._arrival,
                    ),
                    self._note_arrival(),
                ]
            )
        except Exception:
            with suppress(OSError):  # in a thread: the unlink of a large file takes long
                await tools.threads.release(part.unlink, missing_ok=True)
            raise
        assert pack is not None
        return pack

    async def _note_arrival(self) -> None:
        await self.layer.wait_for_file()
        self._arrival.callback(None)

    async def _make(self, opening: Opening | None) -> Pack:
        contents = None
        if opening is not None:
            # The digest of these bytes is not verified yet: the download may be damaged. Its size
            # is but a claim, for which no other pack is removed.
            with suppress(BlobCorrupt, LayerInvalid, ImageTooLarge, NoSpace):
                contents = await self._compress(opening)
            if contents is None:
                self.cost.reset()  # other layers must not pay for them
        path = await self.layer.wait_for_file()
        threads = self.packer.tools.threads
        if contents is None:
            with disk_errors():
                await threads.run(_make_room_for, path, self.packer.tools.directory)
            contents = await self._compress(opening_of(path))
        stop = Event()
        with disk_errors():
            return await threads.run_until(stop.set, install_pack, self.files, *contents, stop)

    async def _compress(self, opening: Opening) -> tuple[LayerIndex, list[bytes]]:
        """Write the part file; return the index of the layer and the digests of its contents."""
        packer, part = self.packer, self.files.part
        tools, options = packer.tools, packer.options
        contents: list[tuple[LayerIndex, list[bytes]]] = []

        def write(pipe: int, stop: Event, report: Callable[[int, int], None]) -> None:
            feed = PackFeed(pipe, options.block_bytes, stop)

            def report_position(position: int) -> None:
                report(position, feed.size)

            index = index_layer(
                opening, self.layer.diff_id, self.cost, stop, report_position, feed.read_file
            )
            feed.finish()
            report(index.cost.stored_size, feed.size)
            contents.append((index, feed.digests))

        with disk_errors():
            await tools.threads.run(make_empty, part)
        program = Mksquashfs(tools.binary, tools.threads, tools.reactor, tools.clock)
        argv = pack_arguments(options, part)
        await program.run(argv, None, part, write, self.report, writers=tools.readers)
        if not contents:
            raise ConversionFailed("mksquashfs ended before it had read all of a layer.")
        return contents[0]


def _make_room_for(layer: Path, directory: Path) -> None:
    """Remove unused packs until the size of this layer is free on the disk."""
    with suppress(FileNotFoundError):  # its opening says so
        pack_groups(directory).make_room(layer.stat().st_size)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
