"""Index all layers of an image, each while it arrives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.errors import BlobCorrupt, ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import LayerFile, Opening
from shiftergw.model.records import Progress
from shiftergw.oci.budget import Budget, LayerBudget
from shiftergw.oci.compression import opening_of
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import ticking

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Layer, Report

IndexedLayer = tuple[LayerFile, LayerIndex]
"""A layer that has arrived, and the index of its entries."""


async def examine_layers(
    layers: Sequence[Layer],
    limits: BuildLimits,
    readers: Threads,
    clock: IReactorTime,
    report: Report,
) -> list[IndexedLayer]:
    """Index all layers in threads of `readers`, and return when all have arrived.

    A layer that occurs several times in the image is read once, and its cost counts each time. The
    largest of the layers that have arrived is read first, the others beside it. Raises
    `LayerInvalid`, `BlobCorrupt`, `ImageTooLarge`.
    """
    budget = Budget(limits, stored_size=None)
    done = dict.fromkeys(layers, 0)
    times = Counter(layers)
    order = sorted(done, key=lambda layer: -layer.size)

    async def read(layer: Layer, cost: LayerBudget, opening: Opening) -> LayerIndex:
        stop = Event()
        set_done = partial(done.__setitem__, layer)
        return await readers.run_until(
            stop.set, index_layer, opening, layer.diff_id, cost, stop, set_done
        )

    async def index(layer: Layer) -> IndexedLayer:
        cost, early = budget.layer(times[layer]), None
        opening = await layer.wait_for_opening()
        if opening is not None:
            # The digest of these bytes is not verified yet: the download may be damaged.
            with suppress(BlobCorrupt, LayerInvalid, ImageTooLarge):
                early = await read(layer, cost, opening)
            if early is None:
                cost.reset()  # other layers must not pay for them
        path = await layer.wait_for_file()
        entries = await read(layer, cost, opening_of(path)) if early is None else early
        return LayerFile(path, layer.diff_id), entries

    async def set_stored() -> None:
        for layer in order:
            await layer.wait_for_file()
        budget.set_stored_size(sum(layer.size for layer in order))

    async def index_all() -> list[IndexedLayer]:
        return await gather_or_cancel(index(layer) for layer in order)

    def report_progress() -> None:
        report(Progress("index", sum(done.values()), sum(layer.size for layer in order)))

    with ticking(1.0, clock, report_progress):
        indexed_layers, _ = await gather_or_cancel([index_all(), set_stored()])
    report_progress()
    assert indexed_layers is not None
    by_layer = dict(zip(order, indexed_layers, strict=True))
    return [by_layer[layer] for layer in layers]


def drain_indexes(indexed_layers: list[IndexedLayer]) -> Iterator[LayerIndex]:
    """Yield the indexes and empty the list, so that each is freed after its last use."""
    times = Counter(id(index) for _, index in indexed_layers)
    indexed_layers.reverse()
    while indexed_layers:
        index = indexed_layers.pop()[1]
        times[id(index)] -= 1
        yield LayerIndex(list(index.entries)) if times[id(index)] else index
