"""Convert an image by packs: each layer becomes a pack while it arrives; the image is composed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, ClassVar

from twisted.internet.defer import DeferredSemaphore

from shiftergw.build.background_packing import BackgroundPacking
from shiftergw.build.compose import Composition, compose
from shiftergw.build.converter import BuildRequest, timeout_error
from shiftergw.build.examination import read_all_layers
from shiftergw.build.pack_files import Pack
from shiftergw.build.pack_search import tools_key
from shiftergw.build.packer import Packer
from shiftergw.build.packing_slots import count_parallel_layers
from shiftergw.build.packing_waits import PackingWaits
from shiftergw.build.stage_meter import StageMeter
from shiftergw.build.written_pack import WrittenPack
from shiftergw.errors import PackCorrupt
from shiftergw.model.packed_data import PackedData
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from shiftergw.build.tools import BuildTools
    from shiftergw.oci.budget import LayerBudget
    from shiftergw.oci.flatten import Plan
    from shiftergw.oci.tar import LayerIndex
    from shiftergw.ports import Layer


@dataclass(slots=True)
class PackConverter:
    """Packs the layers while they arrive, and composes the image of their packs.

    A pack that exists is used, so that only new layers are compressed. New packs are installed
    while the image is planned and composed. The image is not complete before all of them are in
    place.
    """

    READING: ClassVar[str] = "PACKING"
    WRITING: ClassVar[str] = "COMPOSITION"
    read_stage: ClassVar[str] = "pack"
    write_stage: ClassVar[str] = "compose"

    tools: BuildTools
    request: BuildRequest
    _packs: dict[Layer, WrittenPack | Pack] = field(default_factory=dict, init=False)
    _packing: _LayerPacking | None = field(default=None, init=False)

    async def read_layers(self, arrival: Deferred[None], use: AsyncExitStack) -> list[LayerIndex]:
        """See `LayerConverter`."""
        request, tools = self.request, self.tools
        limit = request.limits.stages.conversion
        packs = await within(
            limit,
            tools.clock,
            self._pack_layers(use),
            partial(timeout_error, "Packing", limit, "conversion"),
            since=arrival,
        )
        self._packs = dict(zip(request.layers, packs, strict=True))
        return [pack.index for pack in packs]

    async def _pack_layers(self, use: AsyncExitStack) -> list[WrittenPack | Pack]:
        request, tools = self.request, self.tools
        parallel_layers = count_parallel_layers(request.options, len(set(request.layers)))
        waits = PackingWaits(request.on_stage)
        packer = Packer(
            tools,
            request.options,
            await tools_key(tools, request.options),
            request.limits.stages.conversion,
            request.pack_directory,
            waits.waiting,
            waits.queueing,
        )
        self._packing = _LayerPacking(packer, DeferredSemaphore(parallel_layers), use, waits)
        return await read_all_layers(
            request.layers,
            request.limits,
            tools.clock,
            self.read_stage,
            request.report,
            self._packing.pack,
        )

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return a context without a wait: composing needs no slot; see `LayerConverter`."""
        return nullcontext()

    def space(self) -> int:
        """Return the bytes of the packs, of which the image has parts; see `LayerConverter`."""
        return sum({pack.path: pack.size for pack in self._packs.values()}.values())

    async def write_image(self, plan: Plan, output: Path) -> PackedData:
        """See `LayerConverter`."""
        request, tools, stop = self.request, self.tools, Event()
        packs = [self._packs[layer] for layer in request.layers]

        def compose_image() -> Composition:
            arguments = (plan, packs, request.options, request.created, output, stop, meter.set)
            return compose(*arguments)

        meter = StageMeter(self.write_stage, request.report)
        with meter.reporting(tools.clock):
            composition = await tools.threads.run_until(stop.set, compose_image)
            digests = {pack.path: pack.data_sha256 for pack in await self._installed_packs()}
        return composition.data_of(digests)

    async def _installed_packs(self) -> list[Pack]:
        """Return all packs once they are in place; raise the error of a packing that failed."""
        assert self._packing is not None  # the layers were read
        packs: list[Pack] = []
        for layer, pack in self._packs.items():
            packs.append(await self._packing.wait_until_installed(layer, pack))
            self._packs[layer] = packs[-1]
        return packs

    def advice(self, plan: Plan) -> str:  # noqa: ARG002 - no tree is slow
        """Return nothing: no kind of tree takes longer than others."""
        return ""

    async def repair(self) -> bool:
        """Make damaged packs anew; return whether there were any.

        All packs are hashed once they are installed. The same layer gives the same pack, so the
        plan stays valid. A pack that was not installed before may have been made again meanwhile,
        and counts as damaged. Raises `PackCorrupt` if a layer is not here to be packed anew.
        """
        assert self._packing is not None  # the layers were read
        self.request.on_stage("REPAIR")
        meter = StageMeter("repair", self.request.report, sum(layer.size for layer in self._packs))
        is_damaged = any(isinstance(pack, WrittenPack) for pack in self._packs.values())
        missing_layer: PackCorrupt | None = None
        with meter.reporting(self.tools.clock):
            await self._installed_packs()
            for layer in self._packs:
                try:
                    pack = await self._packing.replace_damaged(layer, meter)
                except PackCorrupt as error:
                    missing_layer = error  # raised once all damaged packs are removed
                    continue
                if pack is not None:
                    self._packs[layer] = pack
                    is_damaged = True
        if missing_layer is not None:
            raise missing_layer
        return is_damaged


