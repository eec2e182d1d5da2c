"""Where the data of packs lies in the file of an image.

Data blocks and fragment blocks that the image needs are copied as they are, in the order of the
packs and of their places there; neighbors form one range. A fragment block holds the tails of many
files. If the image needs too few of them, or the block is nearly empty, it is opened instead, and
the tails go into new blocks (`tail_blocks`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import pairwise
from pathlib import Path

from shiftergw.build.image_output import ALIGNMENT
from shiftergw.build.pack_contents import OpenPack, PackContents
from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK
from shiftergw.squashfs.nodes import FragmentBlock

DEAD_LIMIT = 100
"""A fragment block is opened if more than a part in this number of its bytes is not needed."""

EMPTY_LIMIT = 4
"""Fragment blocks that have less than a part in this number of a block's bytes are combined.

Every pack ends with a block that is not full. Small blocks compress worse.
"""

GAP_LIMIT = 256
"""A range keeps its offset in `ALIGNMENT` if the gap is at most a part in this number of it."""


@dataclass(slots=True)
class PackRanges:
    """Ranges of the pack at `path` that are in an image: their positions in both, their lengths.

    They are in ascending order in both, and do not overlap. All numbers are bytes. The data area of
    the pack begins at `data_start`.
    """

    path: Path
    data_start: int
    sources: array[int] = field(default_factory=lambda: array("Q"))
    targets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield position in the pack, position in the image, and bytes of each range."""
        return zip(self.sources, self.targets, self.lengths, strict=True)

    def in_data(self) -> Iterator[tuple[int, int, int]]:
        """Yield position in the data area, position in the image, and bytes of each range."""
        return ((source - self.data_start, target, length) for source, target, length in self)

    def move(self, position: int) -> int:
        """Return the position in the image of what is at a position in the pack."""
        index = bisect_right(self.sources, position) - 1
        return self.targets[index] + position - self.sources[index]


@dataclass(slots=True)
class DataLayout:
    """Ranges of each pack, fragment blocks of the image, and the tails that need new blocks."""

    ranges: list[PackRanges] = field(default_factory=list)
    fragments: list[FragmentBlock] = field(default_factory=list)
    tails: list[array[int]] = field(default_factory=list)
    """For each pack the places of the contents whose tails are in blocks that are opened."""
    tails_size: int = 0
    """Bytes of all these tails."""

    @property
    def copied_size(self) -> int:
        """Return the bytes of all ranges."""
        return sum(sum(ranges.lengths) for ranges in self.ranges)


def lay_out(contents: PackContents, position: int) -> DataLayout:
    """Lay out the data that is needed, from `position` of the image on.

    In the columns of `contents` the positions of all needed contents become those in the image, and
    so do the numbers of their fragments, except those in `tails`. Raises `StopRequested` soon after
    the stop flag of `contents` is set.
    """
    layout = DataLayout()
    uses = [_FragmentUse.measure(contents, pack) for pack in contents.packs]
    limit = contents.columns.block_size // EMPTY_LIMIT
    if sum(use.opened_blocks(limit) for use in uses) == 1:
        limit = 0  # there is nothing to combine a small block with
    for pack, use in zip(contents.packs, uses, strict=True):
        ranges = PackRanges(pack.path, pack.data_start)
        numbers = _number_fragments(use, limit, len(layout.fragments))
        position = _add_ranges(ranges, _segments(contents, pack, numbers), position)
        layout.ranges.append(ranges)
        layout.fragments += (
            FragmentBlock(ranges.move(start), size)
            for (start, size), number in zip(pack.fragments, numbers, strict=True)
            if number != NO_FRAGMENT
        )
        tails = _move_contents(contents, pack, ranges, numbers)
        layout.tails.append(tails)
        layout.tails_size += sum(
            contents.columns.sizes[place] % contents.columns.block_size for place in tails
        )
    return layout


