"""The two steps of a build that differ by builder: reading the layers, and writing the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from shiftergw.errors import ImageTooLarge, duration

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AsyncExitStack
    from pathlib import Path

    from twisted.internet.defer import Deferred

    from shiftergw.model.build_options import BuildLimits, SquashOptions
    from shiftergw.model.packed_data import PackedData
    from shiftergw.oci.flatten import Plan
    from shiftergw.oci.tar import LayerIndex
    from shiftergw.ports import Layer, Report


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What is built: the arguments of `ImageBuilder.build`, apart from the id of the image."""

    created: int
    layers: Sequence[Layer]
    options: SquashOptions
    limits: BuildLimits
    report: Report
    on_stage: Callable[[str], None]
    pack_directory: Path


class LayerConverter(Protocol):
    """Converts the layers of one image: reads them while they arrive, then writes the image.

    `READING` and `WRITING` are the stages of the port that begin with the two steps. `read_stage`
    and `write_stage` name the steps in progress and in measured seconds.
    """

    READING: ClassVar[str]
    WRITING: ClassVar[str]
    read_stage: ClassVar[str]
    write_stage: ClassVar[str]

    async def read_layers(self, arrival: Deferred[None], use: AsyncExitStack) -> list[LayerIndex]:
        """Return the indexes of all layers, lowest first, once all layers are read.

        `arrival` fires when all layers are on this machine; the limit of time counts from then.
        What `write_image` needs besides the layers stays in place at least until `use` is closed.
        Raises the errors of the port.
        """
        ...

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which the image may be written, and written anew.

        The wait for it does not count against the time of the conversion. It has a limit of its
        own, after which it raises `RetryLater`. Cancellable.
        """
        ...

    def space(self) -> int:
        """Return the bytes that the image may take on the disk.

        Blocks. Raises `BlobCorrupt` if what was read is no longer there.
        """
        ...

    async def write_image(self, plan: Plan, output: Path) -> PackedData:
        """Write the image of this plan of the layers into the empty file `output`.

        Called within `turn`. Returns which of its ranges are data of packs. Raises
        `ConversionFailed`, `NoSpace`, `BlobCorrupt`. The caller limits the time, syncs and checks
        the file, and removes it after an error.
        """
        ...

    def advice(self, plan: Plan) -> str:
        """Return what helps if the image of this plan takes too long to write, or ""."""
        ...

    async def repair(self) -> bool:
        """Replace damaged inputs of the image, such as packs; return whether there were any."""
        ...


def timeout_error(work: str, seconds: float, stage: str, advice: str = "") -> ImageTooLarge:
    """Return the error of a step that has exceeded its member of `StageLimits`.

    `advice` is a remedy that is named before the others.
    """
    text = f"{work} the image took longer than {duration(seconds)}."
    error = ImageTooLarge.for_limit(text, f"StageLimits.{stage}")
    return ImageTooLarge(text, remedy=f"{advice} {error.remedy}") if advice else error
