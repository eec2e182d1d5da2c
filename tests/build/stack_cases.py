"""Stacks of layers by name, one for each rule about what layers may contain."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.build.random_stacks import RandomStack
from tests.build.stack_entries import StackEntry, sparse_entry, tar_of_entries
from tests.images import entry
from tests.oci.layers import hard_link, special, symlink

Layers = Sequence[Sequence[StackEntry]]

BLOCK = 4096
_NOISE = random.Random(7)


def items(*entries: tuple[tarfile.TarInfo, bytes]) -> list[StackEntry]:
    """Return a layer of these entries."""
    return [StackEntry(*pair) for pair in entries]


def noise(size: int) -> bytes:
    """Return bytes that do not compress."""
    return _NOISE.randbytes(size)


def _whiteouts() -> Layers:
    lower = items(entry("a/"), entry("a/1", b"1"), entry("a/2", b"2"), entry("b/c/d", b"3"))
    second = items(entry("a/1", b"new"), entry("a/.wh.1", b""), entry(".wh.nothing", b""))
    return [items(entry(".wh.a", b""), entry("x", b"")), lower, second, items(entry(".wh.b", b""))]


def _opaque_directories() -> Layers:
    lower = items(entry("d/"), entry("d/old", b"1"), entry("d/sub/old", b"2"), entry("e/f", b"3"))
    upper = items(entry("d/new", b"4"), entry("d/.wh..wh..opq", b""), entry("d/sub/", mode=0o700))
    becomes_file = items(hard_link("l", "d/new"), entry("d/.wh..wh..opq", b""), entry("d", b"5"))
    return [lower, upper, items(entry("e/.wh..wh..opq", b"")), becomes_file]


def _hard_links_over_layers() -> Layers:
    content = noise(3 * BLOCK + 5)
    return [
        items(entry("a", content), hard_link("b", "a")),
        items(hard_link("c", "b"), hard_link("late", "d/target"), entry("d/target", b"t")),
        items(entry(".wh.a", b""), entry("b", b"its own"), hard_link("f", "late")),
        items(hard_link("d/g", "c"), entry(".wh.c", b"")),
    ]


def _replaced_types() -> Layers:
    lower = items(
        *[entry("file", b"1"), entry("directory/below", b"2"), symlink("link", "directory")],
        *[entry("usr/lib/"), symlink("lib", "usr/lib"), entry("pipe", b"3")],
    )
    upper = items(
        *[entry("file/below", b"4"), entry("directory", b"5"), entry("link/"), entry("lib/x", b"")],
        *[special("pipe", tarfile.FIFOTYPE), hard_link("through", "lib/x")],
    )
    return [lower, upper, items(symlink("file", "lib"), entry("link", noise(BLOCK + 1)))]


def _sparse_files() -> Layers:
    large = noise(2 * BLOCK)
    return [
        [
            sparse_entry("hole", [], 10 * BLOCK + 7),
            sparse_entry("start", [(0, b"start")], 5 * BLOCK),
            sparse_entry("end", [(5 * BLOCK, b"end")], 5 * BLOCK + 3),
            sparse_entry("middle", [(BLOCK + 9, large)], 9 * BLOCK + 1),
            sparse_entry("pieces", [(n * BLOCK * 2, b"p" * n) for n in range(5)], 11 * BLOCK),
            sparse_entry("tail", [(9, b"x")], 100),
        ],
        [sparse_entry("middle", [(0, large), (7 * BLOCK, b"y")], 8 * BLOCK), *items(entry("z"))],
        items(hard_link("link", "end"), entry("zeros", bytes(6 * BLOCK + 1))),
    ]


def _block_edges() -> Layers:
    sizes = [blocks * BLOCK + step for blocks in range(4) for step in (-1, 0, 1)]
    files = [(f"{size}", noise(size)) for size in sizes if size >= 0]
    lower = items(*(entry(name, content) for name, content in files))
    return [lower, items(*(entry(f"copy {name}", content) for name, content in files[::2]))]


def _equal_contents() -> Layers:
    contents = [noise(size) for size in (10, BLOCK, 5 * BLOCK + 3)]
    lower = [entry(f"{n} {m}", content) for n, content in enumerate(contents) for m in range(3)]
    modes = [entry(info.name, content, mode=0o755) for info, content in lower]
    return [
        items(*lower),
        items(*modes),
        items(*(entry(f"u/{n}", c) for n, (_, c) in enumerate(lower))),
    ]


def _dead_tails() -> Layers:
    small = [(f"d/{number}", noise(50 + number * 7)) for number in range(120)]
    lower = items(*(entry(name, content) for name, content in small))
    upper = items(*(entry(name, noise(60)) for name, _ in small[::3]))
    return [lower, upper, items(*(entry(f"d/.wh.{n}", b"") for n in range(0, 120, 5)))]


def _names() -> Layers:
    names = ["n" * 255, "n" * 254 + "m", "\udcff\udc80", "new\nline", "a -> b", "é", " ", "\x01"]
    lower = items(*(entry(name, name.encode(errors="surrogateescape")) for name in names))
    return [lower, items(entry(f"{names[0]}x"[1:], b"1"), symlink("s", "\udcfe/" * 50 + "x"))]


def _deep_paths() -> Layers:
    deep = "/".join(["d"] * 200)
    return [
        items(entry(f"{deep}/file", noise(BLOCK))),
        items(hard_link(f"{deep}/link", f"{deep}/file")),
    ]


def _devices() -> Layers:
    nodes = [special("null"), special("disk", tarfile.BLKTYPE), special("pipe", tarfile.FIFOTYPE)]
    lower = items(*nodes, entry("dev/"), special("dev/null"), entry("dev/file", b"1"))
    return [lower, items(hard_link("link", "pipe"), entry("null", b"now a file"))]


def _modes_and_times() -> Layers:
    modes = [0o4755, 0o2711, 0o6600, 0o1777, 0o000, 0o444, 0o070]
    times = [-1, -(2**40), 0, 2**32 - 1, 2**32, 2**40, 1.5]
    files = [entry(f"file {mode:o}", b"x", mode=mode) for mode in modes]
    folders = [entry(f"folder {mode:o}/", mode=mode, uid=1000, gid=70_000) for mode in modes]
    return [items(*files, *folders), items(*(entry(f"{time}", b"t", mtime=time) for time in times))]


def _large_directory() -> Layers:
    names = [f"many/a name of some length {number:04}" for number in range(900)]
    lower = items(*(entry(name, b"") for name in names))
    return [lower, items(*(entry(name, b"%d" % n) for n, name in enumerate(names[::9])))]


def _repeated_layers() -> Layers:
    layer = items(entry("a", noise(BLOCK + 9)), entry("b/c", b"1"), hard_link("d", "a"))
    removal = items(entry(".wh.a", b""), entry(".wh.b", b""))
    return [layer, [], removal, layer, layer, []]


CASES: Mapping[str, Callable[[], Layers]] = {
    "whiteouts": _whiteouts,
    "opaque directories": _opaque_directories,
    "hard links over layers": _hard_links_over_layers,
    "replaced types": _replaced_types,
    "sparse files": _sparse_files,
    "empty files": lambda: [items(*(entry(f"{n}", b"") for n in range(9))), items(entry("a/"))],
    "sizes around blocks": _block_edges,
    "equal contents": _equal_contents,
    "tails of which many are dead": _dead_tails,
    "odd names": _names,
    "deep paths": _deep_paths,
    "devices": _devices,
    "modes and times": _modes_and_times,
    "a large directory": _large_directory,
    "repeated and empty layers": _repeated_layers,
    "no layer with an entry": lambda: [[], []],
}


def stack_of_case(name: str, compressor: str, block_size: str) -> RandomStack:
    """Return the stack of a case; the image states the `diff_id` of every other layer."""
    layers = CASES[name]()
    options: dict[str, Any] = {
        "compressor": compressor,
        "level": None if compressor == "xz" else 1,
        "block_size": block_size,
        "processors": 1,
        "keep_setuid": compressor == "zstd",
    }
    return RandomStack(
        0,
        layers,
        [tar_of_entries(layer, tarfile.PAX_FORMAT) for layer in layers],
        [("gzip", "zstd", "plain")[number % 3] for number in range(len(layers))],
        [number % 2 == 0 for number in range(len(layers))],
        options,
    )
