"""Resolve paths in a tree of layers, as a file system would: through symlinks, inside the root."""

from __future__ import annotations

from collections.abc import Callable

from shiftergw.oci.budget import Budget
from shiftergw.oci.tree import SYMLINK, Directory, Leaf

HOPS = 40
"""Most symlinks in the resolution of one path (the kernel's MAXSYMLINKS)."""

FindChild = Callable[[Directory, bytes], Directory | Leaf | None]
"""Returns the node of a name in a directory, or None."""

MakeDirectory = Callable[[Directory, bytes, Leaf | None], Directory]
"""Makes a directory of a name in a directory; the leaf is what has the name so far."""


def current_child(directory: Directory, name: bytes) -> Directory | Leaf | None:
    """Return the node of a name in a directory as it is now, or None."""
    return directory.children.get(name)


def follow(
    root: Directory,
    path: bytes,
    budget: Budget,
    find_child: FindChild = current_child,
    make: MakeDirectory | None = None,
) -> list[Directory] | None:
    """Resolve a path, and return the directories from the root to its target.

    Follows symlinks. A missing directory is created with `make`; otherwise returns None.
    """
    trail = [root]
    hops = 0
    rest = path.split(b"/")[::-1]
    budget.count_steps(len(rest))
    while rest:
        name = rest.pop()
        if name in {b"", b".", b".."}:
            # Only targets of links contain these. The parent of the root is the root.
            if name == b".." and len(trail) > 1:
                trail.pop()
            continue
        node = find_child(trail[-1], name)
        if isinstance(node, Leaf) and node.kind == SYMLINK and hops < HOPS:
            hops += 1
            if node.target.startswith(b"/"):
                del trail[1:]
            names = node.target.split(b"/")
            budget.count_steps(len(names))
            rest += names[::-1]
            continue
        if not isinstance(node, Directory):
            if make is None:
                return None
            node = make(trail[-1], name, node)
        trail.append(node)
    return trail
