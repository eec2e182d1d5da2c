"""Flatten the indexes of all layers to one final tree: whiteouts, links, type changes, modes.

The rules are those of the OCI image-spec, "Applying Changesets"; where it is silent, those of
`umoci` and of the kernel's overlay file system. The whiteouts of a layer act on the lower tree
first; then its entries are added in order. The plan is complete before any byte is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shiftergw.errors import ImageTooLarge, LayerInvalid, amount
from shiftergw.model.images import ContentReport
from shiftergw.oci.budget import Budget
from shiftergw.oci.changeset import apply_layer
from shiftergw.oci.paths import PATH_LIMIT
from shiftergw.oci.tar import LayerIndex
from shiftergw.oci.tree import REGULAR, SPECIAL, SYMLINK, XATTRS, Directory, Leaf

_PERMISSIONS = 0o1777  # with the sticky bit, which is harmless
_SETUID = 0o6000


@dataclass(slots=True)
class Plan:
    """The tree of the squashfs, and a report of what was dropped.

    `inodes` counts directories, including the root, and each leaf once, as `unsquashfs -s` does.
    `latest` is the latest time of all nodes, in seconds since 1970. `most_entries` is the number of
    entries of the largest directory.
    """

    root: Directory
    report: ContentReport
    inodes: int
    latest: int
    most_entries: int = 0


def flatten(indexes: Iterable[LayerIndex], budget: Budget, keep_setuid: bool) -> Plan:
    """Return the plan of the tree of these layers, lowest first.

    Empties each index on the way, so that entries and tree are not in memory at the same time.
    Raises `LayerInvalid` for paths that leave the root and for impossible entries, `ImageTooLarge`
    beyond the limits of `budget`, and `StopRequested` soon after its flag is set.
    """
    root = Directory()
    for number, index in enumerate(indexes):
        apply_layer(root, index, number, budget)
    return _Finish(root, budget, keep_setuid).plan


class _Finish:
    """The last pass over the tree: drop special files, make modes readable, count entries."""

    def __init__(self, root: Directory, budget: Budget, keep_setuid: bool) -> None:
        self.plan = Plan(root, ContentReport(), inodes=1, latest=0)
        self._limits = budget.limits
        self._budget = budget
        # For each layer number, the offset up to which its files need it unpacked.
        self._unpacked_sizes: dict[int, int] = {}
        self._allowed_bits = _PERMISSIONS | (_SETUID if keep_setuid else 0)
        root.mode, root.mtime = 0o755, 0  # as in the options of `mksquashfs`
        dev = root.children.get(b"dev")
        if isinstance(dev, Directory):
            self._drop_below(dev)
        # Each directory with the length of its path. PATH_MAX also limits the targets of links.
        waiting = [(root, 0)]
        paths_size = 0
        while waiting:
            directory, length = waiting.pop()
            special_names = []
            for name, node in budget.stoppable(directory.children.items()):
                end = length + len(name)
                paths_size += end
                if end > PATH_LIMIT:
                    raise LayerInvalid(f"The image has a path of more than {PATH_LIMIT} bytes.")
                if isinstance(node, Directory):
                    waiting.append((node, end + 1))
                    self._finish_directory(node)
                elif node.kind in {REGULAR, SYMLINK}:
                    self._finish_leaf(node)
                else:
                    special_names.append(name)
                    self._count_special(node)
            for name in budget.stoppable(special_names):
                del directory.children[name]
            self.plan.most_entries = max(self.plan.most_entries, len(directory.children))
            if paths_size > self._limits.names_size:
                raise ImageTooLarge.for_limit(
                    "The paths of the image are longer than"
                    f" {amount(self._limits.names_size)} together.",
                    "MaxNamesSize",
                )
        budget.check_unpacked(sum(self._unpacked_sizes.values()))

    def _drop_below(self, dev: Directory) -> None:
        """Empty `dev/`, because the runtime provides its own."""
        waiting = [dev]
        while waiting:
            directory = waiting.pop()
            self.plan.report.under_dev += len(directory.children)
            children = self._budget.stoppable(directory.children.values())
            waiting += [node for node in children if isinstance(node, Directory)]
        dev.children.clear()

    def _count_special(self, leaf: Leaf) -> None:
        if leaf.kind == SPECIAL:
            self.plan.report.devices += 1
        else:
            self.plan.report.under_dev += 1

    def _finish_directory(self, directory: Directory) -> None:
        directory.mode = self._readable_mode(directory.mode, 0o755)
        self._count(directory)

    def _finish_leaf(self, leaf: Leaf) -> None:
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
            leaf.mode = self._readable_mode(leaf.mode, 0o755 if leaf.mode & 0o111 else 0o644)
        else:
            report.xattrs += leaf.mode >= XATTRS
            leaf.mode = 0o777
        self._count(leaf)

    def _count_unpacked(self, leaf: Leaf) -> None:
        data_size = leaf.size if leaf.sparse is None else sum(length for _, length in leaf.sparse)
        end = leaf.offset + data_size
        if end > self._unpacked_sizes.get(leaf.layer, 0):
            self._unpacked_sizes[leaf.layer] = end

    def _readable_mode(self, mode: int, required_bits: int) -> int:
        """Return the mode with the bits that the site's users need; count the changes."""
        report = self.plan.report
        report.xattrs += mode >= XATTRS
        bits = mode & self._allowed_bits
        report.setuid += bits & _SETUID != mode & _SETUID
        report.modes += bits | required_bits != bits
        return bits | required_bits

    def _count(self, node: Directory | Leaf) -> None:
        """Count an inode and its first name."""
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
