"""Compose the squashfs file of an image from the packs of its layers, and the plan of its tree.

Theory of operation. A pack has the contents of a layer's files, compressed, and the plan says which
content is behind which name. So the file of an image is made without compressing its data once
more: superblock and compressor options; the data and fragment blocks that the image needs, copied
from the packs in ranges; a few new fragment blocks, for tails whose old blocks have too much that
the image does not need; inodes, listings and tables. A thread copies the ranges while the rest is
computed and written behind them. The superblock is written last: an incomplete file has none.

Each content is in the image once, whatever layers have it. The same plan, packs and options give
the same bytes, with the same versions of the compressing libraries. Packs are compared with the
plan and with themselves; what does not fit ends in `BlobCorrupt`. Copied blocks are not unpacked:
who keeps packs proves that their bytes are those that were made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from shiftergw.build.data_copy import copied_data
from shiftergw.build.data_layout import DataLayout, PackRanges, lay_out
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.image_tree import ImageTree
from shiftergw.build.large_contents import digest_large_contents
from shiftergw.build.pack_contents import LayerPack, leaves_with_content, open_packs
from shiftergw.build.tail_blocks import write_tails
from shiftergw.errors import SquashfsUnsupported
from shiftergw.model.build_options import SquashOptions
from shiftergw.model.packed_data import PackedData
from shiftergw.oci.flatten import Plan
from shiftergw.oci.tree import LATEST_MTIME
from shiftergw.squashfs.compressors import Compression, Compressor
from shiftergw.squashfs.superblock import SuperblockFlags
from shiftergw.squashfs.writer import SquashfsOptions, write_metadata

_COMPRESSORS = {"gzip": Compressor.GZIP, "xz": Compressor.XZ, "zstd": Compressor.ZSTD}
"""Those of `PACK_COMPRESSORS`."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed file: its bytes, and which ranges of it are copies of ranges of packs.

    `copied_size` is the bytes of these ranges, `tails_size` the unpacked bytes of tails that were
    compressed anew. The rest is metadata, and gaps of zeros between ranges.
    """

    size: int
    ranges: Sequence[PackRanges]
    copied_size: int
    tails_size: int

    def data_of(self, digests: Mapping[Path, str]) -> PackedData:
        """Return the ranges by the digests of the data of their packs, which `digests` has."""
        return PackedData.collect(
            (digests[ranges.path], ranges.in_data()) for ranges in self.ranges
        )


def compression_of(options: SquashOptions) -> Compression:
    """Return the compression of these options; its level is None for xz, which has none.

    Raises `SquashfsUnsupported` for options that packs cannot keep.
    """
    if options.needs_whole_builder:
        raise SquashfsUnsupported(
            "Images that are composed of converted layers cannot have these squashfs options."
        )
    compressor = _COMPRESSORS[options.compressor]
    if compressor == Compressor.XZ:
        return Compression(compressor)
    if options.level is None:
        return Compression.unpack(compressor, b"")
    return Compression(compressor, options.level)


def compose(
    plan: Plan,
    packs: Sequence[LayerPack],
    options: SquashOptions,
    created: int,
    output: Path,
    stop: Event,
    report: Callable[[int, int], None],
) -> Composition:
    """Write the image of `plan` into `output`, which need not exist; its layers have these packs.

    Blocks: run it in a thread. `report` gets the bytes of data that are done, and of all data, in
    that thread or another one, one call at a time. `created` is the date of the image in seconds
    since 1970. The caller syncs, checks and renames the file, and removes it after an error. Raises
    `BlobCorrupt` if a pack is damaged or does not fit the plan, `SquashfsUnsupported`, `OSError`,
    and `StopRequested` soon after `stop` is set.
    """
    compression = compression_of(options)
    squashfs_options = SquashfsOptions(
        compression,
        options.block_bytes,
        min(max(created, plan.latest, 0), LATEST_MTIME),
        exportable=False,  # as the files that `mksquashfs` makes of an archive
        flags=SuperblockFlags.ALWAYS_FRAGMENTS | SuperblockFlags.NO_XATTRS,
    )
    with (
        open_packs(packs, compression, options.block_bytes, stop) as contents,
        _open_output(output) as descriptor,
    ):
        digest_large_contents(contents, compression, stop)
        contents.select(leaves_with_content(plan.root, stop))
        image = ImageOutput(descriptor, squashfs_options.data_start(), stop)
        layout = lay_out(contents, image.position)
        add_progress = _progress_of(layout, report)
        with copied_data(contents.packs, layout.ranges, image, add_progress):
            write_tails(contents, layout, image, compression, options.processors, add_progress)
            root = ImageTree(contents, stop).directory(plan.root)
            superblock = write_metadata(
                root._replace(mtime=squashfs_options.created),  # as that of `mksquashfs`
                layout.fragments,
                squashfs_options,
                image.position,
                image.append,
            )
        image.write_start(superblock.pack() + squashfs_options.options_block())
        return Composition(image.position, layout.ranges, layout.copied_size, layout.tails_size)


@contextmanager
def _open_output(path: Path) -> Iterator[int]:
    """Open a file for writing, private to this user and empty."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _progress_of(layout: DataLayout, report: Callable[[int, int], None]) -> Callable[[int], None]:
    """Return a function that adds bytes of data which are done, and reports them."""
    done = 0
    total = layout.copied_size + layout.tails_size
    lock = Lock()  # data is copied and compressed in different threads

    def add(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(done, total)

    return add
