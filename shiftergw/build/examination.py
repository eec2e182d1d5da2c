"""Read all layers of an image side by side, each while it arrives, and index them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from shiftergw.errors import BlobCorrupt, ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import LayerFile, Opening
from shiftergw.model.records import Progress
from shiftergw.oci.budget import Budget, LayerBudget
from shiftergw.oci.compression import opening_of
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import ticking

T = TypeVar("T")

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Layer, Report

    ReadLayer = Callable[
        [Layer, LayerBudget, Callable[[int], None]], Coroutine[Deferred[Any], Any, T]
    ]
    """Reads a layer, counts its cost, and reports the compressed bytes that it has read so far."""

IndexedLayer = tuple[LayerFile, LayerIndex]
"""A layer that has arrived, and the index of its entries."""


async def read_all_layers(
    layers: Sequence[Layer],
    limits: BuildLimits,
    clock: IReactorTime,
    stage: str,
    report: Report,
    read: ReadLayer[T],
) -> list[T]:
    """Return what `read` returns for each layer, once all layers have arrived.

    A layer that occurs several times in the image is read once, and its cost counts each time.
    `read` runs for all layers side by side, and begins with the largest. The progress is that of
    `stage`. Raises the errors of `read`, and `ImageTooLarge`.
    """
    budget = Budget(limits, stored_size=None)
    done = dict.fromkeys(layers, 0)
    positions = done.copy()
    times = Counter(layers)
    order = sorted(done, key=lambda layer: -layer.size)
    size = sum(layer.size for layer in order)

    def set_position(layer: Layer, position: int) -> None:
        positions[layer] = position
        # A layer whose download proved wrong is read again, from its beginning.
        done[layer] = min(max(done[layer], position), layer.size)

    async def set_stored() -> None:
        for layer in order:
            await layer.wait_for_file()
        budget.set_stored_size(size)

    async def read_all() -> list[T]:
        return await gather_or_cancel(
            read(layer, budget.layer(times[layer]), partial(set_position, layer)) for layer in order
        )

    def report_progress() -> None:
        report(Progress(stage, sum(done.values()), size, signs=sum(positions.values())))

    report_progress()
    with ticking(1.0, clock, report_progress):
        results, _ = await gather_or_cancel([read_all(), set_stored()])
    report_progress()
    assert results is not None
    by_layer = dict(zip(order, results, strict=True))
    return [by_layer[layer] for layer in layers]


async def examine_layers(
    layers: Sequence[Layer],
    limits: BuildLimits,
    readers: Threads,
    clock: IReactorTime,
    report: Report,
) -> list[IndexedLayer]:
    """Index all layers in threads of `readers`; see `read_all_layers`.

    Raises `LayerInvalid`, `BlobCorrupt`, `ImageTooLarge`.
    """

    async def index(
        layer: Layer, cost: LayerBudget, report_position: Callable[[int], None]
    ) -> IndexedLayer:
        async def read(opening: Opening) -> LayerIndex:
            stop = Event()
            return await readers.run_until(
                stop.set, index_layer, opening, layer.diff_id, cost, stop, report_position
            )

        early = None
        opening = await layer.wait_for_opening()
        if opening is not None:
            # The digest of these bytes is not verified yet: the download may be damaged.
            with suppress(BlobCorrupt, LayerInvalid, ImageTooLarge):
                early = await read(opening)
            if early is None:
                cost.reset()  # other layers must not pay for them
        path = await layer.wait_for_file()
        assert path is not None  # packs stand for layers where the options use packs
        entries = await read(opening_of(path)) if early is None else early
        return LayerFile(path, layer.diff_id), entries

    return await read_all_layers(layers, limits, clock, "index", report, index)


def drain_indexes(indexes: list[LayerIndex]) -> Iterator[LayerIndex]:
    """Yield the indexes and empty the list, so that each is freed after its last use."""
    times = Counter(map(id, indexes))
    indexes.reverse()
    while indexes:
        index = indexes.pop()
        times[id(index)] -= 1
        yield LayerIndex(list(index.entries)) if times[id(index)] else index
