"""Read the tree of a squashfs file from its metadata, and check all of it.

Theory of operation. A file is superblock, compressor options, data blocks and fragment blocks,
inode table, directory table, fragment table, export table, id table and xattr table, in this order
and without gaps behind the data; so do all known writers lay it out, and the kernel relies on most
of it. `read_tables` reads the tables whole, after it has compared their positions and sizes with
the file. The tree is then read from the unpacked tables: every reference must lead to an inode or
a listing, the sizes of all inodes and listings must add up to those of their tables, a directory is
reached once, and all data lies before the inode table. Nothing is allocated on the word of a field
alone.

A file that violates this ends in `SquashfsCorrupt`. Only gzip and xz have checksums: a damaged
block of zstd, or one that is not compressed, may still be a consistent tree with other modes, times
or names. Callers that need certainty compare a digest of the file first.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from shiftergw.errors import SquashfsUnsupported
from shiftergw.squashfs import inodes
from shiftergw.squashfs.blocks import MetadataTable, ReadAt, corrupt
from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.inode_reader import Inode, InodeReader
from shiftergw.squashfs.inodes import EXTENDED, NO_XATTRS, InodeKind
from shiftergw.squashfs.nodes import FileData
from shiftergw.squashfs.superblock import METADATA_SIZE
from shiftergw.squashfs.tables import SquashfsTables, read_tables

PATH_LIMIT = 1 << 16
"""Bytes of the longest path in a full listing, so that a deep tree costs no quadratic time."""

_MODE_BITS = 0o7777

# Places in a `_Visit`.
_KIND: Final = 2
_NUMBER: Final = 7
_INODE: Final = 8

_DIRECTORY = int(InodeKind.DIRECTORY)
_FILE = int(InodeKind.FILE)
_unpack_common = inodes.COMMON.unpack_from
_unpack_entry = inodes.LISTING_ENTRY.unpack_from


class ListedEntry(NamedTuple):
    """An entry of a full listing; the root has an empty path.

    `mode` is the permission bits, `mtime` seconds since 1970, `size` that of the inode: bytes of a
    file or target, and of the listing of a directory. `device` is what `os.makedev` returns.
    `number` is the number of the inode, which hard links share.
    """

    path: bytes
    kind: InodeKind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes
    device: int
    links: int
    number: int
    has_xattrs: bool
    data: FileData


_Visit = tuple[bytes, bytes, int, int, int, int, int, int, Inode]
"""An entry: path of its directory, name, kind, mode, owner, group, time, number and inode.

