"""Random stacks of layers as programs that build images write them.

All programs unpack such layers in the same way: no layer has a path twice, or goes through a
symlink, and the target of a hard link comes first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.build.random_stacks import BLOCKS, MODES, NAMES, TIME, LayerMaker, RandomStack, stack_of
from tests.build.stack_entries import StackEntry
from tests.images import entry
from tests.oci.layers import hard_link, symlink
from tests.oci.model import whiteout_name

_NAMES = tuple(name for name in NAMES if name != "dev")


def orderly_stack(seed: int) -> RandomStack:
    """Return the stack of this number."""
    chance = random.Random(seed)
    block = chance.choice(BLOCKS)
    maker = _TreeMaker(LayerMaker(chance, block))
    layers = [list(maker.layer()) for _ in range(chance.randint(1, 5))]
    stack = stack_of(seed, chance, block, layers)
    return replace(stack, options={**stack.options, "keep_setuid": False})


class _TreeMaker:
    """Makes layers that change a tree which it keeps: path → whether it is a directory.

    None is a symlink.
    """

    def __init__(self, maker: LayerMaker) -> None:
        """Take names and contents from `maker`."""
        self._maker = maker
        self._chance = maker.chance
        self._tree: dict[str, bool | None] = {}

    def layer(self) -> Iterator[StackEntry]:
        """Yield the entries of a layer: directories before what is in them."""
        lower, layer_paths = dict(self._tree), set[str]()
        for _ in range(self._chance.randrange(1, 25)):
            path = self._maker.path(_NAMES)
            parents = [path[:end] for end, letter in enumerate(path) if letter == "/"]
            names = [*parents, path]
            if path in layer_paths or any(whiteout_name(name) in layer_paths for name in names):
                continue
            if any(self._tree.get(name, True) is not True for name in parents):
                continue  # a file or a symlink
            for parent in parents:
                if parent not in self._tree:
                    layer_paths.add(parent)
                    self._tree[parent] = True
                    yield StackEntry(*entry(f"{parent}/", **self._members()))
            layer_paths.add(path)
            if path in lower and self._chance.random() < 0.3:
                if not any(name.startswith(f"{path}/") for name in layer_paths):
                    layer_paths.add(whiteout_name(path))
                    self._drop(path)
                    yield StackEntry(*entry(whiteout_name(path), b""))
                continue
            yield from self._change(path, lower, layer_paths)

    def _change(
        self, path: str, lower: dict[str, bool | None], layer_paths: set[str]
    ) -> Iterator[StackEntry]:
        """Yield a new or changed entry, and perhaps the mark of an opaque directory."""
        chance = self._chance
        is_entered = any(name.startswith(f"{path}/") for name in layer_paths)
        kind = chance.choices(["file", "directory", "symlink", "link"], [8, 4, 2, 3])[0]
        files = [name for name, is_directory in self._tree.items() if is_directory is False]
        if kind == "directory" or is_entered:
            yield StackEntry(*entry(f"{path}/", **self._members()))
            if self._tree.get(path) is not True:
                self._drop(path)
            elif path in lower and not is_entered and chance.random() < 0.3:
                self._drop(path)
                yield StackEntry(*entry(f"{path}/.wh..wh..opq", b""))
            self._tree[path] = True
            return
        if kind == "link" and files:
            target = chance.choice(files)
            if target == path or target.startswith(f"{path}/"):
                return
            self._drop(path)
            self._tree[path] = False
            yield StackEntry(*hard_link(path, target))
            return
        self._drop(path)
        self._tree[path] = None if kind == "symlink" else False
        if kind == "symlink":
            yield StackEntry(*symlink(path, self._maker.path()))
        else:
            yield StackEntry(*entry(path, self._maker.content(), **self._members()))

    def _drop(self, path: str) -> None:
        for name in [name for name in self._tree if name == path or name.startswith(f"{path}/")]:
            del self._tree[name]

    def _members(self) -> dict[str, Any]:
        """Return mode and time, which other programs keep as they are."""
        return {"mode": self._chance.choice(MODES), "mtime": TIME + self._chance.randrange(1000)}
