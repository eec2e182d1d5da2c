"""Make packs in this process, without `mksquashfs` (`"Packer": "direct"`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.build.block_compressor import BlockCompressor
from shiftergw.build.compose import compression_of
from shiftergw.build.direct_pack import DirectPack
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_feed import PackedLayer, PackFeed, ReadLayer
from shiftergw.errors import ConversionFailed
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.timing import ticking
from shiftergw.squashfs.direct_compressors import (
    compressing_library,
    direct_blocks_compressor,
    direct_metadata_compressor,
)
from shiftergw.squashfs.superblock import SuperblockFlags
from shiftergw.squashfs.writer import SquashfsOptions

if TYPE_CHECKING:
    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions
    from shiftergw.squashfs.compressors import Compression

_REVISION = 2
"""The version of the order of blocks in a pack, and of their levels.

Packs of other versions are not used.
"""

_WINDOW_BYTES = 8 << 20
"""Bytes of the blocks that may wait: the reader of a layer goes on by pieces of up to 1 MiB."""

_COPIES = 2
"""How often a block is in memory: as it is, and compressed."""


async def pack_directly(
    tools: BuildTools,
    options: SquashOptions,
    part: Path,
    read_layer: ReadLayer,
    report: Callable[[int], None],
) -> PackedLayer:
    """Write the pack of a layer into the empty file `part`.

    Returns the index of the layer, and the digests of its contents by number. `report` gets the
    compressed bytes that were read so far, on the reactor's thread. Raises the errors of
    `read_layer`, and `OSError`. After an error no thread works on it any longer.
    """
    stop, position = Event(), 0

    def set_position(count: int) -> None:  # in the thread that reads
        nonlocal position
        position = count

    def report_position() -> None:
        report(position)

    def write() -> PackedLayer:
        return _write_pack(options, part, read_layer, stop, set_position)

    with ticking(1.0, tools.clock, report_position):
        contents = await tools.readers.run_until(stop.set, write)
    report_position()
    return contents


def _write_pack(
    options: SquashOptions,
    part: Path,
    read_layer: ReadLayer,
    stop: Event,
    set_position: Callable[[int], None],
) -> PackedLayer:
    compression = compression_of(options)
    block_size = options.block_bytes
    squashfs_options = SquashfsOptions(
        compression,
        block_size,
        exportable=False,  # as the files that `mksquashfs` makes of an archive
        flags=SuperblockFlags.ALWAYS_FRAGMENTS | SuperblockFlags.NO_XATTRS,
    )
    make_compressor = partial(direct_blocks_compressor, compression, block_size)
    with (
        part.open("r+b", buffering=0) as file,
        BlockCompressor(make_compressor, *threads_and_window(options)) as compressor,
    ):
        output = ImageOutput(file.fileno(), squashfs_options.data_start(), stop)
        pack = DirectPack(output, squashfs_options, compressor)
        feed = PackFeed(pack, block_size)
        index = read_layer(feed.read_file, stop, set_position)
        pack.finish(direct_metadata_compressor(compression))
    return index, feed.digests


def threads_and_window(options: SquashOptions) -> tuple[int, int]:
    """Return how many threads compress the blocks of a pack, and how many blocks may be pending.

    Both are within the configured processors and memory; each thread has two blocks at least.
    """
    processors = options.processors or len(os.sched_getaffinity(0))
    blocks = max(2, options.memory_bytes // (_COPIES * options.block_bytes))
    threads = max(1, min(processors, blocks // 2))
    return threads, min(blocks, max(2 * threads, _WINDOW_BYTES // options.block_bytes))


def library_digest(options: SquashOptions) -> str:
    """Return a digest of the library that compresses packs with these options, and of its use.

    Blocks. It is for `pack_key`. Raises `ConversionFailed` if the library is not installed.
    """
    compression = compression_of(options)
    try:
        version, path = compressing_library(compression.compressor)
        shape = ["direct", _REVISION, version, hash_file(path)[1]]
    except ImportError as error:
        raise missing_library(compression) from error
    except OSError as error:
        raise ConversionFailed(
            "The gateway cannot read the library that compresses images.", detail=str(error)
        ) from error
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()


def missing_library(compression: Compression) -> ConversionFailed:
    """Return the error for a compressor whose library is not installed."""
    return ConversionFailed(
        f'The library for the packer "direct" with {compression.compressor.name.lower()} is not'
        " installed.",
        remedy='Tell the site\'s support: `pip install "shiftergw[direct]"` is needed.',
    )
