"""The indexes of all layers → the one final tree: whiteouts, links, type changes, modes.

The rules are those of the OCI image specification, "Applying Changesets", and where that is silent
those of `umoci` and the kernel's overlay. A layer's whiteouts act on the lower tree first, wherever
they stand; then its entries are added in order. The whole plan stands before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shiftergw.errors import ImageTooLarge, LayerInvalid, amount
from shiftergw.image import ContentReport
from shiftergw.oci.budget import Budget
from shiftergw.oci.changeset import apply_layer
from shiftergw.oci.paths import PATH_LIMIT
from shiftergw.oci.tar import LayerIndex
from shiftergw.oci.tree import REGULAR, SPECIAL, SYMLINK, XATTRS, Directory, Leaf

_PERMISSIONS = 0o1777  # with the sticky bit, which does no harm
_SETUID = 0o6000


@dataclass(slots=True)
class Plan:
    """What the squashfs will hold, and what was left out.

    `inodes` counts directories, the root included, and each leaf once, as `unsquashfs -s` does.
    `latest` is the latest time of any node, in seconds since 1970.
    """

    root: Directory
    report: ContentReport
    inodes: int
    latest: int


def flatten(indexes: Iterable[LayerIndex], budget: Budget, keep_setuid: bool) -> Plan:
    """Plan the tree that the layers give, lowest first.

    Empties each index as it goes, so that entries and tree are not in memory twice. Raises
    `LayerInvalid` for what leaves the root or cannot be, `ImageTooLarge` beyond the limits of
    `budget`, and `StopRequested` soon after its flag is set.
    """
    root = Directory()
    for number, index in enumerate(indexes):
        apply_layer(root, index, number, budget)
    return _Settling(root, budget, keep_setuid).plan


class _Settling:
    """The last pass over the tree: drops what no image may hold, makes modes readable, counts."""

    def __init__(self, root: Directory, budget: Budget, keep_setuid: bool) -> None:
        self.plan = Plan(root, ContentReport(), inodes=1, latest=0)
        self._limits = budget.limits
        self._budget = budget
        self._unpacked: dict[int, int] = {}
        # By number of a layer, how far it is unpacked for its files.
        self._kept_bits = _PERMISSIONS | (_SETUID if keep_setuid else 0)
        root.mode, root.mtime = 0o755, 0  # as `mksquashfs` is told to make it
        dev = root.children.get(b"dev")
        if isinstance(dev, Directory):
            self._drop_below(dev)
        # A directory waits with the length of its path: PATH_MAX counts what links lead to, too.
        waiting = [(root, 0)]
        paths_size = 0
        while waiting:
            directory, length = waiting.pop()
            dropped = []
            for name, node in budget.stoppable(directory.children.items()):
                end = length + len(name)
                paths_size += end
                if end > PATH_LIMIT:
                    raise LayerInvalid(f"The image has a path of more than {PATH_LIMIT} bytes.")
                if isinstance(node, Directory):
                    waiting.append((node, end + 1))
                    self._settle_directory(node)
                elif node.kind in {REGULAR, SYMLINK}:
                    self._settle_leaf(node)
                else:
                    dropped.append(name)
                    self._count_dropped(node)
            for name in budget.stoppable(dropped):
                del directory.children[name]
            if paths_size > self._limits.names_size:
                raise ImageTooLarge.for_limit(
                    "The paths of the image are longer than"
                    f" {amount(self._limits.names_size)} together.",
                    "MaxNamesSize",
                )
        budget.check_unpacked(sum(self._unpacked.values()))

    def _drop_below(self, dev: Directory) -> None:
        """Empty `dev/`, which the runtime fills."""
        waiting = [dev]
        while waiting:
            directory = waiting.pop()
            self.plan.report.under_dev += len(directory.children)
            children = self._budget.stoppable(directory.children.values())
            waiting += [node for node in children if isinstance(node, Directory)]
        dev.children.clear()

    def _count_dropped(self, leaf: Leaf) -> None:
        if leaf.kind == SPECIAL:
            self.plan.report.devices += 1
        else:
            self.plan.report.under_dev += 1

    def _settle_directory(self, directory: Directory) -> None:
        directory.mode = self._settled(directory.mode, 0o755)
        self._count(directory)

    def _settle_leaf(self, leaf: Leaf) -> None:
        report = self.plan.report
        leaf.names += 1
        if leaf.names > 1:
            self._count_entry()
            return
        report.size += leaf.size
        if report.size > self._limits.size:
            raise ImageTooLarge.for_limit(
                f"The image holds more than {amount(self._limits.size)} of files.", "MaxImageSize"
            )
        if leaf.kind == REGULAR:
            if leaf.size:
                self._count_unpacked(leaf)
            leaf.mode = self._settled(leaf.mode, 0o755 if leaf.mode & 0o111 else 0o644)
        else:
            report.xattrs += leaf.mode >= XATTRS
            leaf.mode = 0o777
        self._count(leaf)

    def _count_unpacked(self, leaf: Leaf) -> None:
        stored = leaf.size if leaf.sparse is None else sum(length for _, length in leaf.sparse)
        end = leaf.offset + stored
        if end > self._unpacked.get(leaf.layer, 0):
            self._unpacked[leaf.layer] = end

    def _settled(self, mode: int, added: int) -> int:
        """Return the bits of a file or directory as the site's users need them; count changes."""
        report = self.plan.report
        report.xattrs += mode >= XATTRS
        kept = mode & self._kept_bits
        report.setuid += kept & _SETUID != mode & _SETUID
        report.modes += kept | added != kept
        return kept | added

    def _count(self, node: Directory | Leaf) -> None:
        """Count an inode, and its first name."""
        plan = self.plan
        plan.inodes += 1
        plan.latest = max(plan.latest, node.mtime)
        self._count_entry()

    def _count_entry(self) -> None:
        self.plan.report.entries += 1
        if self.plan.report.entries > self._limits.entries:
            raise ImageTooLarge.for_limit(
                f"The image has more than {self._limits.entries} entries.", "MaxEntries"
            )
