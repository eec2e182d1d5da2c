"""Apply the entries of one layer to the tree of the lower layers (OCI image-spec, "Changesets").

Paths are resolved as in an extraction into a directory: an entry below a symlink goes to the target
of the link, which is never outside the root (`lib -> usr/lib`). A file with entries below it is
replaced by a directory.
"""

from __future__ import annotations

from shiftergw.errors import LayerInvalid
from shiftergw.oci.budget import Budget
from shiftergw.oci.paths import NAME_LIMIT, clean
from shiftergw.oci.tar import DIRECTORY, HARDLINK, Entry, LayerIndex
from shiftergw.oci.tree import (
    LATEST_MTIME,
    PENDING,
    REGULAR,
    SYMLINK,
    UNDER_DEV,
    XATTRS,
    Directory,
    Leaf,
)

_WHITEOUT = b".wh."
_WHITEOUT_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_HOPS = 40
"""Most symlinks in the resolution of one path (the kernel's MAXSYMLINKS)."""

_STRETCH = 1000
"""Entries that are applied between two checks of the stop flag."""


def apply_layer(root: Directory, index: LayerIndex, number: int, budget: Budget) -> None:
    """Apply layer `number` to the tree of the lower layers, and empty its index.

    The whiteouts act first, on the lower tree only, wherever they are in the layer. Then the
    entries are added in order. Last, hard links to later entries are resolved. Raises
    `LayerInvalid`, and the errors of `budget`, which counts each step of each path.
    """
    entries, index.entries = index.entries, []
    layer = _Application(root, number, budget)
    layer.hide(entries)
    entries.reverse()
    while entries:  # popping frees the memory of an entry before its leaf needs it
        budget.check_stop()
        for _ in range(min(_STRETCH, len(entries))):
            layer.add(entries.pop())
    layer.finish()


