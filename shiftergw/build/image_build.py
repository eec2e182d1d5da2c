"""One build of an image: wait for its layers, take the lock, find the converted file or make it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

from twisted.internet.defer import Deferred

from shiftergw.build.check import check
from shiftergw.build.converted import (
    ConvertedFiles,
    disk_errors,
    hold,
    install,
    make_empty,
    measure,
    sync,
    verify,
)
from shiftergw.build.converter import BuildRequest, LayerConverter, timeout_error
from shiftergw.build.examination import drain_indexes
from shiftergw.build.stage_meter import StageMeter
from shiftergw.build.tools import BuildTools
from shiftergw.errors import BlobCorrupt, ConversionFailed, NoSpace, RetryLater
from shiftergw.model.images import BuiltImage
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import POLL_SECONDS, file_lock, tried_file_lock
from shiftergw.plumbing.timing import pause, within

PATIENCE = 20.0
"""Seconds for which a build waits for another pull's same build and occupies a worker."""

HEAD_START_SECONDS = 2 * POLL_SECONDS
"""Seconds by which the build that reads the layers is ahead of the others at the lock.

It may learn that much later than they do that all layers have arrived.
"""


@dataclass(slots=True)
class ImageBuild:
    """A build of one (image id, options).

    Of the builds of all processes for the same converted file, the first reads the layers while
    they arrive. The lock is taken only after all layers have arrived, so no build waits for the
    layers of another one.
    """

    tools: BuildTools
    files: ConvertedFiles
    request: BuildRequest
    converter: LayerConverter
    _arrival: Deferred[None] = field(default_factory=Deferred, init=False)
    """Fires when all layers are on this machine."""
    _seconds: dict[str, float] = field(default_factory=dict, init=False)
    """The duration of each stage."""

    async def run(self, use: AsyncExitStack) -> BuiltImage:
        """Return the verified file; it stays in place at least until `use` is closed."""
        threads = self.tools.threads
        # The locks of the image, and what its converter uses until the image is made.
        async with AsyncExitStack() as locks:
            indexes = await self._lock_and_read(locks)
            image = await self._find()
            if image is None:
                image = await self._make(indexes or await self._read_layers(locks))
            descriptor = await threads.acquire(partial(hold, self.files), os.close)
            use.push_async_callback(threads.release, os.close, descriptor)
        return replace(image, seconds=self._seconds)

    async def _lock_and_read(self, locks: AsyncExitStack) -> list[LayerIndex] | None:
        """Take the lock of the converted file once all layers have arrived.

        Returns the indexes of the layers if they were read meanwhile: that is left to the first
        build, and it is not done if there is a converted file.
        """
        early_lock = tried_file_lock(self.files.early, self.tools.threads)
        is_first = await locks.enter_async_context(early_lock)
        exists = await self.tools.threads.run(self.files.squashfs.exists)
        locking = self._lock_after_arrival(locks, is_first=is_first)
        if exists or not is_first:
            await locking
            return None
        indexes, _ = await gather_or_cancel([self._read_layers(locks), locking])
        return indexes

    async def _lock_after_arrival(self, locks: AsyncExitStack, *, is_first: bool) -> None:
        for layer in self.request.layers:
            await layer.wait_for_file()
        self._arrival.callback(None)
        notify_of_wait = partial(self.request.on_stage, "WAITING")
        if not is_first:
            notify_of_wait()
            await pause(HEAD_START_SECONDS, self.tools.clock)
        lock = file_lock(
            self.files.lock,
            self.tools.threads,
            self.tools.clock,
            notify_of_wait if is_first else None,
            PATIENCE,
            self._wait_error,
        )
        await locks.enter_async_context(lock)

    def _wait_error(self) -> RetryLater:
        """Return the error of a build that has waited long enough for another pull's build."""
        failure = ConversionFailed(
            "The same conversion for another pull did not end.", remedy="Try again later."
        )
        time = self.tools.clock.seconds() + PATIENCE
        # That build may wait for a slot as long as it may take then.
        limit = 2 * self.request.limits.stages.conversion
        return RetryLater(time, "the same conversion for another pull", failure, limit=limit)

    async def _read_layers(self, use: AsyncExitStack) -> list[LayerIndex]:
        """Index the layers; see `LayerConverter.read_layers`."""
        self.request.on_stage(self.converter.READING)
        with self._measure_stage(self.converter.read_stage):
            return await self.converter.read_layers(self._arrival, use)

    async def _find(self) -> BuiltImage | None:
        """Return the converted file that exists, if its bytes are those that were checked."""
        tools, files, stop = self.tools, self.files, Event()
        if not await tools.threads.run(files.exist):
            return None
        self.request.on_stage("VERIFICATION")
        meter = StageMeter("verify", self.request.report)
        with self._measure_stage("verify"), meter.reporting(tools.clock):
            return await tools.threads.run_until(stop.set, verify, files, stop, meter.set)

    async def _make(self, indexes: list[LayerIndex]) -> BuiltImage:
        """Convert the layers with these indexes, and put the checked file in place."""
        clock, threads, stages = self.tools.clock, self.tools.threads, self.request.limits.stages
        with self._measure_stage("plan"):
            plan = await within(
                stages.examination,
                clock,
                self._plan(indexes),
                partial(timeout_error, "Planning", stages.examination, "examination"),
            )
        async with self.converter.turn(), self._removed_on_error(self.files.part):
            await threads.run(self.files.remove_other_parts)
            await threads.run(self._make_room)
            await threads.run(make_empty, self.files.part)
            image = await within(
                stages.conversion,
                clock,
                self._convert(plan),
                partial(
                    timeout_error,
                    "Converting",
                    stages.conversion,
                    "conversion",
                    self.converter.advice(plan),
                ),
            )
            await threads.run(install, self.files, image)
        return image

    async def _plan(self, indexes: list[LayerIndex]) -> Plan:
        stop, request = Event(), self.request
        stored_size = sum(layer.size for layer in dict.fromkeys(request.layers))

        def plan() -> Plan:
            budget = Budget(request.limits, stop, stored_size)
            return flatten(drain_indexes(indexes), budget, request.options.keep_setuid)

        return await self.tools.threads.run_until(stop.set, plan)

    def _make_room(self, *, is_full: bool = False) -> bool:
        """Remove unused files until the image has room; see `DiskBudget.make_room`. Blocks."""
        tools = self.tools
        return tools.budget.make_room(
            tools.directory, self.converter.space(), is_full=is_full, is_estimate=True
        )

    async def _convert(self, plan: Plan) -> BuiltImage:
        """Write and check the converted file; return it as it will be in its place.

        What the converter can repair is repaired once, and the file is written anew. An error of
        the system may come from a bad sector below what the converter reads, also of a new file
        that shares blocks with it. A full disk is no matter of repairs.
        """
        try:
            return await self._write_with_room(plan)
        except (BlobCorrupt, ConversionFailed):
            with self._measure_stage("repair"):
                is_repaired = await self.converter.repair()
            if not is_repaired:
                raise
        return await self._write_with_room(plan)

    async def _write_with_room(self, plan: Plan) -> BuiltImage:
        """Write and check the file; on a full disk, remove unused files and write it anew.

        It may be larger than was estimated, and a quota may end before the disk.
        """
        threads = self.tools.threads
        while True:
            try:
                with disk_errors():
                    return await self._write(plan)
            except NoSpace:
                if not await threads.run(self._make_room, is_full=True):
                    raise
                await threads.run(make_empty, self.files.part)

    async def _write(self, plan: Plan) -> BuiltImage:
        self.request.on_stage(self.converter.WRITING)
        with self._measure_stage(self.converter.write_stage):
            data = await self.converter.write_image(plan, self.files.part)
        self.request.on_stage("CHECK")
        with self._measure_stage("check"):
            size, sha256 = await self._check(plan)
        return BuiltImage(self.files.squashfs, size, sha256, plan.report, data=data)

    async def _check(self, plan: Plan) -> tuple[int, str]:
        """Compare the new file with its plan, hash it, and sync it to the disk, all at once."""
        tools, part, stop = self.tools, self.files.part, Event()
        meter = StageMeter("check", self.request.report)
        with meter.reporting(tools.clock):
            _, _, measures = await gather_or_cancel(
                [
                    check(part, plan, tools.binary, tools.threads, tools.reactor, tools.clock),
                    tools.threads.run(sync, part),
                    tools.threads.run_until(stop.set, measure, part, stop, meter.set),
                ]
            )
        assert measures is not None
        return measures

    @asynccontextmanager
    async def _removed_on_error(self, path: Path) -> AsyncIterator[None]:
        """Remove `path` in a thread if the block raises: the unlink of a large file takes long."""
        try:
            yield
        except Exception:
            with suppress(OSError):
                await self.tools.threads.release(path.unlink, missing_ok=True)
            raise

    @contextmanager
    def _measure_stage(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to that of a stage; what fails and is repeated counts."""
        start = self.tools.clock.seconds()
        try:
            yield
        finally:
            seconds = max(0.0, self.tools.clock.seconds() - start)  # the clock may be set back
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
