"""Random stacks of layers: all that an image may have, made anew from a number."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.build.stack_entries import StackEntry, sparse_entry, tar_of_entries
from tests.images import entry
from tests.oci.layers import hard_link, special, symlink
from tests.oci.model import InvalidLayers, flatten_model, whiteout_name

TIME = 1_700_000_000
_TIMES = (0, -1, -(2**40), 2**32 - 1, 2**32, 2**40, 1_600_000_000.5)
MODES = (0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o000, 0o111, 0o6711)
NAMES = ("a", "b", "c", "dev", "a -> b", "new\nline", "\udcff\udc80", "é", "n" * 255)
_INVALID_SHARE = 0.05
_REPEATED_SHARE = 0.08
_EMPTY_SHARE = 0.06
_DEPTH = 3  # of random paths
_DEEPEST = 60
_EXTENDED_SHARE = 0.3
"""The share of layers with xattrs, which no image keeps."""

_XATTRS = {"SCHILY.xattr.user.note": "text", "SCHILY.xattr.security.capability": "x"}
_LARGEST = 3 << 20  # bytes of the files of a layer
BLOCKS = (4096, 4096, 4096, 8192, 1 << 17, 1 << 20)
_LEVELS = {"gzip": (1, 5, 9), "zstd": (1, 3, 15), "xz": (None,)}


@dataclass(frozen=True)
class RandomStack:
    """Layers of an image, and the options with which it is built.

    `compressions` are those of the blobs. `claims` tells for each layer whether the image states
    its `diff_id`.
    """

    seed: int
    layers: Sequence[Sequence[StackEntry]]
    tars: Sequence[bytes]
    compressions: Sequence[str]
    claims: Sequence[bool]
    options: dict[str, Any]

    @property
    def plain_layers(self) -> list[list[tuple[tarfile.TarInfo, bytes]]]:
        """Return the entries with the whole contents of their files, as the model takes them."""
        return [[(item.info, item.content) for item in layer] for layer in self.layers]


def random_stack(seed: int) -> RandomStack:
    """Return the stack of this number; few stacks are invalid."""
    chance = random.Random(seed)
    block = chance.choice(BLOCKS)
    while True:
        layers = _random_layers(LayerMaker(chance, block))
        try:
            flatten_model([[(item.info, item.content) for item in layer] for layer in layers])
        except InvalidLayers:
            if chance.random() > _INVALID_SHARE:
                continue
        return stack_of(seed, chance, block, layers)


def _random_layers(maker: LayerMaker) -> list[list[StackEntry]]:
    """Return layers, of which some are empty or repeated."""
    layers: list[list[StackEntry]] = []
    for _ in range(maker.chance.randint(1, 5)):
        kind = maker.chance.random()
        if layers and kind < _REPEATED_SHARE:
            layers.append(maker.chance.choice(layers))
        else:
            layers.append([] if kind > 1 - _EMPTY_SHARE else list(maker.layer()))
    return layers


def stack_of(
    seed: int, chance: random.Random, block: int, layers: Sequence[Sequence[StackEntry]]
) -> RandomStack:
    """Return the stack of these layers with random options; `block` is the size of a block."""
    compressor = chance.choice(list(_LEVELS))
    tars = []
    for layer in layers:
        formats = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
        is_extended = any(item.info.pax_headers for item in layer)
        tars.append(tar_of_entries(layer, formats[chance.random() < 0.3 and not is_extended]))
    return RandomStack(
        seed,
        layers,
        tars,
        [chance.choice(["gzip", "zstd", "plain"]) for _ in layers],
        [chance.random() < 0.8 for _ in layers],
        {
            "compressor": compressor,
            "level": chance.choice(_LEVELS[compressor]),
            "block_size": f"{block >> 10}K",
            "processors": 1,
            "keep_setuid": chance.random() < 0.3,
        },
    )


class LayerMaker:
    """Makes layers whose names and contents meet those of the other layers of the stack."""

    def __init__(self, chance: random.Random, block: int) -> None:
        """Choose everything by `chance`; many files have a size near multiples of `block`."""
        self.chance = chance
        self._block = block
        self._contents = [b""]
        self._files = ["a"]
        self._groups: list[Callable[[], Iterator[StackEntry]]] = [
            *[self._small_files] * 4,
            *[self._sparse_files] * 2,
            *[self._links] * 2,
            self._large_directory,
            self._deep_path,
        ]

    def layer(self) -> Iterator[StackEntry]:
        """Yield the entries of a layer."""
        chance = self.chance
        items = [self.entry() for _ in range(chance.randrange(12))]
        for _ in range(chance.choice([0, 0, 1, 2])):
            items += chance.choice(self._groups)()
        if chance.random() < 0.2:
            chance.shuffle(items)
        has_xattrs = chance.random() < _EXTENDED_SHARE
        room = _LARGEST
        for number, item in enumerate(items):
            room -= len(item.content)
            if has_xattrs and number % 4 == 0:
                item.info.pax_headers = {**item.info.pax_headers, **_XATTRS}
            if room > 0:
                yield item

    def entry(self) -> StackEntry:
        """Return an entry of any kind."""
        chance, path = self.chance, self.path()
        kind = chance.choices(
            ["file", "directory", "symlink", "link", "special", "whiteout", "opaque"],
            [10, 4, 3, 3, 1, 3, 1],
        )[0]
        if kind == "file":
            return self.file(path)
        if kind == "directory":
            return StackEntry(*entry(f"{path}/", **self.members()))
        if kind == "symlink":
            start = chance.choice(["", "/", "../", "../../", "./"])
            return StackEntry(*symlink(path, start + self.path()))
        if kind == "link":
            return StackEntry(*hard_link(path, chance.choice(self._files)))
        if kind == "special":
            node = chance.choice([tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
            return StackEntry(*special(path, node))
        name = whiteout_name(path) if kind == "whiteout" else f"{path}/.wh..wh..opq"
        return StackEntry(*entry(name, b""))

    def file(self, path: str) -> StackEntry:
        """Return a file with a content that may occur elsewhere, too."""
        self._files.append(path)
        return StackEntry(*entry(path, self.content(), **self.members()))

    def path(self, names: Sequence[str] = NAMES) -> str:
        """Return a path of few components, which other entries have, too."""
        weights = [6 if name in "abc" else 1 for name in names]
        return "/".join(self.chance.choices(names, weights, k=self.chance.randint(1, _DEPTH)))

    def members(self) -> dict[str, Any]:
        """Return mode, owner and time of an entry."""
        chance = self.chance
        is_odd = chance.random() < 0.3
        return {
            "mode": chance.choice(MODES) if is_odd else 0o755,
            "mtime": chance.choice(_TIMES) if is_odd else TIME + chance.randrange(1000),
            "uid": chance.choice([0, 1000, 2**21 - 1]),
            "gid": chance.choice([0, 100]),
        }

    def content(self) -> bytes:
        """Return a content: a new one, or an earlier one of this stack."""
        chance, block = self.chance, self._block
        if chance.random() < 0.35:
            return chance.choice(self._contents)
        blocks = chance.choice([0, 0, 0, 1, 1, 2, 3])
        size = max(0, blocks * block + chance.choice([-1, 0, 1, chance.randrange(block)]))
        content = self.new_bytes(size)
        self._contents.append(content)
        return content

    def new_bytes(self, size: int) -> bytes:
        """Return new bytes: noise, text, zeros, or a mixture by blocks."""
        chance = self.chance
        fills: list[Callable[[int], bytes]] = [chance.randbytes, self._text, bytes]
        content = chance.choice(fills)(size)
        if chance.random() < 0.2:
            middle = size // 2 // self._block * self._block
            content = content[:middle] + bytes(size - middle)
        return content

    def _text(self, size: int) -> bytes:
        line = b"%d words of a text\n" % self.chance.randrange(10**6)
        return (line * (size // len(line) + 1))[:size]

    def _small_files(self) -> Iterator[StackEntry]:
        """Yield tails, of which other layers replace a share."""
        directory = self.chance.choice(["a", "b/c"])
        for number in self.chance.sample(range(60), self.chance.randint(1, 60)):
            path = f"{directory}/{number}"
            if self.chance.random() < 0.1:
                path, content = whiteout_name(path), b""
            else:
                content = self.new_bytes(self.chance.randrange(1500))
            yield StackEntry(*entry(path, content, **self.members()))

    def _sparse_files(self) -> Iterator[StackEntry]:
        for _ in range(self.chance.randint(1, 3)):
            size = self.chance.randrange(1, 6 * min(self._block, 1 << 17))
            pieces = []
            position = 0
            for _ in range(self.chance.randrange(4)):
                start = self.chance.randint(position, size)
                length = self.chance.randint(0, min(size - start, 3 * 4096))
                pieces.append((start, self.new_bytes(length)))
                position = start + length
            yield sparse_entry(self.path(), pieces, size, **self.members())

    def _links(self) -> Iterator[StackEntry]:
        """Yield a file and its links; the target may come last."""
        paths = [self.path() for _ in range(self.chance.randint(2, 5))]
        items = [self.file(paths[0])]
        items += [StackEntry(*hard_link(path, paths[0])) for path in paths[1:]]
        if self.chance.random() < 0.3:
            items.reverse()
        yield from items

    def _large_directory(self) -> Iterator[StackEntry]:
        """Yield files of one directory, whose listing needs an index."""
        suffix = "x" * self.chance.choice([10, 200])
        for number in range(self.chance.randint(300, 700)):
            yield StackEntry(*entry(f"many/{number}{suffix}", b"%d" % (number % 7)))

    def _deep_path(self) -> Iterator[StackEntry]:
        names = self.chance.choices(NAMES[:3], k=self.chance.randint(10, _DEEPEST))
        yield self.file("/".join(["deep", *names, "end"]))
