"""A second, slow implementation of layers: flat dictionaries that each layer copies."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.images import entry
from tests.oci.layers import hard_link, special, symlink

Path = tuple[str, ...]


class InvalidLayers(Exception):
    """The layers are invalid."""


@dataclass(eq=False)
class Node:
    """An inode: `directory`, `file`, `symlink`, `device`, `under dev`, or `waiting`.

    `removed_target` is what the target of a waiting link was before the whiteouts of its layer.
    """

    kind: str
    data: bytes = b""
    target: str = ""
    removed_target: Node | None = None

    def file_before_whiteouts(self) -> Node | None:
        """Return the inode that `removed_target` is, unless a link cannot refer to it."""
        node = self.removed_target
        return None if node is None or node.kind in {"directory", "waiting"} else node


@dataclass
class Image:
    """The image that the model computes."""

    contents: dict[str, bytes | str] = field(default_factory=dict)
    groups: list[set[str]] = field(default_factory=list)
    devices: int = 0
    under_dev: int = 0


View = dict[Path, Node]


def split(path: str) -> Path:
    """Return the components of a path."""
    return tuple(part for part in path.split("/") if part not in {"", "."})


def real(view: View, path: Path) -> Path:
    """Resolve a parent path with its symlinks; raise `InvalidLayers` for a circle of links."""
    place: Path = ()
    rest = list(path)
    hops = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            place = place[:-1]
            continue
        node = view.get((*place, part))
        if node is None or node.kind != "symlink":
            place = (*place, part)
            continue
        hops += 1
        if hops > 40:
            raise InvalidLayers
        if node.target.startswith("/"):
            place = ()
        rest = [*split(node.target), *rest]
    return place


def without(view: View, top: Path) -> View:
    """Return the view without a path and everything below it."""
    return {path: node for path, node in view.items() if path[: len(top)] != top}


def is_directory(view: View, path: Path) -> bool:
    """Return whether a path is a directory."""
    return path == () or (path in view and view[path].kind == "directory")


def apply_whiteouts(lower: View, entries: list[tuple[Path, tarfile.TarInfo]]) -> View:
    """Return the lower view without the targets of the whiteouts, all resolved in that view."""
    view = dict(lower)
    whiteouts = [(path, path[-1]) for path, _ in entries if path[-1].startswith(".wh.")]
    replacements = {path for path, info in entries if info.isdir()}
    replacements |= {(*path[:-1], name[4:]) for path, name in whiteouts}
    for path, name in whiteouts:
        parent = path[:-1]
        prefixes = (parent[:n] for n in range(1, len(parent) + 1))
        first = next((p for p in prefixes if p in lower and lower[p].kind != "directory"), None)
        if first is not None and first in replacements:
            continue
        try:
            place = real(lower, parent)
        except InvalidLayers:
            continue
        if not is_directory(lower, place):
            continue
        opaque = name == ".wh..wh..opq"
        victims = [p for p in lower if len(p) > len(place) and p[: len(place)] == place]
        for victim in victims:
            if opaque or victim[len(place)] == name[4:]:
                view.pop(victim, None)
    return view


def find(view: View, path: Path) -> Node | None:
    """Return the target of a hard link; None below a circle of symlinks."""
    try:
        return view.get((*real(view, path[:-1]), path[-1]))
    except InvalidLayers:
        return None


def make_parents(view: View, place: Path) -> View:
    """Return the view with all directories on the way to `place`."""
    for n in range(1, len(place) + 1):
        if not is_directory(view, place[:n]):
            view = {**view, place[:n]: Node("directory")}
    return view


def add(
    view: View, path: Path, info: tarfile.TarInfo, data: bytes, lower: View, removals: View
) -> View:
    """Return the view with one more entry; whiteouts took `removals` from `lower`."""
    parent = real(view, path[:-1])
    view = make_parents(view, parent)
    place = (*parent, path[-1])
    if info.isdir():
        return view if is_directory(view, place) else {**view, place: Node("directory")}
    if parent[:1] == ("dev",):
        node = Node("under dev")
    elif info.islnk():
        target = split(info.linkname)
        target_node = find(view, target)
        if target_node is not None and target_node.kind == "directory":
            raise InvalidLayers
        waits = target_node is None or target_node.kind == "waiting"
        node = (
            target_node
            if target_node is not None and not waits
            else Node("waiting", target=info.linkname)
        )
        if waits:
            before = {**view, **in_lower_directories(removals, lower, view)}
            node.removed_target = find(before, target)
    elif info.issym():
        node = Node("symlink", target=info.linkname)
    else:
        node = Node("file", data) if info.isreg() else Node("device")
    return {**without(view, place), place: node}


def in_lower_directories(removals: View, lower: View, view: View) -> View:
    """Return the removed paths whose directories are those of the lower layers, or removed too.

    Links cannot lead to the others: the layer has put something else in the place of a directory.
    """
    return {
        path: node
        for path, node in removals.items()
        if all(
            path[:n] in removals or view.get(path[:n]) is lower[path[:n]]
            for n in range(1, len(path))
        )
    }


def resolve_links(view: View, before: View) -> View:
    """Return the view with all pending links resolved, if necessary in the view `before`."""
    while True:
        waiting = [path for path, node in view.items() if node.kind == "waiting"]
        if not waiting:
            return view
        for path in waiting:
            target = split(view[path].target)
            target_node = (
                find(view, target) or find(before, target) or view[path].file_before_whiteouts()
            )
            if target_node is not None and target_node.kind == "directory":
                raise InvalidLayers
            if target_node is not None and target_node.kind != "waiting":
                view = {**view, path: target_node}
                break
        else:
            raise InvalidLayers


def flatten_model(layers: Sequence[Sequence[tuple[tarfile.TarInfo, bytes]]]) -> Image:
    """Return the image of the layers; raise `InvalidLayers` if they are invalid."""
    view: View = {}
    for layer in layers:
        lower = view
        entries = [(split(info.name), info) for info, _ in layer]
        view = apply_whiteouts(lower, entries)
        removals = {path: node for path, node in lower.items() if path not in view}
        for info, data in layer:
            path = split(info.name)
            if not path[-1].startswith(".wh."):
                view = add(view, path, info, data, lower, removals)
        view = resolve_links(view, {**view, **in_lower_directories(removals, lower, view)})
    return describe(view)


def describe(view: View) -> Image:
    """Return the image of a finished view."""
    image = Image()
    names: dict[Node, set[str]] = {}
    dev_is_directory = is_directory(view, ("dev",))
    for path, node in view.items():
        if node.kind == "under dev" or (dev_is_directory and path[0] == "dev" and len(path) > 1):
            image.under_dev += 1
        elif node.kind == "device":
            image.devices += 1
        else:
            name = "/".join(path)
            names.setdefault(node, set()).add(name)
            marks = {"directory": "/", "symlink": f"-> {node.target}"}
            image.contents[name] = marks.get(node.kind, node.data)
    image.groups = [group for group in names.values() if len(group) > 1]
    return image


def whiteout_name(path: str) -> str:
    """Return the name of the whiteout of a path."""
    head, _, name = path.rpartition("/")
    return f"{head}/.wh.{name}".lstrip("/")


COMPONENTS = st.sampled_from(["a", "b", "c", "dev"])
PATHS = st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join)
TARGETS = st.tuples(st.sampled_from(["", "/", "../", "../../", "./"]), PATHS).map("".join)
DATA = st.binary(max_size=600)
ENTRIES = st.one_of(
    st.builds(entry, PATHS, DATA),
    st.builds(entry, PATHS, DATA),
    st.builds(lambda path: entry(path + "/"), PATHS),
    st.builds(symlink, PATHS, TARGETS),
    st.builds(hard_link, PATHS, PATHS),
    st.builds(special, PATHS),
    st.builds(lambda path: entry(whiteout_name(path), b""), PATHS),
    st.builds(lambda path: entry(f"{path}/.wh..wh..opq", b""), PATHS),
)
LAYERS = st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=4)
"""Layers of few names, so that they meet: whiteouts, links, symlinks and type changes."""
