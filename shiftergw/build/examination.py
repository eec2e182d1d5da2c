"""Read all layers of an image, each while it arrives, and hand their indexes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.errors import BlobCorrupt, ImageTooLarge, LayerInvalid
from shiftergw.image import BuildLimits, LayerFile, Opening
from shiftergw.model import Progress
from shiftergw.oci.budget import Budget, LayerBudget
from shiftergw.oci.compression import opening_of
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import ticking

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Layer, Report

Examined = tuple[LayerFile, LayerIndex]
"""A layer that has arrived, and what it holds."""


async def examine_layers(
    layers: Sequence[Layer],
    limits: BuildLimits,
    readers: Threads,
    clock: IReactorTime,
    report: Report,
) -> list[Examined]:
    """Index all layers in threads of `readers`, and return when all have arrived.

    A layer that stands in the image several times is read once, and counted as often. Of those
    that have arrived the largest goes first: the others are read beside it. Raises `LayerInvalid`,
    `BlobCorrupt`, `ImageTooLarge`.
    """
    budget = Budget(limits, stored_size=None)
    done = dict.fromkeys(layers, 0)
    times = Counter(layers)
    order = sorted(done, key=lambda layer: -layer.size)

    async def read(layer: Layer, cost: LayerBudget, opening: Opening) -> LayerIndex:
        stop = Event()
        tell = partial(done.__setitem__, layer)
        return await readers.run_until(
            stop.set, index_layer, opening, layer.diff_id, cost, stop, tell
        )

    async def index(layer: Layer) -> Examined:
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

    async def index_all() -> list[Examined]:
        return await gather_or_cancel(index(layer) for layer in order)

    def tell() -> None:
        report(Progress("index", sum(done.values()), sum(layer.size for layer in order)))

    with ticking(1.0, clock, tell):
        indexed, _ = await gather_or_cancel([index_all(), set_stored()])
    tell()
    assert indexed is not None
    by_layer = dict(zip(order, indexed, strict=True))
    return [by_layer[layer] for layer in layers]


def handed_over(examined: list[Examined]) -> Iterator[LayerIndex]:
    """Yield the indexes, keeping none: each is free once it was applied for the last time."""
    times = Counter(id(index) for _, index in examined)
    examined.reverse()
    while examined:
        index = examined.pop()[1]
        times[id(index)] -= 1
        yield LayerIndex(list(index.entries)) if times[id(index)] else index
