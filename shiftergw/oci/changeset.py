"""One layer's entries → changes of the tree below it (OCI image specification, "Changesets").

Paths are followed as extraction into a directory would follow them: an entry below a path that is
a symlink goes where the link leads, inside the root and never out of it (`lib -> usr/lib`). What
is no directory but has entries below it gives way to a directory.
"""

from __future__ import annotations

from shiftergw.errors import LayerInvalid
from shiftergw.oci.budget import Budget
from shiftergw.oci.paths import NAME_LIMIT, clean
from shiftergw.oci.tar import DIRECTORY, HARDLINK, Entry, LayerIndex
from shiftergw.oci.tree import PENDING, REGULAR, SYMLINK, UNDER_DEV, XATTRS, Directory, Leaf

_WHITEOUT = b".wh."
_WHITEOUT_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_HOPS = 40
"""Symlinks that one path may lead through (the kernel's MAXSYMLINKS)."""

_STRETCH = 1000
"""Entries that are applied between two checks of the caller's flag."""

_LATEST = 2**32 - 1
"""Seconds since 1970 that squashfs can say."""


def apply_layer(root: Directory, index: LayerIndex, number: int, budget: Budget) -> None:
    """Change the tree of the lower layers to that with layer `number`; empties the index.

    The layer's whiteouts act first, on the lower tree alone, wherever they stand; then its entries
    are added in order, and last come hard links whose target stood behind them. Raises
    `LayerInvalid`, and what `budget` raises, which counts each step of each path.
    """
    entries, index.entries = index.entries, []
    layer = _Layer(root, number, budget)
    layer.hide(entries)
    entries.reverse()
    while entries:  # an entry's memory is free for its leaf
        budget.check_stop()
        for _ in range(min(_STRETCH, len(entries))):
            layer.add(entries.pop())
    layer.finish()


