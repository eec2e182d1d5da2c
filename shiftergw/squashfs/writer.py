"""Write the metadata of a squashfs file whose data blocks are there already."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from shiftergw.squashfs import inodes
from shiftergw.squashfs.compressors import Compress, Compression, metadata_compressor
from shiftergw.squashfs.inode_writer import InodePacker, tree_error
from shiftergw.squashfs.nodes import DirectoryNode, FragmentBlock
from shiftergw.squashfs.output import (
    BufferedOutput,
    MetadataWriter,
    Write,
    metadata_block,
    write_indexed_table,
)
from shiftergw.squashfs.superblock import (
    ABSENT,
    HIGHEST_BLOCK_LOG,
    LOWEST_BLOCK_LOG,
    SIZE,
    Superblock,
    SuperblockFlags,
)
from shiftergw.squashfs.tree_writer import TreeWriter

PADDING = 4096
"""The length of a file is a multiple of this, so that the kernel can mount it by a loop device."""


_LIMIT_32 = 2**32


@dataclass(frozen=True, slots=True)
class SquashfsOptions:
    """How a file is written; `created` is seconds since 1970."""

    compression: Compression
    block_size: int = 1 << 17
    created: int = 0
    exportable: bool = True
    flags: SuperblockFlags = SuperblockFlags.NO_XATTRS
    """Flags that inform of the data; those of exports and options are added."""

    def data_start(self) -> int:
        """Return where the data begins: behind the superblock and the compressor options."""
        return SIZE + len(self.options_block())

    def options_block(self) -> bytes:
        """Return what stands between superblock and data; nothing if all options are defaults."""
        options = self.compression.pack()
        return metadata_block(options, lambda content: content) if options else b""

    def all_flags(self) -> SuperblockFlags:
        """Return the flags of the superblock."""
        flags = self.flags
        if self.exportable:
            flags |= SuperblockFlags.EXPORTABLE
        if self.compression.pack():
            flags |= SuperblockFlags.COMPRESSOR_OPTIONS
        return flags


class _KeptBlocks(list[bytes]):
    """Blocks that are written later."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self._write = write

    def add(self, block: bytes) -> None:
        """Append a block, and call `write`, whose error ends a listing of millions of names."""
        self._write(b"")
        self.append(block)


def write_metadata(
    root: DirectoryNode,
    fragments: Sequence[FragmentBlock],
    options: SquashfsOptions,
    position: int,
    write: Write,
    compress: Compress | None = None,
) -> Superblock:
    """Write all tables of a file, and its padding, behind its data; return its superblock.

    `position` is the end of the data, where `write` appends; some of its calls append nothing.
    `compress` replaces the compressor of the tables. The caller writes the superblock and
    `options.options_block()` at the beginning of the file, the superblock last of all. Blocks, as
    `write` and the tree do: what they raise ends the work soon. Raises `SquashfsUnsupported`.
    """
    _check_options(options)
    output = BufferedOutput(write, position)
    compress = compress or metadata_compressor(options.compression)
    directory_blocks = _KeptBlocks(write)
    packer = InodePacker(options.block_size, len(fragments), position)
    tree = TreeWriter(
        MetadataWriter(compress, output.add),
        MetadataWriter(compress, directory_blocks.add),
        packer,
        options.exportable,
    )
    try:
        reference = tree.write(root)
        fragment_table = b"".join(inodes.FRAGMENT.pack(start, size, 0) for start, size in fragments)
        id_table = struct.pack(f"<{len(packer.ids)}I", *packer.ids)
    except struct.error as error:
        raise tree_error("a number of an entry is out of its range") from error
    directory_table = output.position
    for block in directory_blocks:
        output.add(block)
    directory_blocks.clear()
    fragment_index = write_indexed_table(fragment_table, compress, output)
    exports = struct.pack(f"<{len(tree.exports)}Q", *tree.exports)
    export_index = write_indexed_table(exports, compress, output) if exports else ABSENT
    id_index = write_indexed_table(id_table, compress, output)
    superblock = Superblock(
        inodes=tree.inodes,
        created=options.created,
        block_size=options.block_size,
        fragments=len(fragments),
        compressor=options.compression.compressor,
        block_log=options.block_size.bit_length() - 1,
        flags=options.all_flags(),
        ids=len(packer.ids),
        root=reference,
        bytes_used=output.position,
        id_table=id_index,
        inode_table=position,
        directory_table=directory_table,
        fragment_table=fragment_index,
        export_table=export_index,
    )
    output.add(bytes(-output.position % PADDING))
    output.flush()
    return superblock


def _check_options(options: SquashfsOptions) -> None:
    log = options.block_size.bit_length() - 1
    if not LOWEST_BLOCK_LOG <= log <= HIGHEST_BLOCK_LOG or options.block_size != 1 << log:
        raise tree_error(f"blocks have {options.block_size} bytes")
    if not options.compression.is_valid:
        raise tree_error("its compressor options are invalid")
    if not 0 <= options.created < _LIMIT_32:
        raise tree_error(f"it would be made at {options.created}")
