"""From layers to one squashfs file that was checked against its plan, shared by all deliveries."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.build.check import check
from shiftergw.build.converted import (
    ConvertedFiles,
    hold,
    install,
    make_empty,
    make_room,
    measure,
    room_of,
    sweep,
    sync,
    verified,
)
from shiftergw.build.examination import Examined, examine_layers, handed_over
from shiftergw.build.mksquashfs import Mksquashfs, arguments
from shiftergw.build.stream import stream
from shiftergw.errors import (
    BlobCorrupt,
    ConversionFailed,
    ImageTooLarge,
    NoSpace,
    RetryLater,
    amount,
    duration,
)
from shiftergw.image import BuildLimits, BuiltImage, LayerFile, SquashOptions
from shiftergw.model import Progress
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.files import private_directory
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
"""Whoever is examining the layers goes first: he may hear so much later that all have arrived."""


class SquashBuilder:
    """Keeps the port `ImageBuilder`: layers in, a converted and checked squashfs file out."""

    def __init__(
        self,
        directory: Path,
        binary: str,
        threads: Threads,
        readers: Threads,
        reactor: Reactor,
        clock: IReactorTime,
    ) -> None:
        """Build in `directory` with the `mksquashfs` called `binary`.

        `readers` are threads that may wait for layers on their way, so none of those that bring
        them. `reactor` starts processes. The directory is made, and closed to others, on first use.
        """
        self._directory = directory
        self._binary = binary
        self._threads = threads
        self._readers = readers
        self._reactor = reactor
        self._clock = clock

    @asynccontextmanager
    async def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[Layer],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        on_stage: Callable[[str], None],
    ) -> AsyncIterator[BuiltImage]:
        """See the port. One build at a time for each (id, options), whoever asks; others wait.

        Nobody waits for another's layers to arrive, though: who has all of his builds. Until then
        one of those who ask examines what is there.
        """
        files = ConvertedFiles(self._directory, image_id, options.key)
        seconds: dict[str, float] = {}

        async def examine() -> list[Examined]:
            on_stage("EXAMINATION")
            with self._timed("index", seconds):
                return await within(
                    limits.stages.examination,
                    self._clock,
                    examine_layers(layers, limits, self._readers, self._clock, report),
                    partial(_too_slow, "Examining", limits.stages.examination, "examination"),
                    since=arrived,
                )

        arrived: Deferred[None] = Deferred()

        async def arrive_and_lock() -> None:
            for layer in layers:
                await layer.wait_for_file()
            arrived.callback(None)
            wait = partial(on_stage, "WAITING")
            if not first:
                wait()
                await pause(HEAD_START_SECONDS, self._clock)
            locking = file_lock(
                files.lock,
                self._threads,
                self._clock,
                wait if first else None,
                PATIENCE,
                partial(self._converted_elsewhere, limits.stages.conversion),
            )
            await stack.enter_async_context(locking)

        async with AsyncExitStack() as use:
            with _disk_errors():
                await self._threads.run(private_directory, self._directory)
                async with AsyncExitStack() as stack:
                    examined: list[Examined] | None = None
                    early = tried_file_lock(files.early, self._threads)
                    first = await stack.enter_async_context(early)
                    exists = await self._threads.run(files.squashfs.exists)
                    if first and not exists:
                        examined, _ = await gather_or_cancel([examine(), arrive_and_lock()])
                    else:
                        await arrive_and_lock()
                    built = await self._found(files)
                    if built is None:
                        examined = examined or await examine()
                        built = await self._made(
                            files, created, examined, options, limits, report, on_stage
                        )
                    held = await self._threads.acquire(partial(hold, files), os.close)
                    use.push_async_callback(self._threads.release, os.close, held)
            yield replace(built, seconds={**seconds, **built.seconds})

    async def has(self, image_id: str, options: SquashOptions) -> bool:
        """Return whether the converted file of (image id, options) is here, unverified."""
        files = ConvertedFiles(self._directory, image_id, options.key)
        return await self._threads.run(files.exist)

    async def check_space(self, size: int) -> None:
        """Refuse layers whose squashfs cannot fit, even if all unused files were removed.

        It is about as large as they are. Half of that is asked for: a later layer may delete much
        of an earlier one.
        """
        with _disk_errors():
            room = await self._threads.run(room_of, self._directory)
        if room < size // 2:
            raise NoSpace(
                f"The converted image needs about {amount(size)} and the gateway has"
                f" {amount(room)} for it."
            )

    async def sweep(self, before: float) -> int:
        """Remove what was last used before this time; return how many were removed.

        What is locked or in use stays. Time is compared with the files' own (seconds since 1970).
        """
        with _disk_errors():
            return await self._threads.run(sweep, self._directory, before)

    def _converted_elsewhere(self, limit: float) -> RetryLater:
        """Return the error of a build that has waited long enough for another pull's build."""
        failure = ConversionFailed(
            "The same conversion for another pull did not end.", remedy="Try again later."
        )
        at = self._clock.seconds() + PATIENCE
        return RetryLater(at, "the same conversion for another pull", failure, limit=limit)

    async def _found(self, files: ConvertedFiles) -> BuiltImage | None:
        """Return the converted file that is there already, if it is what its sidecar says."""
        start = self._clock.seconds()
        stop = Event()
        built = await self._threads.run_until(stop.set, verified, files, stop)
        if built is not None:
            built.seconds["verify"] = self._clock.seconds() - start
        return built

    async def _made(
        self,
        files: ConvertedFiles,
        created: int,
        examined: list[Examined],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        on_stage: Callable[[str], None],
    ) -> BuiltImage:
        seconds: dict[str, float] = {}
        layers = [layer for layer, _ in examined]
        stages = limits.stages
        with self._timed("plan", seconds):
            plan = await within(
                stages.examination,
                self._clock,
                self._planned(examined, limits, options),
                partial(_too_slow, "Planning", stages.examination, "examination"),
            )
        on_stage("CONVERSION")

        async def convert() -> tuple[int, str]:
            with self._timed("squash", seconds):
                await Mksquashfs(self._binary, self._threads, self._reactor, self._clock).run(
                    arguments(options, files.part),
                    max(created, plan.latest),
                    files.part,
                    partial(stream, plan, layers),
                    lambda done: report(Progress("squash", done, plan.report.size)),
                )
            with self._timed("check", seconds):
                return await self._checked(files.part, plan)

        async with self._removed_on_error(files.part):
            await self._threads.run(_make_room_for, layers, self._directory)
            await self._threads.run(make_empty, files.part)
            size, sha256 = await within(
                stages.conversion,
                self._clock,
                convert(),
                partial(_too_slow, "Converting", stages.conversion, "conversion"),
            )
            await self._threads.run(install, files, size, sha256, plan.report)
        return BuiltImage(files.squashfs, size, sha256, plan.report, seconds)

    async def _planned(
        self, examined: list[Examined], limits: BuildLimits, options: SquashOptions
    ) -> Plan:
        """Return the plan of the image."""
        stop = Event()

        def plan() -> Plan:
            budget = Budget(limits, stop, _size_of([layer for layer, _ in examined]))
            return flatten(handed_over(examined), budget, options.keep_setuid)

        return await self._threads.run_until(stop.set, plan)

    @asynccontextmanager
    async def _removed_on_error(self, path: Path) -> AsyncIterator[None]:
        """Remove `path` in a thread if the block raises: the unlink of a large file takes long."""
        try:
            yield
        except Exception:
            with suppress(OSError):
                await self._threads.release(path.unlink, missing_ok=True)
            raise

    async def _checked(self, part: Path, plan: Plan) -> tuple[int, str]:
        """Compare a new file with its plan, hash it and bring it to the disk, all at once."""
        stop = Event()
        _, _, found = await gather_or_cancel(
            [
                check(part, plan, self._binary, self._threads, self._reactor, self._clock),
                self._threads.run(sync, part),
                self._threads.run_until(stop.set, measure, part, stop),
            ]
        )
        assert found is not None
        return found

    @contextmanager
    def _timed(self, stage: str, seconds: dict[str, float]) -> Iterator[None]:
        start = self._clock.seconds()
        yield
        seconds[stage] = self._clock.seconds() - start


def _disk_errors() -> AbstractContextManager[None]:
    """Turn errors about the gateway's own files into errors that the port may raise."""
    return translated_disk_errors(
        "A disk of the gateway is full.",
        lambda _: ConversionFailed("The gateway could not read or write its own files."),
    )


def _make_room_for(layers: Sequence[LayerFile], directory: Path) -> None:
    """Remove unused converted files until as many bytes are free as these layers have."""
    make_room(directory, _size_of(layers))


def _size_of(layers: Sequence[LayerFile]) -> int:
    """Return the bytes of the files of these layers; raise `BlobCorrupt` if one is gone."""
    try:
        return sum(path.stat().st_size for path in {layer.path for layer in layers})
    except FileNotFoundError as error:
        raise BlobCorrupt("A layer is no longer in the cache.", detail=str(error)) from error


def _too_slow(work: str, seconds: float, stage: str) -> ImageTooLarge:
    return ImageTooLarge.for_limit(
        f"{work} the image took longer than {duration(seconds)}.", f"StageLimits.{stage}"
    )
