"""What layers mean, said a second time and slowly: flat dictionaries, copied at every layer."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.images import entry
from tests.oci.layers import hard_link, special, symlink

Path = tuple[str, ...]


class Refused(Exception):
    """The model has no meaning for this layer."""


@dataclass(eq=False)
class Node:
    """An inode: `directory`, `file`, `symlink`, `device`, `under dev`, or `waiting`."""

    kind: str
    data: bytes = b""
    target: str = ""


@dataclass
class Image:
    """What the model says of an image."""

    contents: dict[str, bytes | str] = field(default_factory=dict)
    groups: list[set[str]] = field(default_factory=list)
    devices: int = 0
    under_dev: int = 0


View = dict[Path, Node]


def split(path: str) -> Path:
    """Return the components of a path."""
    return tuple(part for part in path.split("/") if part not in {"", "."})


def real(view: View, path: Path) -> Path:
    """Return where a parent's path leads, symlinks followed; raise `Refused` for a circle."""
    place: Path = ()
    ahead = list(path)
    hops = 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            place = place[:-1]
            continue
        node = view.get((*place, part))
        if node is None or node.kind != "symlink":
            place = (*place, part)
            continue
        hops += 1
        if hops > 40:
            raise Refused
        if node.target.startswith("/"):
            place = ()
        ahead = [*split(node.target), *ahead]
    return place


def without(view: View, top: Path) -> View:
    """Return the view without a path and all below it."""
    return {path: node for path, node in view.items() if path[: len(top)] != top}


def is_directory(view: View, path: Path) -> bool:
    """Say whether a directory is there."""
    return path == () or (path in view and view[path].kind == "directory")


def apply_whiteouts(lower: View, entries: list[tuple[Path, tarfile.TarInfo]]) -> View:
    """Return the lower view without what the whiteouts name, all seen from the whole lower view."""
    view = dict(lower)
    hidden = [(path, path[-1]) for path, _ in entries if path[-1].startswith(".wh.")]
    renewed = {path for path, info in entries if info.isdir()}
    renewed |= {(*path[:-1], name[4:]) for path, name in hidden}
    for path, name in hidden:
        parent = path[:-1]
        prefixes = (parent[:n] for n in range(1, len(parent) + 1))
        first = next((p for p in prefixes if p in lower and lower[p].kind != "directory"), None)
        if first is not None and first in renewed:
            continue
        try:
            place = real(lower, parent)
        except Refused:
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
    """Return what a hard link's target is; below a circle there is nothing."""
    try:
        return view.get((*real(view, path[:-1]), path[-1]))
    except Refused:
        return None


def make_parents(view: View, place: Path) -> View:
    """Return the view with directories all the way to `place`."""
    for n in range(1, len(place) + 1):
        if not is_directory(view, place[:n]):
            view = {**view, place[:n]: Node("directory")}
    return view


def add(view: View, path: Path, info: tarfile.TarInfo, data: bytes) -> View:
    """Return the view with one entry added."""
    parent = real(view, path[:-1])
    view = make_parents(view, parent)
    place = (*parent, path[-1])
    if info.isdir():
        return view if is_directory(view, place) else {**view, place: Node("directory")}
    if parent[:1] == ("dev",):
        node = Node("under dev")
    elif info.islnk():
        target = split(info.linkname)
        found = find(view, target)
        if found is not None and found.kind == "directory":
            raise Refused
        waits = found is None or found.kind == "waiting"
        node = found if found is not None and not waits else Node("waiting", target=info.linkname)
    elif info.issym():
        node = Node("symlink", target=info.linkname)
    else:
        node = Node("file", data) if info.isreg() else Node("device")
    return {**without(view, place), place: node}


def resolve_links(view: View, before: View) -> View:
    """Return the view with all waiting links resolved, if need be in the view `before`."""
    while True:
        waiting = [path for path, node in view.items() if node.kind == "waiting"]
        if not waiting:
            return view
        for path in waiting:
            target = split(view[path].target)
            found = find(view, target) or find(before, target)
            if found is not None and found.kind == "directory":
                raise Refused
            if found is not None and found.kind != "waiting":
                view = {**view, path: found}
                break
        else:
            raise Refused


def flattened(layers: Sequence[Sequence[tuple[tarfile.TarInfo, bytes]]]) -> Image:
    """Return what the layers mean; raise `Refused` where they mean nothing."""
    view: View = {}
    for layer in layers:
        lower = view
        entries = [(split(info.name), info) for info, _ in layer]
        view = apply_whiteouts(lower, entries)
        hidden = {path: node for path, node in lower.items() if path not in view}
        for info, data in layer:
            path = split(info.name)
            if not path[-1].startswith(".wh."):
                view = add(view, path, info, data)
        view = resolve_links(view, {**view, **hidden})
    return described(view)


def described(view: View) -> Image:
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
            said = {"directory": "/", "symlink": f"-> {node.target}"}
            image.contents[name] = said.get(node.kind, node.data)
    image.groups = [group for group in names.values() if len(group) > 1]
    return image


def hidden(path: str) -> str:
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
    st.builds(lambda path: entry(hidden(path), b""), PATHS),
    st.builds(lambda path: entry(f"{path}/.wh..wh..opq", b""), PATHS),
)
LAYERS = st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=4)
"""Layers of few names, so that they meet: whiteouts, links, symlinks and type changes."""
