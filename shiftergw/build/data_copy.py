"""Copy the data of packs into an image by a thread, beside the writing of the image's metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from shiftergw.build.data_layout import PackRanges
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_contents import OpenPack
from shiftergw.oci.compression import StopRequested


@contextmanager
def copied_data(
    packs: Sequence[OpenPack],
    ranges: Sequence[PackRanges],
    image: ImageOutput,
    report: Callable[[int], None],
) -> Iterator[None]:
    """Copy ranges of these packs into an image while the block writes what follows them.

    The position of `image` is moved behind the last range before the block begins. At the end of
    the block, waits until all is copied; an error of the block stops the copy. In both cases the
    thread has ended. `report` gets the bytes of each step, in the thread that copies. Raises
    `BlobCorrupt` if a pack ends too early, `StopRequested` and `OSError`.
    """
    is_abandoned = Event()

    def report_step(count: int) -> None:
        if is_abandoned.is_set():
            raise StopRequested
        report(count)

    def copy() -> None:
        for pack, pack_ranges in zip(packs, ranges, strict=True):
            for source, target, length in pack_ranges:
                image.copy(pack.descriptor, source, target, length, report_step)

    for pack_ranges in ranges:
        if pack_ranges.targets:
            image.position = pack_ranges.targets[-1] + pack_ranges.lengths[-1]
    with ThreadPoolExecutor(1, "copy") as executor:
        copying = executor.submit(copy)
        try:
            yield
        except BaseException:
            is_abandoned.set()
            raise
        copying.result()
