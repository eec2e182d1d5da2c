"""One build of an image: wait for its layers, take the lock, find the converted file or make it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.build.check import check
from shiftergw.build.converted import (
    ConvertedFiles,
    converted_groups,
    hold,
    install,
    make_empty,
    measure,
    sync,
    verify,
)
from shiftergw.build.examination import IndexedLayer, drain_indexes, examine_layers
from shiftergw.build.mksquashfs import Mksquashfs, arguments
from shiftergw.build.stream import stream
from shiftergw.errors import BlobCorrupt, ConversionFailed, ImageTooLarge, RetryLater, duration
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, LayerFile
from shiftergw.model.records import Progress
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.locks import POLL_SECONDS, file_lock, tried_file_lock
from shiftergw.plumbing.timing import pause, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Layer, Report

PATIENCE = 20.0
"""Seconds for which a build waits for another pull's same build and occupies a worker."""

HEAD_START_SECONDS = 2 * POLL_SECONDS
"""Seconds by which the build that examines the layers is ahead of the others at the lock.

It may learn that much later than they do that all layers have arrived.
"""


@dataclass(frozen=True, slots=True)
class BuildTools:
    """The means that all builds of a process share.

    Converted files lie in `directory`, and `binary` is the name of `mksquashfs`. `readers` are
    threads that may wait for layers on their way, so they must not be the threads that bring them.
    `reactor` starts processes.
    """

    directory: Path
    binary: str
    threads: Threads
    readers: Threads
    reactor: Reactor
    clock: IReactorTime


