"""A squashfs file is compared with its plan, entry by entry."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.build.check import check, difference, unsquashfs_of
from shiftergw.errors import ConversionFailed
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.tree import Directory, Leaf, walk
from shiftergw.plumbing.threads import Threads
from tests.build.parts import TIME, directory, file, link, plan_of, script, squash_tar, tar_of_tree
from tests.parts import need
from tests.patience import patient
from tests.tracing import without_tracing

real: Any = reactor


def awkward() -> Directory:
    """Return a tree of everything that is hard to list."""
    linked_file = file(b"shared")
    root = directory(
        a=directory(
            0o1777, z=file(), c=directory(q=file(), suid=file(mode=0o6755)), shared=linked_file
        ),
        aa=file(b""),
        tmp=directory(0o1755),
        big=file(bytes(300_000)),
        late=file(),
        link=link(b"x -> y\nz"),
    )
    root.children |= {
        b"a-b": linked_file,
        b"a b": link(b"a"),
        b"a -> b": file(),
        b"new\nline": directory(**{"-rw-r--r-- 0": file()}),
        b"trap\n-rw-r--r-- 0": file(),
        "é".encode(): file(),
        b"\xff\x80": file(),
        b"n" * 255: file(),
        b" ": file(),
        b"link to nowhere": link(b"l" * 4095),
        b"\\": linked_file,
    }
    root.children[b"late"].mtime = 2**32 - 1
    root.children[b"aa"].mtime = 0
    return root


async def check_file(
    path: Path, tree: Directory, threads: Threads, binary: str = "mksquashfs"
) -> None:
    """Check a file against the plan of a tree."""
    await check(path, plan_of(tree), binary, threads, real, real)


@pytest_twisted.ensureDeferred
async def test_what_was_planned_passes(tmp_path: Path, threads: Threads) -> None:
    """A file made as planned passes, whatever its names, links, modes and times are."""
    path = squash_tar(tar_of_tree(awkward()), tmp_path / "image", epoch=2**32 - 1)
    await check_file(path, awkward(), threads)


@pytest_twisted.ensureDeferred
async def test_an_empty_tree_passes(tmp_path: Path, threads: Threads) -> None:
    """An image without any entry is a root and nothing else."""
    path = squash_tar(tar_of_tree(directory()), tmp_path / "image")
    await check_file(path, directory(), threads)


def _remove_entry(tree: Directory) -> None:
    del tree.children[b"new\nline"]


def _add_entry(tree: Directory) -> None:
    tree.children[b"~last"] = file()


def _rename_entry(tree: Directory) -> None:
    tree.children[b"new line"] = tree.children.pop(b"new\nline")


def _change_size(tree: Directory) -> None:
    tree.children[b"big"] = file(bytes(299_999))


def _change_mode(tree: Directory) -> None:
    tree.children[b"big"].mode = 0o640


def _change_directory_mode(tree: Directory) -> None:
    tree.children[b"a"].mode = 0o755


def _change_time(tree: Directory) -> None:
    tree.children[b"big"].mtime -= 60


def _change_target(tree: Directory) -> None:
    tree.children[b"link"] = link(b"x -> y")


def _change_type(tree: Directory) -> None:
    tree.children[b"tmp"] = file(b"abc", mode=0o1755)


def _copy_link(tree: Directory) -> None:
    tree.children[b"a-b"] = file(b"shared")


@pytest.mark.parametrize(
    "tamper",
    [
        _remove_entry,
        _add_entry,
        _rename_entry,
        _change_size,
        _change_mode,
        _change_directory_mode,
        _change_time,
        _change_target,
        _change_type,
        _copy_link,
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_was_not_planned_is_found(
    tmp_path: Path, threads: Threads, tamper: Callable[[Directory], None]
) -> None:
    """A file made from any other tree fails, in both directions, and the user sees no path."""
    tree, tampered_tree = awkward(), awkward()
    tamper(tampered_tree)
    path = squash_tar(tar_of_tree(tampered_tree), tmp_path / "image", epoch=2**32 - 1)
    with pytest.raises(ConversionFailed) as caught:
        await check_file(path, tree, threads)
    assert caught.value.detail
    assert str(tmp_path) not in str(caught.value)
    path = squash_tar(tar_of_tree(tree), tmp_path / "image", epoch=2**32 - 1)
    with pytest.raises(ConversionFailed):
        await check_file(path, tampered_tree, threads)


@pytest_twisted.ensureDeferred
async def test_the_entry_is_named(tmp_path: Path, threads: Threads) -> None:
    """The detail for the admins names the entry, its actual and its planned state, on one line."""
    path = squash_tar(tar_of_tree(directory(odd=file(b"12"))), tmp_path / "image")
    with pytest.raises(ConversionFailed) as caught:
        await check_file(path, directory(odd=file(b"123")), threads)
    assert "squashfs-root/odd" in caught.value.detail
    assert " 2 " in caught.value.detail
    assert " 3 " in caught.value.detail
    assert caught.value.detail.isprintable()


@pytest_twisted.ensureDeferred
async def test_other_owners_are_found(tmp_path: Path, threads: Threads) -> None:
    """An entry that does not belong to root is an error."""
    path = squash_tar(tar_of_tree(directory(a=file())), tmp_path / "image", "-force-uid", "7")
    with pytest.raises(ConversionFailed, match="not what was planned"):
        await check_file(path, directory(a=file()), threads)


@pytest_twisted.ensureDeferred
async def test_another_root_is_found(tmp_path: Path, threads: Threads) -> None:
    """The root itself must be a directory that all may enter."""
    path = squash_tar(tar_of_tree(directory(a=file())), tmp_path / "image", "-root-mode", "700")
    with pytest.raises(ConversionFailed, match="not what was planned"):
        await check_file(path, directory(a=file()), threads)


@pytest_twisted.ensureDeferred
async def test_a_truncated_file_is_found(tmp_path: Path, threads: Threads) -> None:
    """A file that lacks its end fails, wherever it was cut."""
    tree = Directory(children={b"%06d" % n: file(b"x" * n) for n in range(5000)})
    path = squash_tar(tar_of_tree(tree), tmp_path / "image")
    for length in (path.stat().st_size - 4096, 4096, 96, 50, 0):
        with path.open("r+b") as image:
            image.truncate(length)
        with pytest.raises(ConversionFailed) as caught:
            await check_file(path, tree, threads)
        assert "unsquashfs" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_damaged_listing_is_found(tmp_path: Path, threads: Threads) -> None:
    """An `unsquashfs` that fails after a complete listing is an error."""
    path = squash_tar(tar_of_tree(directory(a=file())), tmp_path / "image")
    binary = need("unsquashfs")
    script(tmp_path / "unsquashfs", f'{binary} "$@"\ncase $1 in -lln) echo oh >&2; exit 3;; esac')
    with pytest.raises(ConversionFailed) as caught:
        await check_file(path, directory(a=file()), threads, str(tmp_path / "mksquashfs"))
    assert caught.value.detail == "unsquashfs exited with code 3. oh\\x0a"


@pytest_twisted.ensureDeferred
async def test_a_summary_without_a_count_is_found(tmp_path: Path, threads: Threads) -> None:
    """An `unsquashfs` that reports no number of inodes is an error."""
    script(tmp_path / "unsquashfs", "echo nothing")
    with pytest.raises(ConversionFailed) as caught:
        await check_file(tmp_path / "image", directory(), threads, str(tmp_path / "mksquashfs"))
    assert caught.value.detail == "an unknown number of inodes where 1 were planned"


@pytest_twisted.ensureDeferred
async def test_a_check_can_be_cancelled(tmp_path: Path, threads: Threads) -> None:
    """A cancelled check ends its `unsquashfs`, even if it prints nothing."""
    script(
        tmp_path / "unsquashfs",
        "case $1 in -s) echo Number of inodes 1;; *) exec sleep 1000;; esac",
    )
    start = time.monotonic()
    running = Deferred.fromCoroutine(
        check_file(tmp_path / "image", directory(), threads, str(tmp_path / "mksquashfs"))
    )
    real.callLater(0.2, running.cancel)
    with pytest.raises(CancelledError):
        await running
    assert time.monotonic() - start < patient(4)


def test_unsquashfs_is_the_neighbor(tmp_path: Path) -> None:
    """The `unsquashfs` of the same installation is used, else the one of the PATH."""
    binary = script(tmp_path / "mksquashfs", "")
    assert unsquashfs_of(binary) == "unsquashfs"
    neighbor = script(tmp_path / "unsquashfs", "")
    assert unsquashfs_of(binary) == neighbor
    assert unsquashfs_of("mksquashfs") == str(Path(need("mksquashfs")).with_name("unsquashfs"))
    assert unsquashfs_of("no-such-program") == "unsquashfs"


class Trickle(io.RawIOBase):
    """A listing that comes one byte at a time."""

    def __init__(self, data: bytes) -> None:
        """Serve `data`."""
        super().__init__()
        self._data = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        """Return one byte, whatever the size."""
        return self._data.read(1)


LISTING = (
    b"drwxr-xr-x 0/0                      30 2031-01-01 00:00 squashfs-root\n"
    b"lrwxrwxrwx 0/0                       3 2023-11-14 22:13 squashfs-root/a\nb -> c\nd\n"
    b"-rwxr-xr-x 0/0                       7 2023-11-14 22:13 squashfs-root/d\n"
)


def test_a_listing_may_come_in_pieces() -> None:
    """A listing may arrive in pieces of any size."""
    tree = directory(d=file(mode=0o755))
    tree.children[b"a\nb"] = link(b"c\nd")
    whole: Any = io.BytesIO(LISTING)
    assert difference(whole, tree, Event()) is None
    pieces: Any = Trickle(LISTING)
    assert difference(pieces, tree, Event()) is None


@pytest.mark.parametrize("cut", range(0, len(LISTING), 7))
def test_a_listing_cut_short_differs(cut: int) -> None:
    """A listing that ends early differs, wherever it ends."""
    tree = directory(d=file(mode=0o755))
    tree.children[b"a\nb"] = link(b"c\nd")
    listing: Any = io.BytesIO(LISTING[:cut])
    assert difference(listing, tree, Event()) is not None


@without_tracing
def test_many_entries_are_fast() -> None:
    """A listing as large as a big image's is compared in a moment (linear, and small per entry)."""
    tree = Directory(mtime=TIME)
    for d in range(100):
        names: dict[bytes, Directory | Leaf] = {b"file-%04d" % n: file() for n in range(500)}
        tree.children[b"directory-%03d" % d] = Directory(0o755, TIME, names)
    lines = [b"drwxr-xr-x 0/0                      30 2031-01-01 00:00 squashfs-root\n"]
    for path, node in walk(tree):
        head = b"drwxr-xr-x 0/0 9" if isinstance(node, Directory) else b"-rw-r--r-- 0/0 7"
        lines.append(head + b" 2023-11-14 22:13 squashfs-root/" + path + b"\n")
    listing: Any = io.BytesIO(b"".join(lines))
    start = time.process_time()
    assert difference(listing, tree, Event()) is None
    assert time.process_time() - start < 3


def test_a_comparison_can_be_stopped() -> None:
    """A comparison can be stopped even before it reads the first line of the listing."""
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        difference(io.BytesIO(), Directory(), stop)
