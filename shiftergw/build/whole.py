"""Convert an image as a whole: one tar of its tree, in the order of the plan, into `mksquashfs`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from twisted.logger import Logger

from shiftergw.build.converter import BuildRequest, timeout_error
from shiftergw.build.examination import examine_layers
from shiftergw.build.mksquashfs import Mksquashfs, arguments
from shiftergw.build.packing_slots import PackingSlots, share_of
from shiftergw.build.stage_meter import StageMeter
from shiftergw.build.stream import stream
from shiftergw.errors import BlobCorrupt, ConversionFailed, RetryLater, duration
from shiftergw.model.images import LayerFile
from shiftergw.model.packed_data import PackedData
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from shiftergw.build.tools import BuildTools
    from shiftergw.oci.flatten import Plan
    from shiftergw.oci.tar import LayerIndex

RETRY_SECONDS = 20.0
"""Seconds after which a build that has waited too long for its slot is tried again."""

MOST_QUICK_ENTRIES = 20_000
"""Entries of a directory that `mksquashfs -tar` takes in about 6 seconds.

It compares each name with all that the directory has so far: ten times as many take 10 minutes.
"""

_log = Logger()


@dataclass(slots=True)
class WholeConverter:
    """Indexes the layers while they arrive; reads them once more for the data of their files."""

    READING: ClassVar[str] = "EXAMINATION"
    WRITING: ClassVar[str] = "CONVERSION"
    read_stage: ClassVar[str] = "index"
    write_stage: ClassVar[str] = "squash"

    tools: BuildTools
    request: BuildRequest
    _files: list[LayerFile] = field(default_factory=list, init=False)
    """The layers that were indexed, lowest first."""
    _holders: int = field(default=1, init=False)
    """How many slots of the machine were held when this image got its slot."""

    async def read_layers(self, arrival: Deferred[None], use: AsyncExitStack) -> list[LayerIndex]:  # noqa: ARG002 - the layers stay
        """See `LayerConverter`."""
        request, tools = self.request, self.tools
        limit = request.limits.stages.examination
        indexed_layers = await within(
            limit,
            tools.clock,
            examine_layers(
                request.layers, request.limits, tools.readers, tools.clock, request.report
            ),
            partial(timeout_error, "Examining", limit, "examination"),
            since=arrival,
        )
        self._files = [file for file, _ in indexed_layers]
        return [index for _, index in indexed_layers]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of the slots that all packings of this machine share; see `LayerConverter`.

        The caller may hold the lock of the converted file meanwhile: another build of that file
        would only wait for this one.
        """
        request, tools = self.request, self.tools
        size = sum(layer.size for layer in dict.fromkeys(request.layers))
        slots = PackingSlots(tools, request.options, self._queueing)
        async with AsyncExitStack() as holding:
            slot = await within(
                request.limits.stages.conversion,
                tools.clock,
                holding.enter_async_context(slots.take(size)),
                self._wait_error,
            )
            self._holders = slot.holders
            yield

    def _wait_error(self) -> RetryLater:
        limit = self.request.limits.stages.conversion
        failure = ConversionFailed(
            f"The conversion has waited for {duration(limit)} for others on this machine.",
            remedy="Try again later.",
        )
        time = self.tools.clock.seconds() + RETRY_SECONDS
        return RetryLater(time, "other conversions on this machine", failure, limit=limit)

    def space(self) -> int:
        """Return the bytes of all layers; see `LayerConverter`."""
        try:
            return sum(path.stat().st_size for path in {file.path for file in self._files})
        except FileNotFoundError as error:
            raise BlobCorrupt("A layer is no longer in the cache.", detail=str(error)) from error

    async def write_image(self, plan: Plan, output: Path) -> PackedData:
        """See `LayerConverter`. The file has no data of packs."""
        request, tools, size = self.request, self.tools, plan.report.size
        options = share_of(request.options, self._holders)
        if advice := self.advice(plan):
            request.on_stage("SLOW DIRECTORY")
            _log.warn("a conversion will take long: {advice}", advice=advice)
        meter = StageMeter(self.write_stage, request.report, size)
        with meter.reporting(tools.clock):
            await Mksquashfs(tools.binary, tools.threads, tools.reactor, tools.clock).run(
                arguments(options, output),
                max(request.created, plan.latest),
                output,
                partial(stream, plan, self._files),
                lambda done: meter.set(done, size),
                note_work=meter.note_work,
            )
        return PackedData()

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """Tell that the image waits for a slot of the machine, until it is written."""
        self.request.on_stage(self.WRITING)
        self.request.on_stage("QUEUED")
        yield

    def advice(self, plan: Plan) -> str:
        """See `LayerConverter`; the time is quadratic in the entries of a directory."""
        if plan.most_entries <= MOST_QUICK_ENTRIES:
            return ""
        return (
            f"A directory of the image has {plan.most_entries:,} entries, which take mksquashfs"
            " very long: spread them over several directories, or ask the gateway's admins to set"
            ' `"Builder": "packs"`, which converts such directories quickly.'
        )

    async def repair(self) -> bool:
        """Return False: layers that are damaged are fetched again (`Pipeline`)."""
        return False