@dataclass(slots=True)
class ImageBuild:
    """A build of one (image id, options).

    Of the builds of all processes for the same converted file, the first examines the layers while
    they arrive. The lock is taken only after all layers have arrived, so no build waits for the
    layers of another one.
    """

    tools: BuildTools
    files: ConvertedFiles
    created: int
    layers: Sequence[Layer]
    options: SquashOptions
    limits: BuildLimits
    report: Report
    on_stage: Callable[[str], None]
    _arrival: Deferred[None] = field(default_factory=Deferred, init=False)
    """Fires when all layers are on this machine."""
    _seconds: dict[str, float] = field(default_factory=dict, init=False)
    """The duration of each stage."""

    async def run(self, use: AsyncExitStack) -> BuiltImage:
        """Return the verified file; it stays in place at least until `use` is closed."""
        threads = self.tools.threads
        async with AsyncExitStack() as locks:
            indexed_layers = await self._lock_and_examine(locks)
            image = await self._find()
            if image is None:
                image = await self._make(indexed_layers or await self._examine())
            descriptor = await threads.acquire(partial(hold, self.files), os.close)
            use.push_async_callback(threads.release, os.close, descriptor)
        return replace(image, seconds=self._seconds)

    async def _lock_and_examine(self, locks: AsyncExitStack) -> list[IndexedLayer] | None:
        """Take the lock of the converted file once all layers have arrived.

        Returns the layers if they were examined meanwhile: that is left to the first build, and it
        is not done if there is a converted file.
        """
        early_lock = tried_file_lock(self.files.early, self.tools.threads)
        is_first = await locks.enter_async_context(early_lock)
        exists = await self.tools.threads.run(self.files.squashfs.exists)
        locking = self._lock_after_arrival(locks, is_first=is_first)
        if exists or not is_first:
            await locking
            return None
        indexed_layers, _ = await gather_or_cancel([self._examine(), locking])
        return indexed_layers

    async def _lock_after_arrival(self, locks: AsyncExitStack, *, is_first: bool) -> None:
        for layer in self.layers:
            await layer.wait_for_file()
        self._arrival.callback(None)
        notify_of_wait = partial(self.on_stage, "WAITING")
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
        limit = self.limits.stages.conversion
        return RetryLater(time, "the same conversion for another pull", failure, limit=limit)

    async def _examine(self) -> list[IndexedLayer]:
        """Index the layers, within the limit of time that starts when they have arrived."""
        self.on_stage("EXAMINATION")
        limit, clock = self.limits.stages.examination, self.tools.clock
        with self._measure_stage("index"):
            return await within(
                limit,
                clock,
                examine_layers(self.layers, self.limits, self.tools.readers, clock, self.report),
                partial(_timeout_error, "Examining", limit, "examination"),
                since=self._arrival,
            )

    async def _find(self) -> BuiltImage | None:
        """Return the converted file that exists, if its bytes are those that were checked."""
        start = self.tools.clock.seconds()
        stop = Event()
        image = await self.tools.threads.run_until(stop.set, verify, self.files, stop)
        if image is not None:
            self._seconds["verify"] = self.tools.clock.seconds() - start
        return image

    async def _make(self, indexed_layers: list[IndexedLayer]) -> BuiltImage:
        """Convert the layers, and put the checked file in place."""
        layers = [layer for layer, _ in indexed_layers]
        clock, threads, stages = self.tools.clock, self.tools.threads, self.limits.stages
        with self._measure_stage("plan"):
            plan = await within(
                stages.examination,
                clock,
                self._plan(indexed_layers),
                partial(_timeout_error, "Planning", stages.examination, "examination"),
            )
        self.on_stage("CONVERSION")
        async with self._removed_on_error(self.files.part):
            await threads.run(_make_room_for, layers, self.tools.directory)
            await threads.run(make_empty, self.files.part)
            size, sha256 = await within(
                stages.conversion,
                clock,
                self._convert(plan, layers),
                partial(_timeout_error, "Converting", stages.conversion, "conversion"),
            )
            await threads.run(install, self.files, size, sha256, plan.report)
        return BuiltImage(self.files.squashfs, size, sha256, plan.report)

    async def _plan(self, indexed_layers: list[IndexedLayer]) -> Plan:
        stop = Event()

        def plan() -> Plan:
            size = _size_of([layer for layer, _ in indexed_layers])
            budget = Budget(self.limits, stop, size)
            return flatten(drain_indexes(indexed_layers), budget, self.options.keep_setuid)

        return await self.tools.threads.run_until(stop.set, plan)

    async def _convert(self, plan: Plan, layers: Sequence[LayerFile]) -> tuple[int, str]:
        """Write the converted file and check it; return its size in bytes and its SHA-256."""
        tools = self.tools
        with self._measure_stage("squash"):
            await Mksquashfs(tools.binary, tools.threads, tools.reactor, tools.clock).run(
                arguments(self.options, self.files.part),
                max(self.created, plan.latest),
                self.files.part,
                partial(stream, plan, layers),
                lambda done: self.report(Progress("squash", done, plan.report.size)),
            )
        with self._measure_stage("check"):
            return await self._check(plan)

    async def _check(self, plan: Plan) -> tuple[int, str]:
        """Compare the new file with its plan, hash it, and sync it to the disk, all at once."""
        tools, part, stop = self.tools, self.files.part, Event()
        _, _, measures = await gather_or_cancel(
            [
                check(part, plan, tools.binary, tools.threads, tools.reactor, tools.clock),
                tools.threads.run(sync, part),
                tools.threads.run_until(stop.set, measure, part, stop),
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
        start = self.tools.clock.seconds()
        yield
        self._seconds[stage] = self.tools.clock.seconds() - start


def _make_room_for(layers: Sequence[LayerFile], directory: Path) -> None:
    """Remove unused converted files until the size of these layers is free on the disk."""
    converted_groups(directory).make_room(_size_of(layers))


def _size_of(layers: Sequence[LayerFile]) -> int:
    """Return the bytes of the files of these layers; raise `BlobCorrupt` if a file is missing."""
    try:
        return sum(path.stat().st_size for path in {layer.path for layer in layers})
    except FileNotFoundError as error:
        raise BlobCorrupt("A layer is no longer in the cache.", detail=str(error)) from error


def _timeout_error(work: str, seconds: float, stage: str) -> ImageTooLarge:
    return ImageTooLarge.for_limit(
        f"{work} the image took longer than {duration(seconds)}.", f"StageLimits.{stage}"
    )