class _Application:
    """The application of one layer to the tree."""

    def __init__(self, root: Directory, number: int, budget: Budget) -> None:
        self._root = root
        self._number = number
        self._budget = budget
        # The directory of each parent path, and whether it is below `dev/`. Valid until a directory
        # or a symlink is replaced.
        self._parents: dict[bytes, tuple[Directory, bool]] = {}
        # The nodes that this layer's whiteouts removed: hard links may still refer to them.
        self._removals: dict[Directory, dict[bytes, Directory | Leaf]] = {}
        # The directory and name of each hard link whose target does not exist yet.
        self._pending: dict[Leaf, tuple[Directory, bytes]] = {}
        # Directories with the name of a whiteout. Links may refer to their files while the layer is
        # applied (AUFS kept its hard links in `.wh..wh.plnk`).
        self._whiteout_directories: list[tuple[Directory, bytes]] = []

    def hide(self, entries: list[Entry]) -> None:
        """Remove from the lower tree the nodes that the layer's whiteouts name."""
        stoppable = self._budget.stoppable
        whiteouts = [entry for entry in stoppable(entries) if entry.name.startswith(_WHITEOUT)]
        if not whiteouts:
            return
        # As (parent, name): joined paths would need many times the memory.
        replacements = {
            (entry.parent, entry.name.removeprefix(_WHITEOUT))
            for entry in stoppable(entries)
            if entry.kind == DIRECTORY or entry.name.startswith(_WHITEOUT)
        }
        lower: dict[bytes, Directory | None] = {}
        for entry in stoppable(whiteouts):
            if entry.name == _WHITEOUT:
                raise LayerInvalid("A layer has a whiteout without a name.")
            if entry.name.startswith(_WHITEOUT_META) and entry.name != _OPAQUE:
                continue
            # Resolved in the lower tree: nodes that other whiteouts removed still exist there.
            if entry.parent not in lower:
                trail = self._follow(entry.parent, lower=True)
                is_new = trail is None or self._leads_through(entry.parent, replacements)
                lower[entry.parent] = None if trail is None or is_new else trail[-1]
            directory = lower[entry.parent]
            if directory is None:
                continue
            children = directory.children
            if entry.name == _OPAQUE:
                removals, directory.children = children, {}
            else:
                victim = entry.name.removeprefix(_WHITEOUT)
                removals = {victim: children.pop(victim)} if victim in children else {}
            self._removals.setdefault(directory, {}).update(removals)

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
            node = self._child(node, path[begin:end], lower=True)
        self._budget.count_steps(path.count(b"/", 0, end) + 1)
        return (
            isinstance(node, Leaf) and (path[: max(begin - 1, 0)], path[begin:end]) in replacements
        )

    def add(self, entry: Entry) -> None:
        """Add one entry to the directory that its path leads to."""
        name = entry.name
        if name.startswith(_WHITEOUT):
            return
        if not name:
            if entry.kind != DIRECTORY:
                raise LayerInvalid("A layer replaces the root by something else.")
            return
        directory, under_dev = self._parents.get(entry.parent) or self._find_parent(entry.parent)
        old = directory.children.get(name)
        node: Directory | Leaf
        if entry.kind == DIRECTORY:
            node = old if isinstance(old, Directory) else Directory()
            node.mode, node.mtime = _attributes(entry)
            if node is old:
                return
        elif under_dev:
            node = Leaf(UNDER_DEV)
        elif entry.kind == HARDLINK:
            node = self._link(directory, name, clean(entry.target))
        else:
            node = self._leaf(entry)
        self._put(directory, name, node, old)

    def _find_parent(self, path: bytes) -> tuple[Directory, bool]:
        """Return the directory that a parent path leads to, and whether it is below `dev/`.

        Creates a missing directory. Mostly the directory is one step from its own parent, which is
        remembered. Below the root the path is resolved completely, because only that shows whether
        it is below `dev/`.
        """
        head, _, name = path.rpartition(b"/")
        directory, under_dev = self._parents.get(head) or self._resolve_parent(head)
        if directory is not self._root:
            self._budget.count_steps(1)
            node = directory.children.get(name)
            if node is None:
                node = self._make(directory, name, None)
            if isinstance(node, Directory):
                self._parents[path] = node, under_dev
                return node, under_dev
        return self._resolve_parent(path)

    def _resolve_parent(self, path: bytes) -> tuple[Directory, bool]:
        """Resolve a parent path from the root, and remember the directory."""
        trail = self._follow(path, make=True)
        assert trail is not None
        under_dev = len(trail) > 1 and trail[1] is self._root.children.get(b"dev")
        self._parents[path] = trail[-1], under_dev
        return self._parents[path]

    def _put(
        self,
        directory: Directory,
        name: bytes,
        node: Directory | Leaf,
        old: Directory | Leaf | None,
    ) -> None:
        if len(name) > NAME_LIMIT:
            raise LayerInvalid(f"A layer has a name of more than {NAME_LIMIT} bytes.")
        if old is not None:
            if isinstance(old, Directory) or old.kind == SYMLINK:
                self._parents.clear()
            if self._pending:
                self._forget(old)
        directory.children[name] = node

    def _forget(self, old: Directory | Leaf) -> None:
        """Forget pending links that a later entry replaces, or whose directory it replaces."""
        if isinstance(old, Leaf):
            self._pending.pop(old, None)
        else:
            waiting = [old]
            while waiting:
                for node in self._budget.stoppable(waiting.pop().children.values()):
                    if isinstance(node, Directory):
                        waiting.append(node)
                    else:
                        self._pending.pop(node, None)

    def _leaf(self, entry: Entry) -> Leaf:
        if entry.kind == SYMLINK and not entry.target:
            raise LayerInvalid("A layer has a symlink without a target.")
        mode, mtime = _attributes(entry)
        is_file = entry.kind == REGULAR
        return Leaf(
            entry.kind,
            mode,
            mtime,
            entry.size if is_file else 0,
            b"" if is_file else entry.target,
            self._number,
            entry.offset,
            entry.sparse,
        )

    def _link(self, directory: Directory, name: bytes, target: bytes) -> Leaf:
        """Return the inode of a hard link, or a placeholder until the layer is complete."""
        leaf = self._find(target)
        if leaf is None or leaf.kind == PENDING:
            leaf = Leaf(PENDING, target=target)
            self._pending[leaf] = directory, name
        return leaf

    def _find(self, path: bytes, lower: bool = False) -> Leaf | None:
        """Return the inode of a path, or None; with `lower`, as before this layer's whiteouts."""
        head, _, name = path.rpartition(b"/")
        parent = None if lower else self._parents.get(head)
        if parent is not None:
            node = parent[0].children.get(name)
        else:
            trail = self._follow(head, lower=lower)
            node = None if trail is None else self._child(trail[-1], name, lower)
        if isinstance(node, Directory):
            raise LayerInvalid("A layer has a hard link to a directory.")
        return node

    def _child(self, directory: Directory, name: bytes, lower: bool) -> Directory | Leaf | None:
        if lower and name in self._removals.get(directory, ()):
            return self._removals[directory][name]
        return directory.children.get(name)

    def _follow(
        self, path: bytes, make: bool = False, lower: bool = False
    ) -> list[Directory] | None:
        """Resolve a path, and return the directories from the root to its target.

        Follows symlinks. A missing directory is created with `make`; otherwise returns None.
        """
        trail = [self._root]
        hops = 0
        rest = path.split(b"/")[::-1]
        self._budget.count_steps(len(rest))
        while rest:
            name = rest.pop()
            if name in {b"", b".", b".."}:
                # Only targets of links contain these. The parent of the root is the root.
                if name == b".." and len(trail) > 1:
                    trail.pop()
                continue
            node = self._child(trail[-1], name, lower)
            if isinstance(node, Leaf) and node.kind == SYMLINK and hops < _HOPS:
                hops += 1
                if node.target.startswith(b"/"):
                    del trail[1:]
                names = node.target.split(b"/")
                self._budget.count_steps(len(names))
                rest += names[::-1]
                continue
            if not isinstance(node, Directory):
                if not make:
                    return None
                node = self._make(trail[-1], name, node)
            trail.append(node)
        return trail

    def _make(self, directory: Directory, name: bytes, old: Leaf | None) -> Directory:
        """Create a directory without an entry of its own.

        Its mode is 0755 and its time 1970, because no layer specifies them and the same image must
        always give the same bytes.
        """
        if old is not None and old.kind == SYMLINK:
            raise LayerInvalid(
                f"A layer has an entry below a chain of more than {_HOPS} links, or links in a"
                " circle."
            )
        if name.startswith(_WHITEOUT):
            self._whiteout_directories.append((directory, name))
        node = Directory()
        self._put(directory, name, node, old)
        return node

    def finish(self) -> None:
        """Resolve the pending links, and remove directories with the name of a whiteout."""
        for leaf in self._budget.stoppable(list(self._pending)):
            if leaf in self._pending:  # else resolved together with an earlier one
                self._resolve(leaf)
        for directory, name in self._whiteout_directories:
            directory.children.pop(name, None)

    def _resolve(self, leaf: Leaf) -> None:
        """Replace a pending link, and the pending links that it refers to, by their inode."""
        chain: dict[Leaf, None] = {}
        inode: Leaf | None = leaf
        while inode is not None and inode.kind == PENDING and inode not in chain:
            self._budget.check_stop()
            chain[inode] = None
            target = inode.target
            inode = self._find(target)
        if inode is None:
            inode = self._find(target, lower=True)
        if inode is None or inode.kind == PENDING:
            raise LayerInvalid("A layer has a hard link to a file that is not there.")
        for link in chain:
            directory, name = self._pending.pop(link)
            directory.children[name] = inode


def _attributes(entry: Entry) -> tuple[int, int]:
    """Return the mode, with the bit `XATTRS` if any, and the time within squashfs's range."""
    mode = entry.mode | XATTRS if entry.xattrs else entry.mode
    return mode, min(max(entry.mtime, 0), LATEST_MTIME)