class _Layer:
    """The tree while one layer is applied to it."""

    def __init__(self, root: Directory, number: int, budget: Budget) -> None:
        self._root = root
        self._number = number
        self._budget = budget
        # Where a parent's path leads, and whether that is below `dev/`; true until a directory or
        # a symlink gives way to something else.
        self._places: dict[bytes, tuple[Directory, bool]] = {}
        # What this layer's whiteouts took from a directory: hard links may still name it.
        self._hidden: dict[Directory, dict[bytes, Directory | Leaf]] = {}
        # Where hard links stand whose target was not there yet.
        self._pending: dict[Leaf, tuple[Directory, bytes]] = {}
        # Directories with a whiteout's name; links may lead into them while the layer is applied
        # (AUFS kept its hard links in `.wh..wh.plnk`).
        self._strays: list[tuple[Directory, bytes]] = []

    def hide(self, entries: list[Entry]) -> None:
        """Take out of the lower tree what the layer's whiteouts name."""
        stoppable = self._budget.stoppable
        whiteouts = [entry for entry in stoppable(entries) if entry.name.startswith(_WHITEOUT)]
        if not whiteouts:
            return
        # By parent and name: joined paths would take many times the memory.
        renewed = {
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
            # In the lower view: what one whiteout takes is still there for the others' paths.
            if entry.parent not in lower:
                trail = self._follow(entry.parent, lower=True)
                is_new = trail is None or self._leads_through(entry.parent, renewed)
                lower[entry.parent] = None if trail is None or is_new else trail[-1]
            directory = lower[entry.parent]
            if directory is None:
                continue
            children = directory.children
            if entry.name == _OPAQUE:
                taken, directory.children = children, {}
            else:
                victim = entry.name.removeprefix(_WHITEOUT)
                taken = {victim: children.pop(victim)} if victim in children else {}
            self._hidden.setdefault(directory, {}).update(taken)

    def _leads_through(self, path: bytes, renewed: set[tuple[bytes, bytes]]) -> bool:
        """Say whether a symlink on the way is one that this layer itself takes away.

        A whiteout below it speaks of the new directory, where there is nothing to hide: overlay
        file systems mark such directories as opaque.
        """
        node: Directory | Leaf | None = self._root
        end = -1
        while isinstance(node, Directory) and end < len(path):
            begin, end = end + 1, path.find(b"/", end + 1)
            end = len(path) if end < 0 else end
            node = self._child(node, path[begin:end], lower=True)
        self._budget.count_steps(path.count(b"/", 0, end) + 1)
        return isinstance(node, Leaf) and (path[: max(begin - 1, 0)], path[begin:end]) in renewed

    def add(self, entry: Entry) -> None:
        """Put one entry where its path leads."""
        name = entry.name
        if name.startswith(_WHITEOUT):
            return
        if not name:
            if entry.kind != DIRECTORY:
                raise LayerInvalid("A layer replaces the root by something else.")
            return
        directory, under_dev = self._places.get(entry.parent) or self._place(entry.parent)
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
            node = self._linked(directory, name, clean(entry.target))
        else:
            node = self._leaf(entry)
        self._put(directory, name, node, old)

    def _place(self, path: bytes) -> tuple[Directory, bool]:
        """Return the directory that a parent's path leads to; make it if it is missing.

        It is mostly one step from where its own parent's path leads, which is remembered. (Not from
        the root: only the whole way tells whether a path is below `dev/`.)
        """
        head, _, name = path.rpartition(b"/")
        directory, under_dev = self._places.get(head) or self._placed(head)
        if directory is not self._root:
            self._budget.count_steps(1)
            node = directory.children.get(name)
            if node is None:
                node = self._make(directory, name, None)
            if isinstance(node, Directory):
                self._places[path] = node, under_dev
                return node, under_dev
        return self._placed(path)

    def _placed(self, path: bytes) -> tuple[Directory, bool]:
        """Follow a parent's path from the root, and remember where it leads."""
        trail = self._follow(path, make=True)
        assert trail is not None
        under_dev = len(trail) > 1 and trail[1] is self._root.children.get(b"dev")
        self._places[path] = trail[-1], under_dev
        return self._places[path]

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
                self._places.clear()
            if self._pending:
                self._forget(old)
        directory.children[name] = node

    def _forget(self, old: Directory | Leaf) -> None:
        """Let no link wait that a later entry replaces, itself or a directory above it."""
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

    def _linked(self, directory: Directory, name: bytes, target: bytes) -> Leaf:
        """Return the inode that a hard link names, or a stand-in until the layer is complete."""
        leaf = self._find(target)
        if leaf is None or leaf.kind == PENDING:
            leaf = Leaf(PENDING, target=target)
            self._pending[leaf] = directory, name
        return leaf

    def _find(self, path: bytes, lower: bool = False) -> Leaf | None:
        """Return the inode of a path, or None; `lower`: as it was before this layer's whiteouts."""
        head, _, name = path.rpartition(b"/")
        known = None if lower else self._places.get(head)
        if known is not None:
            node = known[0].children.get(name)
        else:
            trail = self._follow(head, lower=lower)
            node = None if trail is None else self._child(trail[-1], name, lower)
        if isinstance(node, Directory):
            raise LayerInvalid("A layer has a hard link to a directory.")
        return node

    def _child(self, directory: Directory, name: bytes, lower: bool) -> Directory | Leaf | None:
        if lower and name in self._hidden.get(directory, ()):
            return self._hidden[directory][name]
        return directory.children.get(name)

    def _follow(
        self, path: bytes, make: bool = False, lower: bool = False
    ) -> list[Directory] | None:
        """Return the directories from the root to where `path` leads, symlinks followed.

        A missing directory is made (`make`), or the answer is None.
        """
        trail = [self._root]
        hops = 0
        ahead = path.split(b"/")[::-1]
        self._budget.count_steps(len(ahead))
        while ahead:
            name = ahead.pop()
            if name in {b"", b".", b".."}:
                # Only from a link's target: above the root is the root, as in a chroot.
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
                ahead += names[::-1]
                continue
            if not isinstance(node, Directory):
                if not make:
                    return None
                node = self._make(trail[-1], name, node)
            trail.append(node)
        return trail

    def _make(self, directory: Directory, name: bytes, old: Leaf | None) -> Directory:
        """Make a directory that has no entry of its own.

        It is 0755 and from 1970: no layer says otherwise, and the same image must give the same
        bytes on every day.
        """
        if old is not None and old.kind == SYMLINK:
            raise LayerInvalid(
                f"A layer has an entry below a chain of more than {_HOPS} links, or links in a"
                " circle."
            )
        if name.startswith(_WHITEOUT):
            self._strays.append((directory, name))
        node = Directory()
        self._put(directory, name, node, old)
        return node

    def finish(self) -> None:
        """Resolve the links that still wait, and drop what only this layer could see."""
        for leaf in self._budget.stoppable(list(self._pending)):
            if leaf in self._pending:  # else resolved with one that waited for it
                self._resolve(leaf)
        for directory, name in self._strays:
            directory.children.pop(name, None)

    def _resolve(self, leaf: Leaf) -> None:
        """Give a waiting link, and those that its target waits for, the inode they mean."""
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
        for waiting in chain:
            directory, name = self._pending.pop(waiting)
            directory.children[name] = inode


def _attributes(entry: Entry) -> tuple[int, int]:
    """Return the mode, with `XATTRS` beside it, and the time as squashfs can say it."""
    mode = entry.mode | XATTRS if entry.xattrs else entry.mode
    return mode, min(max(entry.mtime, 0), _LATEST)