@dataclass(slots=True)
class _LayerPacking:
    """The packing of the layers of one image, whose packs stay in place until `use` is closed.

    `turns` limits how many layers are packed at the same time.
    """

    packer: Packer
    turns: DeferredSemaphore
    use: AsyncExitStack
    waits: PackingWaits
    _costs: dict[Layer, LayerBudget] = field(default_factory=dict, init=False)
    _packings: dict[Layer, BackgroundPacking] = field(default_factory=dict, init=False)

    async def pack(
        self, layer: Layer, cost: LayerBudget, report: Callable[[int], None]
    ) -> WrittenPack | Pack:
        """Return the pack of a layer: the one that exists, or a new one that was written."""
        packer = self.packer
        self._costs[layer] = cost
        await layer.wait_for_opening()  # without a turn: a registry may ask to retry later
        if await packer.tools.threads.run(packer.files(layer.digest).exist):
            # The pack may be of another user's private image. It may replace the layer (no `path`)
            # only if the pull found it beside the blobs of its own image
            # (`BlobCache.pack_directory`): this pull has read the manifest with its own login
            # (`Pipeline.resolve`), and may use cached blobs there, too. Otherwise the pack is used
            # only after the layer has arrived for this pull.
            path = await layer.wait_for_file()
            pack = await packer.find(layer.digest, layer.diff_id, cost, self.use)
            if pack is not None:
                report(layer.size)
                return pack
            if path is None:
                await packer.discard_damaged(layer.digest)
                raise PackCorrupt("A converted layer was damaged in the cache.")
        turn = await self.turns.acquire()
        with self.waits.packing():
            make = partial(packer.pack, layer, cost, report, self.use)
            packing = self._packings[layer] = BackgroundPacking(make, turn.release)
            self.use.push_async_exit(packing.leave)
            written_pack = await packing.wait_until_written()
        report(layer.size)
        return written_pack

    async def wait_until_installed(self, layer: Layer, pack: WrittenPack | Pack) -> Pack:
        """Return this pack of a layer once it is in place."""
        if isinstance(pack, Pack):
            return pack
        return await self._packings[layer].wait_until_installed()

    async def replace_damaged(self, layer: Layer, meter: StageMeter) -> Pack | None:
        """Return a new pack of a layer whose pack is damaged, or None if it is whole.

        Adds the size of the layer to the bytes of `meter`.
        """
        packer, start, pack = self.packer, meter.done, None

        def set_position(position: int) -> None:
            meter.done = start + min(position, layer.size)

        if await packer.discard_damaged(layer.digest):
            pack = await packer.pack(layer, self._costs[layer], set_position, self.use)
        set_position(layer.size)
        return pack
