"""New fragment blocks for the tails of files whose blocks in the packs are not copied as they are.

The tails keep the order that they have in the packs, so each old block is unpacked once, and equal
files are close together as they are in a layer. Old blocks are read by the caller's thread, new
blocks are compressed by threads beside it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from shiftergw.build.block_compressor import BlockCompressor
from shiftergw.build.data_layout import DataLayout
from shiftergw.build.fragment_reader import FragmentReader
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_contents import PackContents
from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.compressors import Compression, blocks_compressor
from shiftergw.squashfs.inodes import STORED_BLOCK
from shiftergw.squashfs.nodes import FragmentBlock

MOST_THREADS = 8
"""Threads that compress blocks of one image."""


def write_tails(
    contents: PackContents,
    layout: DataLayout,
    image: ImageOutput,
    compression: Compression,
    processors: int,
    report: Callable[[int], None],
) -> None:
    """Write the tails of `layout` into new fragment blocks at the position of `image`.

    Blocks. Appends the blocks to `layout.fragments`, and sets fragment and offset of the contents.
    `report` gets the unpacked bytes of each new block. At most `processors` threads compress, or as
    many as the process may use if it is 0. Raises `BlobCorrupt`, `StopRequested` and `OSError`.
    """
    columns = contents.columns
    threads = min(processors or len(os.sched_getaffinity(0)), MOST_THREADS)
    make_compressor = partial(blocks_compressor, compression, columns.block_size)
    with BlockCompressor(make_compressor, threads) as compressor:

        def write_blocks() -> None:
            for content, result in compressor.next_blocks():
                block, size = result, len(result)
                if size >= len(content):
                    block, size = content, len(content) | STORED_BLOCK
                layout.fragments.append(FragmentBlock(image.position, size))
                image.append(block)
                report(len(content))

        number = len(layout.fragments)
        block = bytearray()
        for place, tail in _tails(contents, layout, compression):
            if len(block) + len(tail) > columns.block_size:
                compressor.add(bytes(block))
                block.clear()
                number += 1
                if compressor.is_full:
                    write_blocks()
            columns.fragments[place] = number
            columns.offsets[place] = len(block)
            block += tail
        if block:
            compressor.add(bytes(block))
        while not compressor.is_empty:
            write_blocks()


def _tails(
    contents: PackContents, layout: DataLayout, compression: Compression
) -> Iterator[tuple[int, memoryview]]:
    """Yield place and bytes of each tail, in the order of the packs and of their blocks."""
    reader = FragmentReader(contents.columns, compression)
    for pack, places in zip(contents.packs, layout.tails, strict=True):
        for place in _by_position(contents.columns, places):
            yield place, reader.tail(pack, place)


def _by_position(columns: FileColumns, places: array[int]) -> list[int]:
    """Return places in the order of their tails, which mostly is that of the places."""
    keys = [columns.fragments[place] << 32 | columns.offsets[place] for place in places]
    if all(first < second for first, second in pairwise(keys)):
        return list(places)
    return [place for _, place in sorted(zip(keys, places, strict=True))]
