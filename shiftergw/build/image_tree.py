"""The tree of a plan as nodes of squashfs, whose files have their data in the image."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

from shiftergw.build.pack_contents import PackContents, pack_error
from shiftergw.oci.budget import stoppable_sorted
from shiftergw.oci.sparse import SparseMap, data_extents
from shiftergw.oci.tree import NO_CONTENT, SYMLINK, Directory, Leaf
from shiftergw.squashfs.nodes import NO_DATA, DirectoryNode, FileData, FileNode, Node, SymlinkNode

_HOLE = bytes(4)
"""The entry of a hole in a list of blocks."""


class ImageTree:
    """The nodes of a planned tree, made when they are written."""

    def __init__(self, contents: PackContents, stop: Event) -> None:
        """Take the data of files from `contents`, whose positions are those in the image.

        What iterates the nodes raises `StopRequested` soon after `stop` is set, and `BlobCorrupt`
        if a pack does not have what the plan says.
        """
        self._contents = contents
        self._stop = stop

    def directory(self, directory: Directory) -> DirectoryNode:
        """Return the node of a planned directory."""
        return DirectoryNode(self._children(directory), directory.mode, directory.mtime)

    def _children(self, directory: Directory) -> Iterator[tuple[bytes, Node]]:
        children = directory.children
        for name in stoppable_sorted(list(children), self._stop):
            node = children[name]
            if isinstance(node, Directory):
                yield name, self.directory(node)
                continue
            links = node.names
            link = node if links > 1 else None
            if node.kind == SYMLINK:
                target = node.target
                yield name, SymlinkNode(target, node.mode, node.mtime, links=links, link=link)
            else:
                data = self._data_of(node)
                yield name, FileNode(data, node.mode, node.mtime, links=links, link=link)

    def _data_of(self, leaf: Leaf) -> FileData:
        """Return the data of a regular file."""
        contents = self._contents
        if leaf.number == NO_CONTENT:
            if not leaf.size:
                return NO_DATA
            if leaf.sparse is None:
                raise pack_error(f"it lacks the content of a file of {leaf.size} bytes")
            content = NO_DATA
        else:
            content = contents.columns[contents.originals[contents.place_of(leaf)]]
        if leaf.sparse is None:
            return content
        return with_holes(content, leaf.sparse, leaf.size, contents.columns.block_size)


def with_holes(content: FileData, pieces: SparseMap, size: int, block_size: int) -> FileData:
    """Return the data of a sparse file of `size` bytes whose pack has the blocks with data alone.

    `pieces` are the parts of the file that are data. Raises `BlobCorrupt` if they do not fit the
    blocks.
    """
    extents = list(data_extents(pieces, size, block_size))
    if sum(end - start for start, end in extents) != content.size:
        raise pack_error(f"it has {content.size} bytes of a sparse file of {size}")
    parts: list[bytes] = []
    position = used = 0
    for start, end in extents:
        parts.append(_HOLE * ((start - position) // block_size))
        length = 4 * -(-(end - start) // block_size)
        parts.append(content.blocks[used : used + length])
        used += length
        position = end
    parts.append(_HOLE * -(-(size - position) // block_size))
    blocks = b"".join(parts)
    holes = size - content.size + content.sparse
    return FileData(
        size,
        content.start,
        content.fragment,
        content.offset,
        min(holes, size - 1),
        blocks,
    )
