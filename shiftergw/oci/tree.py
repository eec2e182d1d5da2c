"""The nodes of a planned file tree, and the one order in which it is read.

A tree holds what a squashfs will hold: directories, regular files and symlinks. Names and targets
are bytes; nothing here decodes them.
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
"""Kind of a leaf: a device node, a FIFO, a socket, or a link to one; no finished tree has any."""

UNDER_DEV = 3
"""Kind of a leaf: something below `dev/`, or a link to it; no finished tree has any."""

PENDING = 4
"""Kind of a leaf: a hard link whose target comes later in its layer."""

XATTRS = 1 << 16
"""Beside the bits of a mode until the tree is finished: there were extended attributes."""


@dataclass(slots=True, eq=False)
class Directory:
    """A directory: permission bits, seconds since 1970, and what it holds by name."""

    mode: int = 0o755
    mtime: int = 0
    children: dict[bytes, Directory | Leaf] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Leaf:
    """One inode that is not a directory; the same object under two names is a hard link.

    `offset` is where the data starts in the uncompressed stream of layer number `layer`. `sparse`
    lists the (offset in the file, length) of what that data fills, or is None where the data is
    the whole file. `size` in bytes is that of the file as it reads. `names` counts the names that
    the inode has in the finished tree.
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


def walk(root: Directory, stop: Event | None = None) -> Iterator[tuple[bytes, Directory | Leaf]]:
    """Yield (path, node) for everything below `root`: parents first, names in bytewise order.

    Raises `StopRequested` soon after `stop` is set.

    This is the order in which squashfs keeps and `unsquashfs` lists a tree. A path has no leading
    slash. The walk keeps its own stack: a path of 4,095 bytes is deeper than Python recurses.
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