A plain tuple, because there are millions of them.
"""


class SquashfsReader:
    """Reads one squashfs file. Its methods block only in `read_at`, when it is constructed."""

    def __init__(self, read_at: ReadAt, file_size: int) -> None:
        """Read the tables of a file of `file_size` bytes.

        Raises `SquashfsCorrupt` and `SquashfsUnsupported`, as the methods do.
        """
        self.tables: SquashfsTables = read_tables(read_at, file_size)

    def files(self) -> FileColumns:
        """Return the data of all regular files, in the order in which `entries` lists them."""
        columns = FileColumns(self.tables.superblock.block_size)
        for data, link in self.file_data():
            columns.append(data, link)
        return columns

    def file_data(self) -> Iterator[tuple[FileData, int | None]]:
        """Yield the data of each regular file, and a number if it shares its inode, else None.

        The order is that of `entries`. Some faults are noticed at the end alone.
        """
        for visit in _Traversal(self.tables, with_paths=False).visits():
            if visit[_KIND] == _FILE:
                inode = visit[_INODE]
                yield inode.data, visit[_NUMBER] if inode.links > 1 else None

    def entries(self) -> Iterator[ListedEntry]:
        """Yield every entry: parents first, the names of a directory in bytewise order.

        Some faults are noticed at the end alone, so the entries are right if all were yielded.
        Raises `SquashfsUnsupported` for a path of more than `PATH_LIMIT` bytes.
        """
        ids = self.tables.ids
        for parent, name, kind, mode, owner, group, mtime, number, inode in _Traversal(
            self.tables, with_paths=True
        ).visits():
            size = inode.data.size or len(inode.target)
            if kind == InodeKind.DIRECTORY:
                size = inode.listing + inodes.LISTING_EXTRA
            yield ListedEntry(
                b"%b/%b" % (parent, name) if parent else name,
                InodeKind(kind), mode, ids[owner], ids[group], mtime, size, inode.target,
                inode.device, inode.links, number, inode.xattrs != NO_XATTRS, inode.data,
            )  # fmt: skip


class _Traversal:
    """One way through the tree, which counts what it has seen of both tables."""

    def __init__(self, tables: SquashfsTables, *, with_paths: bool) -> None:
        self._tables = tables
        self._with_paths = with_paths
        self._read_inode = InodeReader(tables).read
        self._table = tables.inodes.data
        self._ids = len(tables.ids)
        self._places = array("Q", bytes(8 * (tables.superblock.inodes + 1)))
        """For the number of each inode its position + 1, or 0 before it was reached."""
        self._linked_inodes: dict[int, Inode] = {}
        """The inodes with several names that were reached, by number."""
        self._inode_bytes = 0
        self._listing_bytes = 0

    def visits(self) -> Iterator[_Visit]:
        """Yield all entries, parents first."""
        root = self._tables.superblock.root
        try:
            position = self._tables.inodes.resolve(root >> 16, root & 0xFFFF)
            visit = self._visit(b"", b"", InodeKind.DIRECTORY, position, None)
            yield visit
            stack = [self._children(b"", visit)]
            while stack:
                for visit in stack[-1]:
                    yield visit
                    if visit[_KIND] == _DIRECTORY:
                        stack.append(self._children(self._path(visit), visit))
                        break
                else:
                    stack.pop()
        except struct.error as error:
            raise corrupt("a table ends within an entry") from error
        self._check_end()

    def _path(self, visit: _Visit) -> bytes:
        if not self._with_paths:
            return b""
        parent, name = visit[:2]
        path = b"%b/%b" % (parent, name) if parent else name
        if len(path) > PATH_LIMIT:
            raise SquashfsUnsupported(f"A squashfs file has paths of more than {PATH_LIMIT} bytes.")
        return path

    def _visit(
        self, parent: bytes, name: bytes, kind: int, position: int, number: int | None
    ) -> _Visit:
        """Return the entry of an inode, and count the inode if it was not reached before."""
        entry_type, mode, owner, group, mtime, own_number = _unpack_common(self._table, position)
        if (entry_type != kind and entry_type != kind + EXTENDED) or (
            number is not None and number != own_number
        ):
            raise corrupt(f"inode {own_number} of type {entry_type} is not what its entry says")
        if not 0 < own_number < len(self._places):
            raise corrupt(f"inode {own_number} of {len(self._places) - 1}")
        if owner >= self._ids or group >= self._ids or mode > _MODE_BITS:
            raise corrupt(f"owner {owner}, group {group}, mode {mode:o} of an inode")
        place = self._places[own_number]
        if not place:
            inode = self._read_inode(entry_type, position)
            self._places[own_number] = position + 1
            self._count_inode(inode.end - position)
            if inode.links > 1 and kind != _DIRECTORY:
                self._linked_inodes[own_number] = inode
        elif place == position + 1 and own_number in self._linked_inodes:
            inode = self._linked_inodes[own_number]
        else:
            raise corrupt(f"inode {own_number} is in several places")
        return parent, name, kind, mode, owner, group, mtime, own_number, inode

    def _children(self, path: bytes, directory: _Visit) -> Iterator[_Visit]:
        """Yield the entries of a directory's listing."""
        inode = directory[_INODE]
        index = self._index_of(inode)
        if not inode.listing:
            return
        position = start = self._tables.directories.resolve(inode.block, inode.offset)
        end = start + inode.listing
        self._listing_bytes += inode.listing
        if max(end, self._listing_bytes) > len(self._tables.directories.data):
            raise corrupt(f"a listing of {inode.listing} bytes")
        place = next(index, None)
        name = b""
        while position < end:
            header, previous = position, name
            entries, position = self._entries(header, end)
            if entries[0][0] <= previous:
                raise corrupt("a listing has names out of order")
            if place is not None and place[0] <= header - start:
                self._check_index(place, header, entries[0][0], start)
                place = next(index, None)
            for name, kind, inode_position, number in entries:
                visit = self._visit(path, name, kind, inode_position, number)
                if kind == _DIRECTORY and visit[_INODE].parent != directory[_NUMBER]:
                    raise corrupt(f"directory {number} names another parent")
                yield visit
        if place is not None:
            raise corrupt("an index leads out of its listing")

    def _entries(self, header: int, end: int) -> tuple[list[tuple[bytes, int, int, int]], int]:
        """Return the entries below a header of a listing that lasts until `end`, and their end.

        Each has name, kind, position of the inode and its number.
        """
        data = self._tables.directories.data
        count, block, first = inodes.LISTING_HEADER.unpack_from(data, header)
        position = header + inodes.LISTING_HEADER.size
        base = self._tables.inodes.offsets.get(block)
        if count >= inodes.HEADER_ENTRIES or base is None:
            raise corrupt(f"{count + 1} entries of block {block}")
        entry_size = inodes.LISTING_ENTRY.size
        entries: list[tuple[bytes, int, int, int]] = []
        name = b""
        for _ in range(count + 1):
            offset, delta, kind, length = _unpack_entry(data, position)
            position += entry_size
            previous, name = name, data[position : position + length + 1]
            position += length + 1
            if name <= previous or length >= inodes.NAME_LIMIT:
                raise corrupt("a listing has an invalid name, or names out of order")
            if not 0 < kind <= EXTENDED or offset >= METADATA_SIZE:
                raise corrupt(f"an entry of kind {kind} at offset {offset}")
            entries.append((name, kind, base + offset, first + delta))
        if position > end or not inodes.are_valid_names([entry[0] for entry in entries]):
            raise corrupt("a listing has an invalid name, or ends within an entry")
        return entries, position

    def _index_of(self, directory: Inode) -> Iterator[tuple[int, int, bytes]]:
        """Return the index of a directory; count its bytes."""
        data = self._tables.inodes.data
        position = directory.end
        index: list[tuple[int, int, bytes]] = []
        for _ in range(directory.index_entries):
            offset, block, length = inodes.INDEX_ENTRY.unpack_from(data, position)
            position += inodes.INDEX_ENTRY.size
            if length >= inodes.NAME_LIMIT:
                raise corrupt("an index has an invalid name")
            index.append((offset, block, data[position : position + length + 1]))
            position += length + 1
        self._count_inode(position - directory.end)
        return iter(index)

    def _count_inode(self, size: int) -> None:
        self._inode_bytes += size
        if self._inode_bytes > len(self._table):
            raise corrupt("inodes overlap")

    def _check_index(
        self, place: tuple[int, int, bytes], header: int, name: bytes, start: int
    ) -> None:
        """Check that an entry of an index leads to `header`, whose first entry is `name`."""
        offset, block, first_name = place
        expected = header // METADATA_SIZE * METADATA_SIZE
        if (
            start + offset != header
            or first_name != name
            or self._tables.directories.offsets.get(block) != expected
        ):
            raise corrupt("an index leads to another entry")

    def _check_end(self) -> None:
        """Check that all inodes and listings were reached, and that the export table has them."""
        table: MetadataTable = self._tables.inodes
        if self._inode_bytes != len(table.data):
            raise corrupt(f"{self._inode_bytes} bytes of {len(table.data)} are inodes")
        if self._listing_bytes != len(self._tables.directories.data):
            raise corrupt(f"{self._listing_bytes} bytes of the directory table are listings")
        places = self._places[1:]
        if not all(places):
            raise corrupt("some inodes are in no directory")
        for place, reference in zip(places, self._tables.exports, strict=False):
            if place - 1 != table.resolve(reference >> 16, reference & 0xFFFF):
                raise corrupt("the export table leads to another inode")
