"""Plans written by hand, and squashfs files made and read by squashfs-tools."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from shiftergw.model.images import ContentReport
from shiftergw.oci.flatten import Plan
from shiftergw.oci.tree import REGULAR, SYMLINK, Directory, Leaf, walk
from tests.parts import need

TIME = 1_700_000_000

Write = Callable[[int, Event, Callable[[int, int], None]], None]


def file(content: bytes = b"content", mode: int = 0o644) -> Leaf:
    """Return a planned file of this size."""
    return Leaf(REGULAR, mode=mode, mtime=TIME, size=len(content))


def link(target: bytes) -> Leaf:
    """Return a planned symlink."""
    return Leaf(SYMLINK, mtime=TIME, target=target)


def directory(mode: int = 0o755, /, **children: Directory | Leaf) -> Directory:
    """Return a planned directory; names that are no identifiers are put into `children`."""
    return Directory(mode, TIME, {name.encode(): node for name, node in children.items()})


def plan_of(root: Directory) -> Plan:
    """Return the plan of a tree."""
    nodes = {id(node): node for _, node in walk(root)}
    size = sum(node.size for node in nodes.values() if isinstance(node, Leaf))
    return Plan(root, ContentReport(entries=len(nodes), size=size), len(nodes) + 1, TIME)


def tar_of_tree(root: Directory) -> bytes:
    """Return a tar of a tree whose files hold zeros, hard links after their targets."""
    out = io.BytesIO()
    first: dict[int, bytes] = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, node in walk(root):
            info = tarfile.TarInfo(os.fsdecode(path))
            info.mode, info.mtime = node.mode, node.mtime
            data = b""
            if isinstance(node, Directory):
                info.type = tarfile.DIRTYPE
            elif id(node) in first:
                info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(first[id(node)])
            elif node.kind == SYMLINK:
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(node.target)
            else:
                data = bytes(node.size)
                info.size = node.size
            first.setdefault(id(node), path)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def squash_tar(tar: bytes, output: Path, *extra: str, epoch: int = TIME) -> Path:
    """Make a squashfs from a tar, as the program does it, but without the program."""
    argv = [need("mksquashfs"), "-", str(output), "-tar", "-noappend", "-no-progress", "-quiet"]
    argv += ["-all-root", "-no-xattrs", "-root-mode", "755", "-no-duplicates", *extra]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    subprocess.run(argv, input=tar, check=True, env=env, stderr=subprocess.PIPE)
    return output


def content_of(squashfs: Path) -> dict[str, tuple[bytes, int, bytes | str]]:
    """Return type, mode and data or target of every entry, as `sqfs2tar` reads it.

    A hard link has the data of its file.
    """
    tar = subprocess.run([need("sqfs2tar"), str(squashfs)], check=True, stdout=subprocess.PIPE)
    entries: dict[str, tuple[bytes, int, bytes | str]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as archive:
        for info in archive:
            file_like = info.isreg() or info.islnk()
            data = archive.extractfile(info) if file_like else None
            kind = tarfile.REGTYPE if file_like else info.type
            entries[info.name] = (kind, info.mode, data.read() if data else info.linkname)
    return entries


def listing_of(squashfs: Path) -> list[bytes]:
    """Return the lines of `unsquashfs -lln`."""
    argv = [need("unsquashfs"), "-lln", str(squashfs)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout.splitlines()


def running_in(path: Path) -> list[str]:
    """Return the command lines of other processes that name this path."""
    command_lines = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = os.fsdecode(cmdline.read_bytes().replace(b"\0", b" "))
            if str(path) in line:
                command_lines.append(line)
    return command_lines


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def script(path: Path, text: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def converter(path: Path, text: str) -> str:
    """Write a script that answers `-version` as `mksquashfs` does, and else runs `text`."""
    return script(path, f'[ "$1" = -version ] && exec {need("mksquashfs")} -version\n{text}')


@contextmanager
def mount(*argv: str) -> Iterator[bool]:
    """Mount a file system within the block (`mount ARGV`); give False if that is not allowed."""
    command = [need("mount"), *argv]
    done = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", argv[-1]], check=True)


def writing(data: bytes, failure: BaseException | None = None) -> Write:
    """Return a writer of this tar, which raises `failure` after it."""

    def write(descriptor: int, stop: Event, report: Callable[[int, int], None]) -> None:
        rest = memoryview(data)
        while rest and not stop.is_set():
            rest = rest[os.write(descriptor, rest) :]
            report(len(data) - len(rest), len(data) - len(rest))
        if failure is not None:
            raise failure

    return write