@dataclass(frozen=True, slots=True)
class _FragmentUse:
    """For each fragment block of a pack: the bytes of its tails, and of those that are needed."""

    sizes: array[int]
    needed_sizes: array[int]

    @classmethod
    def measure(cls, contents: PackContents, pack: OpenPack) -> _FragmentUse:
        """Measure the fragment blocks of a pack."""
        columns, is_needed = contents.columns, contents.is_needed
        block_size = columns.block_size
        zeros = bytes(8 * len(pack.fragments))
        sizes, needed_sizes = array("Q", zeros), array("Q", zeros)
        for place in contents.all_places(pack):
            fragment = columns.fragments[place]
            if fragment != NO_FRAGMENT:
                tail = columns.sizes[place] % block_size
                sizes[fragment] += tail
                if is_needed[place]:
                    needed_sizes[fragment] += tail
        return cls(sizes, needed_sizes)

    def are_copied(self, limit: int) -> Iterator[bool]:
        """Yield for each block whether it is copied as it is.

        It is not if too much of it is not needed, or if fewer than `limit` bytes of it are needed.
        """
        for size, needed_size in zip(self.sizes, self.needed_sizes, strict=True):
            dead_size = size - needed_size
            yield needed_size >= max(limit, 1) and dead_size * DEAD_LIMIT <= size

    def opened_blocks(self, limit: int) -> int:
        """Return how many blocks are needed and not copied."""
        uses = zip(self.needed_sizes, self.are_copied(limit), strict=True)
        return sum(size > 0 and not is_copied for size, is_copied in uses)


def _number_fragments(use: _FragmentUse, limit: int, number: int) -> array[int]:
    """Return the number in the image of each fragment block of a pack, the first being `number`.

    Blocks that are not copied have `NO_FRAGMENT`.
    """
    numbers = array("I")
    for is_copied in use.are_copied(limit):
        numbers.append(number if is_copied else NO_FRAGMENT)
        number += is_copied
    return numbers


def _segments(
    contents: PackContents, pack: OpenPack, numbers: array[int]
) -> Iterator[tuple[int, int]]:
    """Yield position and bytes of all data of a pack that is copied, in ascending order."""
    columns = contents.columns
    files = (
        (columns.starts[place], size)
        for place in contents.needed_places(pack)
        if (size := columns.stored_size(place))
    )
    fragments = (
        (start, size & ~STORED_BLOCK)
        for (start, size), number in zip(pack.fragments, numbers, strict=True)
        if number != NO_FRAGMENT
    )
    return merge(_ascending(files), _ascending(fragments))


def _ascending(segments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return segments in ascending order, as they mostly are already."""
    segments = list(segments)
    if any(second < first for first, second in pairwise(segments)):
        segments.sort()
    return segments


def _add_ranges(ranges: PackRanges, segments: Iterable[tuple[int, int]], position: int) -> int:
    """Combine segments into ranges, from `position` of the image on; return the end."""
    sources, lengths = ranges.sources, ranges.lengths
    end = -1
    for start, size in segments:
        if start > end:
            sources.append(start)
            lengths.append(0)
        end = max(end, start + size)
        lengths[-1] = end - sources[-1]
    for source, length in zip(sources, lengths, strict=True):
        gap = (source - position) % ALIGNMENT
        if gap * GAP_LIMIT <= length:
            position += gap
        ranges.targets.append(position)
        position += length
    return position


def _move_contents(
    contents: PackContents, pack: OpenPack, ranges: PackRanges, numbers: array[int]
) -> array[int]:
    """Give the needed contents of a pack their positions and fragments in the image.

    Returns the places of those whose tails need new blocks, in the order of the pack.
    """
    columns = contents.columns
    starts, fragments = columns.starts, columns.fragments
    tails = array("Q")
    for place in contents.needed_places(pack):
        starts[place] = ranges.move(starts[place]) if columns.stored_size(place) else 0
        fragment = fragments[place]
        if fragment != NO_FRAGMENT:
            if numbers[fragment] == NO_FRAGMENT:
                tails.append(place)
            else:
                fragments[place] = numbers[fragment]
    return tails
