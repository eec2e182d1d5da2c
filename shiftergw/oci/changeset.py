"""Apply the entries of one layer to the tree of the lower layers (OCI image-spec, "Changesets").

Paths are resolved as in an extraction into a directory: an entry below a symlink goes to the target
of the link, which is never outside the root (`lib -> usr/lib`). A file with entries below it is
replaced by a directory.
"""

from __future__ import annotations

from shiftergw.errors import LayerInvalid
from shiftergw.oci.budget import Budget
from shiftergw.oci.paths import NAME_LIMIT, clean
from shiftergw.oci.resolution import HOPS, follow
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
from shiftergw.oci.whiteouts import WHITEOUT_PREFIX, Whiteouts

_STRETCH = 1000
"""Entries that are applied between two checks of the stop flag."""


def apply_layer(root: Directory, index: LayerIndex, number: int, budget: Budget) -> None:
    """Apply layer `number` to the tree of the lower layers, and empty its index.

    The whiteouts act first, on the lower tree only, wherever they are in the layer. Then the
    entries are added in order. Last, hard links to later entries are resolved. Raises
    `LayerInvalid`, and the errors of `budget`, which counts each step of each path.
    """
    entries, index.entries = index.entries, []
    whiteouts = Whiteouts(root, budget)
    whiteouts.apply(entries)
    layer = _Application(root, number, budget, whiteouts)
    entries.reverse()
    while entries:  # popping frees the memory of an entry before its leaf needs it
        budget.check_stop()
        for _ in range(min(_STRETCH, len(entries))):
            layer.add(entries.pop())
    layer.finish()


class _Application:
    """The application of one layer to the tree."""

    def __init__(self, root: Directory, number: int, budget: Budget, whiteouts: Whiteouts) -> None:
        self._root = root
        self._number = number
        self._budget = budget
        # The directory of each parent path, and whether it is below `dev/`. Valid until a directory
        # or a symlink is replaced.
        self._parents: dict[bytes, tuple[Directory, bool]] = {}
        self._whiteouts = whiteouts
        # The directory and name of each hard link whose target does not exist yet.
        self._pending: dict[Leaf, tuple[Directory, bytes]] = {}
        # The inodes that the targets of pending links had before the whiteouts. Later entries may
        # replace the directories that lead to them.
        self._removed_targets: dict[Leaf, Leaf] = {}
        # Directories with the name of a whiteout. Links may refer to their files while the layer is
        # applied (AUFS kept its hard links in `.wh..wh.plnk`).
        self._whiteout_directories: list[tuple[Directory, bytes]] = []

    def add(self, entry: Entry) -> None:
        """Add one entry to the directory that its path leads to."""
        name = entry.name
        if name.startswith(WHITEOUT_PREFIX):
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
        trail = follow(self._root, path, self._budget, make=self._make)
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
            number=entry.number,
        )

    def _link(self, directory: Directory, name: bytes, target: bytes) -> Leaf:
        """Return the inode of a hard link, or a placeholder until the layer is complete."""
        leaf = self._find(target)
        if leaf is None or leaf.kind == PENDING:
            leaf = Leaf(PENDING, target=target)
            self._pending[leaf] = directory, name
            removed_target = self._find_below_whiteouts(target)
            if isinstance(removed_target, Leaf) and removed_target.kind != PENDING:
                self._removed_targets[leaf] = removed_target
        return leaf

    def _find(self, path: bytes) -> Leaf | None:
        """Return the inode of a path, or None."""
        head, _, name = path.rpartition(b"/")
        parent = self._parents.get(head)
        if parent is not None:
            return _leaf_at(parent[0].children.get(name))
        trail = follow(self._root, head, self._budget)
        return None if trail is None else _leaf_at(trail[-1].children.get(name))

    def _find_below_whiteouts(self, path: bytes) -> Directory | Leaf | None:
        """Return the node that a path had before this layer's whiteouts, or None."""
        head, _, name = path.rpartition(b"/")
        trail = self._whiteouts.follow(head)
        return None if trail is None else self._whiteouts.find_child(trail[-1], name)

    def _make(self, directory: Directory, name: bytes, old: Leaf | None) -> Directory:
        """Create a directory without an entry of its own.

        Its mode is 0755 and its time 1970, because no layer specifies them and the same image must
        always give the same bytes.
        """
        if old is not None and old.kind == SYMLINK:
            raise LayerInvalid(
                f"A layer has an entry below a chain of more than {HOPS} links, or links in a"
                " circle."
            )
        if name.startswith(WHITEOUT_PREFIX):
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
        last_link = leaf
        while inode is not None and inode.kind == PENDING and inode not in chain:
            self._budget.check_stop()
            chain[inode] = None
            last_link = inode
            inode = self._find(last_link.target)
        if inode is None:
            inode = _leaf_at(self._find_below_whiteouts(last_link.target))
        if inode is None:
            inode = self._removed_targets.get(last_link)
        if inode is None or inode.kind == PENDING:
            raise LayerInvalid("A layer has a hard link to a file that is not there.")
        for link in chain:
            directory, name = self._pending.pop(link)
            directory.children[name] = inode


def _leaf_at(node: Directory | Leaf | None) -> Leaf | None:
    """Return a node that a hard link may refer to; raise `LayerInvalid` for a directory."""
    if isinstance(node, Directory):
        raise LayerInvalid("A layer has a hard link to a directory.")
    return node


def _attributes(entry: Entry) -> tuple[int, int]:
    """Return the mode, with the bit `XATTRS` if any, and the time within squashfs's range."""
    mode = entry.mode | XATTRS if entry.xattrs else entry.mode
    return mode, min(max(entry.mtime, 0), LATEST_MTIME)
