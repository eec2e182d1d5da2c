"""Write inodes and directory listings of a tree.

Theory of operation. The tree is walked once, depth first. When a directory is entered, its children
get consecutive numbers, and the inodes of its leaves are written; when its subdirectories are done,
so are its listing and its own inode. So the numbers below one header of a listing are close
together (an entry has 16 bits for the difference), and most of a listing's inodes share a block
(all entries below one header do). The inode table streams out meanwhile. The directory table stands
behind it in the file, so its compressed blocks are kept in memory until then: 5 to 15 bytes an
entry. For the entries of the directories that are open, their names, references and numbers are
kept too.

The same tree and options give the same bytes, with the same versions of the compressing libraries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from shiftergw.errors import printable
from shiftergw.squashfs import inodes
from shiftergw.squashfs.inode_writer import InodePacker, tree_error
from shiftergw.squashfs.inodes import HEADER_ENTRIES, InodeKind
from shiftergw.squashfs.nodes import DirectoryNode, LeafNode, Node
from shiftergw.squashfs.output import MetadataWriter
from shiftergw.squashfs.superblock import METADATA_SIZE

_LARGEST_NUMBER = 2**32 - 2
_DELTA = 2**15
_INDEXED_LISTING = 2**16 - inodes.LISTING_EXTRA
"""Bytes of the shortest listing that needs a long inode, and gets an index."""


class _OpenDirectory:
    """A directory whose listing is not written yet: its node and columns of its entries."""

    def __init__(self, node: DirectoryNode, number: int, parent: int) -> None:
        self.node = node
        self.number = number
        self.parent = parent
        self.names: list[bytes] = []
        self.references = array("Q")
        self.numbers = array("I")
        self.kinds = bytearray()
        self.pending: list[tuple[int, DirectoryNode]] = []
        """The subdirectories that are not written yet, the first one last, by their places."""
        self.subdirectories = 0


class _Link:
    """An inode with several names: its reference, number and kind, and the names still missing."""

    __slots__ = ("kind", "missing", "number", "reference")

    def __init__(self, reference: int, number: int, kind: int, missing: int) -> None:
        self.reference = reference
        self.number = number
        self.kind = kind
        self.missing = missing


class TreeWriter:
    """Writes inodes and listings of a tree."""

    def __init__(
        self,
        inode_table: MetadataWriter,
        directory_table: MetadataWriter,
        packer: InodePacker,
        exportable: bool,
    ) -> None:
        self.inodes = 0
        """How many numbers were given out."""
        self.exports = array("Q")
        """References of the inodes by number - 1, if they are wanted."""
        self._inode_table = inode_table
        self._directory_table = directory_table
        self._packer = packer
        self._exportable = exportable
        self._links: dict[object, _Link] = {}

    def write(self, root: DirectoryNode) -> int:
        """Write a whole tree; return the reference of its root."""
        reference = 0
        stack = [self._open(root, self._next_number(), 0)]
        while stack:
            directory = stack[-1]
            if directory.pending:
                place, node = directory.pending[-1]
                stack.append(self._open(node, directory.numbers[place], directory.number))
                continue
            stack.pop()
            if not stack:
                directory.parent = self.inodes + 1  # what the root of mksquashfs has
            reference = self._close(directory)
            if stack:
                place, _ = stack[-1].pending.pop()
                stack[-1].references[place] = reference
        missing = sum(link.missing for link in self._links.values())
        if missing:
            raise tree_error(f"{missing} names of hard links are not in the tree")
        self._inode_table.finish()
        self._directory_table.finish()
        return reference

    def _next_number(self) -> int:
        self.inodes += 1
        if self.inodes > _LARGEST_NUMBER:
            raise tree_error("it has too many entries")
        if self._exportable:
            self.exports.append(0)
        return self.inodes

    def _open(self, node: DirectoryNode, number: int, parent: int) -> _OpenDirectory:
        """Number the children of a directory, and write those that are leaves."""
        directory = _OpenDirectory(node, number, parent)
        names, references = directory.names, directory.references
        numbers, kinds = directory.numbers, directory.kinds
        for name, child in _check_names(node.children):
            if isinstance(child, DirectoryNode):
                directory.pending.append((len(names), child))
                reference, own_number, kind = 0, self._next_number(), int(InodeKind.DIRECTORY)
            else:
                reference, own_number, kind = self._leaf(child)
            names.append(name)
            references.append(reference)
            numbers.append(own_number)
            kinds.append(kind)
        directory.subdirectories = len(directory.pending)
        directory.pending.reverse()
        return directory

    def _leaf(self, node: LeafNode) -> tuple[int, int, int]:
        """Write a leaf, unless its inode is there; return its reference, number and kind."""
        key = node.link
        if key is None:
            if node.links != 1:
                raise tree_error(f"an entry without other names has {node.links} links")
        elif key in self._links:
            link = self._links[key]
            link.missing -= 1
            if link.missing < 0:
                raise tree_error("a hard link has more names than it should have")
            return link.reference, link.number, link.kind
        number = self._next_number()
        kind, record = self._packer.leaf(node, number)
        reference = self._add_inode(record, number)
        if key is not None:
            self._links[key] = _Link(reference, number, kind, node.links - 1)
        return reference, number, kind

    def _add_inode(self, record: bytes, number: int) -> int:
        reference = self._inode_table.add(record)
        if self._exportable:
            self.exports[number - 1] = reference
        return reference

    def _close(self, directory: _OpenDirectory) -> int:
        """Write the listing and the inode of a directory; return the reference of the latter."""
        start = self._directory_table.reference
        size = index_start = 0
        index: list[bytes] = []
        for first_name, part in _listing(directory):
            reference = self._directory_table.add(part)
            if size + len(part) - index_start > METADATA_SIZE and size:
                length = len(first_name) - 1
                index.append(inodes.INDEX_ENTRY.pack(size, reference >> 16, length) + first_name)
                index_start = size
            size += len(part)
        if size < _INDEXED_LISTING:
            index = []
        record = self._packer.directory(
            directory.node, directory.number, directory.parent, start, size,
            directory.subdirectories, index,
        )  # fmt: skip
        return self._add_inode(record, directory.number)


def _check_names(children: Iterable[tuple[bytes, Node]]) -> Iterator[tuple[bytes, Node]]:
    """Yield the entries of a directory; check that their names are valid and in order."""
    previous = b""
    for name, child in children:
        if name <= previous or not inodes.is_valid_name(name):
            raise tree_error(
                f"the name {printable(name)} is invalid, or does not belong behind"
                f" {printable(previous)}"
            )
        previous = name
        yield name, child


def _listing(directory: _OpenDirectory) -> Iterator[tuple[bytes, bytes]]:
    """Yield a listing in parts: a header with its entries, after the name of the first one.

    A part has at most 8 KiB, so that an index leads close to every name.
    """
    pack_entry = inodes.LISTING_ENTRY.pack
    names, kinds = directory.names, directory.kinds
    references, numbers = directory.references, directory.numbers
    place = 0
    while place < len(names):
        first = place
        block, base = references[place] >> 16, numbers[place]
        parts = [b""]
        space = METADATA_SIZE - inodes.LISTING_HEADER.size
        for name in names[first : first + HEADER_ENTRIES]:
            reference = references[place]
            delta = numbers[place] - base
            space -= inodes.LISTING_ENTRY.size + len(name)
            if reference >> 16 != block or not -_DELTA < delta < _DELTA or space < 0:
                break
            parts.append(pack_entry(reference & 0xFFFF, delta, kinds[place], len(name) - 1))
            parts.append(name)
            place += 1
        parts[0] = inodes.LISTING_HEADER.pack(place - first - 1, block, base)
        yield names[first], b"".join(parts)
