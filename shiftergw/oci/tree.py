"""The nodes of a planned file tree, and the order in which it is walked.

A finished tree has the nodes of a squashfs: directories, regular files and symlinks. Names and
targets are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

from shiftergw.oci.budget import stoppable_sorted

REGULAR = 0
"""Kind of a leaf: a regular file with data in a layer."""

SYMLINK = 1
"""Kind of a leaf: a symbolic link."""

SPECIAL = 2
"""Kind of a leaf: a device node, FIFO or socket, or a link to one; not in a finished tree."""

UNDER_DEV = 3
"""Kind of a leaf: an entry below `dev/`, or a link to one; not in a finished tree."""

PENDING = 4
"""Kind of a leaf: a hard link whose target comes later in the layer."""

XATTRS = 1 << 16
"""A bit in the mode of an entry that had extended attributes, until the tree is finished."""

NO_CONTENT = -1
"""The number of a file whose content is in no pack, such as an empty file."""

LATEST_MTIME = 2**32 - 1
"""The latest time of a file in squashfs, in seconds since 1970."""


@dataclass(slots=True, eq=False)
class Directory:
    """A directory: permission bits, time in seconds since 1970, and children by name."""

    mode: int = 0o755
    mtime: int = 0
    children: dict[bytes, Directory | Leaf] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Leaf:
    """An inode that is not a directory; the same object under two names is a hard link.

    `size` is the size of the file in bytes. `offset` is where its data starts in the uncompressed
    stream of layer number `layer`. `sparse` lists (offset in the file, length) of the pieces with
    data; None means that all of the file is data. `names` counts the names of the inode in the
    finished tree. `number` is the number of the file's content in the pack of the layer, if there
    is one.
    """

    kind: int
    mode: int = 0o777
    mtime: int = 0
    size: int = 0
    target: bytes = b""
    layer: int = 0
    offset: int = 0
    sparse: tuple[tuple[int, int], ...] | None = None
    names: int = 0
    number: int = NO_CONTENT


def walk(root: Directory, stop: Event | None = None) -> Iterator[tuple[bytes, Directory | Leaf]]:
    """Yield (path, node) for everything below `root`: parents first, names in bytewise order.

    Raises `StopRequested` soon after `stop` is set.

    This is the order in which squashfs stores a tree and `unsquashfs` lists it. A path has no
    leading slash. The walk has its own stack, because a path of 4,095 bytes is deeper than Python
    can recurse.
    """
    stop = stop or Event()
    waiting = [(b"", root.children, stoppable_sorted(list(root.children), stop))]
    while waiting:
        prefix, children, names = waiting[-1]
        for name in names:
            path, node = prefix + name, children[name]
            yield path, node
            if isinstance(node, Directory):
                names = stoppable_sorted(list(node.children), stop)
                waiting.append((path + b"/", node.children, names))
                break
        else:
            waiting.pop()
