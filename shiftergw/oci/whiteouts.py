"""Apply the whiteouts of a layer to the lower tree (OCI image-spec, "Whiteouts").

Hard links of the layer may refer to nodes that its whiteouts removed, so these are remembered.
"""

from __future__ import annotations

from shiftergw.errors import LayerInvalid
from shiftergw.oci.budget import Budget
from shiftergw.oci.resolution import follow
from shiftergw.oci.tar import DIRECTORY, Entry
from shiftergw.oci.tree import Directory, Leaf

WHITEOUT_PREFIX = b".wh."
"""The beginning of the name of a whiteout."""

_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"


class Whiteouts:
    """The whiteouts of one layer, and the lower tree as it was before them."""

    def __init__(self, root: Directory, budget: Budget) -> None:
        """Apply whiteouts to the tree at `root`."""
        self._root = root
        self._budget = budget
        self._removals: dict[Directory, dict[bytes, Directory | Leaf]] = {}

    def apply(self, entries: list[Entry]) -> None:
        """Remove from the lower tree the nodes that the layer's whiteouts name."""
        stoppable = self._budget.stoppable
        whiteouts = [
            entry for entry in stoppable(entries) if entry.name.startswith(WHITEOUT_PREFIX)
        ]
        if not whiteouts:
            return
        # As (parent, name): joined paths would need many times the memory.
        replacements = {
            (entry.parent, entry.name.removeprefix(WHITEOUT_PREFIX))
            for entry in stoppable(entries)
            if entry.kind == DIRECTORY or entry.name.startswith(WHITEOUT_PREFIX)
        }
        lower: dict[bytes, Directory | None] = {}
        for entry in stoppable(whiteouts):
            if entry.name == WHITEOUT_PREFIX:
                raise LayerInvalid("A layer has a whiteout without a name.")
            if entry.name.startswith(_META) and entry.name != _OPAQUE:
                continue
            # Resolved in the lower tree: nodes that other whiteouts removed still exist there.
            if entry.parent not in lower:
                trail = self.follow(entry.parent)
                is_new = trail is None or self._leads_through(entry.parent, replacements)
                lower[entry.parent] = None if trail is None or is_new else trail[-1]
            directory = lower[entry.parent]
            if directory is None:
                continue
            children = directory.children
            if entry.name == _OPAQUE:
                removals, directory.children = children, {}
            else:
                victim = entry.name.removeprefix(WHITEOUT_PREFIX)
                removals = {victim: children.pop(victim)} if victim in children else {}
            self._removals.setdefault(directory, {}).update(removals)

    def find_child(self, directory: Directory, name: bytes) -> Directory | Leaf | None:
        """Return the node that a name had before the whiteouts, or None."""
        removals = self._removals.get(directory)
        if removals is not None and name in removals:
            return removals[name]
        return directory.children.get(name)

    def follow(self, path: bytes) -> list[Directory] | None:
        """Return the directories from the root to the target of a path before the whiteouts."""
        return follow(self._root, path, self._budget, self.find_child)

    def _leads_through(self, path: bytes, replacements: set[tuple[bytes, bytes]]) -> bool:
        """Return whether a path leads through a symlink that this layer replaces or removes.

        A whiteout below such a path refers to the new directory, which hides nothing: overlay file
        systems mark such directories as opaque.
        """
        node: Directory | Leaf | None = self._root
        end = -1
        while isinstance(node, Directory) and end < len(path):
            begin, end = end + 1, path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            node = self.find_child(node, path[begin:end])
        self._budget.count_steps(path.count(b"/", 0, end) + 1)
        return (
            isinstance(node, Leaf) and (path[: max(begin - 1, 0)], path[begin:end]) in replacements
        )
