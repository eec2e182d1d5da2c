"""Content of images for the bench: real files of this machine.

Synthetic files compress, and repeat, in another way than programs and their data do: with them the
bench once said 1.8 times the floor where real files said 2.6.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EPOCH = 1_700_000_000
_SEED = 1
_IN_DIRECTORY = 100  # small files
_TRIES = 50  # files that may be too large for the rest of a limit
_SMALLEST, _LARGEST = 100, 8000  # bytes of a small file

LIBRARIES = ("usr/lib/*-linux-gnu", "usr/lib/python3*", "usr/lib/gcc*")
SHARE = ("usr/share",)
PROGRAMS = ("usr/include", "usr/bin", "usr/local/lib")
UPDATE = ("usr/sbin", "usr/libexec")


@dataclass(frozen=True)
class Size:
    """How large the images are: bytes of real files in a layer, numbers of small files."""

    layer_bytes: int
    update_bytes: int
    small_files: int
    directory_entries: int
    hard_links: int
    same_size_files: int


FULL = "full"
SIZES = {
    "small": Size(400_000, 50_000, 300, 400, 400, 400),
    "medium": Size(100_000_000, 5_000_000, 15_000, 10_000, 7000, 20_000),
    FULL: Size(1_000_000_000, 20_000_000, 150_000, 100_000, 70_000, 1_000_000),
}


def real_files(patterns: Sequence[str], root: Path = Path("/")) -> Iterator[Path]:
    """Yield regular files and symlinks below directories of this machine.

    Directories are ordered by the hashes of their names, so that each part is a mixture.
    """
    roots = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    tops = {top: files + links for path in roots for top, links, files in os.walk(path)}
    for top in sorted(tops, key=lambda top: hashlib.sha256(os.fsencode(top)).digest()):
        for name in sorted(tops[top]):
            path = Path(top, name)
            if path.is_symlink() or path.is_file():
                yield path


def copy_real_files(
    patterns: Sequence[str], limit: int, tree: Path, root: Path = Path("/")
) -> None:
    """Copy real files into a tree, at most `limit` bytes; files that are not readable are left."""
    too_large = 0  # files in sequence
    for path in real_files(patterns, root):
        target = tree / path.relative_to(root)
        try:
            size = path.lstat().st_size
            if size > limit:
                too_large += 1
                if too_large > _TRIES:
                    break
                continue
            too_large = 0
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                target.symlink_to(path.readlink())
            else:
                shutil.copyfile(path, target)
                target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        except OSError:
            continue
        limit -= size


def pieces(sizes: Iterator[int], root: Path = Path("/")) -> Iterator[bytes]:
    """Yield pieces of real files, one after the other, with these sizes in bytes."""
    files = itertools.cycle(real_files(SHARE, root))
    reserve, position = b"", 0
    for size in sizes:
        while len(reserve) < position + size:
            path = next(files)
            if not path.is_symlink() and os.access(path, os.R_OK):
                reserve, position = reserve[position:] + path.read_bytes(), 0
        yield reserve[position : position + size]
        position += size


def small_files(count: int, tree: Path, first: int = 0, root: Path = Path("/")) -> None:
    """Write `count` files of 100 bytes to 8 kB, numbered from `first`, into a tree."""
    chance = random.Random(_SEED + first)
    sizes = (chance.randint(_SMALLEST, _LARGEST) for _ in range(count))
    for number, content in enumerate(pieces(sizes, root), first):
        path = tree / "srv" / str(number // 10_000) / str(number // _IN_DIRECTORY) / f"f{number}"
        if number % _IN_DIRECTORY == 0 or number == first:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def big_directory(count: int, tree: Path, root: Path = Path("/")) -> None:
    """Write `count` files of 300 bytes into one directory of a tree."""
    directory = tree / "data"
    directory.mkdir(parents=True)
    for number, content in enumerate(pieces(itertools.repeat(300, count), root)):
        (directory / f"record{number}").write_bytes(content)


def hard_links(count: int, tree: Path, root: Path = Path("/")) -> None:
    """Write `count` names into a tree, of which each hundred are links to one file."""
    for number, content in enumerate(pieces(itertools.repeat(300, -(-count // 100)), root)):
        directory = tree / str(number // _IN_DIRECTORY) / str(number)
        directory.mkdir(parents=True)
        file = directory / "0"
        file.write_bytes(content)
        for link in range(1, min(100, count - 100 * number)):
            (directory / str(link)).hardlink_to(file)


def same_size_files(count: int, tree: Path, root: Path = Path("/")) -> None:
    """Write `count` files of 300 bytes into a tree, in directories of a hundred."""
    for number, content in enumerate(pieces(itertools.repeat(300, count), root)):
        directory = tree / str(number // 10_000) / str(number // _IN_DIRECTORY)
        if number % _IN_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / str(number)).write_bytes(content)


def replace_small_files(source: Path, share: float, tree: Path) -> None:
    """Write new content for a share of the small files of one tree into another tree."""
    chance = random.Random(_SEED)
    for path in sorted(path for path in source.rglob("f*") if path.is_file()):
        if chance.random() < share:
            target = tree / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes()[::-1])
