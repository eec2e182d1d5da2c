"""A plan and its layers → the bytes of one tar archive, in the order that `mksquashfs -tar` needs.

Every path once, parents before children, targets before links: what comes in another order
`mksquashfs` drops, with exit code 0. The archive lies nowhere: it is written into a pipe.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from threading import Event

from shiftergw.errors import LayerInvalid
from shiftergw.image import LayerFile
from shiftergw.oci.compression import PIECE, Stopped, unpacked
from shiftergw.oci.flatten import Plan
from shiftergw.oci.header import END, header, padding
from shiftergw.oci.tree import SYMLINK, Directory, Leaf, walk

_PIPE = 1 << 20
"""Bytes that the pipe may hold, where the system allows it."""

_LARGE = 1 << 16
"""Bytes from which data goes out by itself, without being copied beside its neighbours."""

_ZEROS = memoryview(bytes(PIECE))


def stream(
    plan: Plan,
    layers: Sequence[LayerFile],
    write_fd: int,
    stop: Event,
    report: Callable[[int], None],
) -> None:
    """Write the archive of `plan` into a pipe; the caller closes it.

    Blocks while the reader is slow: run it in a thread. `report` is told, from that thread, how
    many of `plan.report.size` bytes are done. The same plan gives the same bytes. Raises
    `BrokenPipeError` once the reader is gone, `LayerInvalid` if a layer is no longer what was
    indexed, and `Stopped` soon after `stop` is set, unless the pipe is full: end its reader too.
    """
    with suppress(OSError):  # not a pipe, or this user's pipes hold too much already
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE)
    archive = _Archive(write_fd, stop, report)
    contents = _directories(plan.root, archive)
    for path, leaf in contents.without_data:
        kind = b"2" if leaf.kind == SYMLINK else b"0"
        archive.write(header(path, leaf.mode, leaf.mtime, kind, target=leaf.target))
        _write_links(archive, path, leaf, contents)
    for number, files in sorted(contents.by_layer.items()):
        files.sort(key=lambda file: file[2].offset)
        with closing(unpacked(layers[number].path, None, stop)) as pieces:
            source = _Source(pieces)
            for prefix, name, leaf in files:
                path = prefix + name
                archive.write(header(path, leaf.mode, leaf.mtime, b"0", leaf.size))
                for data in _content(source, leaf):
                    archive.write_data(data)
                archive.write(padding(leaf.size))
                if leaf.names > 1:
                    _write_links(archive, path, leaf, contents)
    archive.write(END)
    archive.flush()


@dataclass(slots=True)
class _Contents:
    """What follows the directories: the first name of each inode by where its data is.

    Files with data are (parent's path and a slash, name, leaf): the parts are shared, a joined
    path is not.
    """

    without_data: list[tuple[bytes, Leaf]] = field(default_factory=list)
    by_layer: dict[int, list[tuple[bytes, bytes, Leaf]]] = field(default_factory=dict)
    more_names: dict[Leaf, list[bytes]] = field(default_factory=dict)

    def add(self, prefix: bytes, name: bytes, leaf: Leaf) -> None:
        """Sort one name of an inode in."""
        if leaf.names > 1:
            others = self.more_names.get(leaf)
            if others is not None:
                others.append(prefix + name)
                return
            self.more_names[leaf] = []
        if leaf.size:
            self.by_layer.setdefault(leaf.layer, []).append((prefix, name, leaf))
        else:
            self.without_data.append((prefix + name, leaf))


def _directories(root: Directory, archive: _Archive) -> _Contents:
    """Write all directories, and return everything else."""
    contents = _Contents()
    _add_leaves(contents, b"", root)
    for path, node in walk(root):
        if isinstance(node, Directory):
            archive.write(header(path, node.mode, node.mtime, b"5"))
            _add_leaves(contents, path + b"/", node)
    return contents


def _add_leaves(contents: _Contents, prefix: bytes, directory: Directory) -> None:
    for name, node in directory.children.items():
        if isinstance(node, Leaf):
            contents.add(prefix, name, node)


def _write_links(archive: _Archive, target: bytes, leaf: Leaf, contents: _Contents) -> None:
    """Write the other names of an inode, right behind it."""
    for path in contents.more_names.get(leaf, ()):
        archive.write(header(path, leaf.mode, leaf.mtime, b"1", target=target))


def _content(source: _Source, leaf: Leaf) -> Iterator[memoryview]:
    """Yield the bytes of a file as it reads: a sparse one with its zeros.

    `mksquashfs` before 4.7.5 could damage sparse files, and finds runs of zeros by itself.
    """
    if leaf.sparse is None:
        yield from source.read(leaf.offset, leaf.size)
        return
    at, stored = 0, leaf.offset
    for offset, length in (*leaf.sparse, (leaf.size, 0)):
        while at < offset:
            zeros = _ZEROS[: offset - at]
            yield zeros
            at += len(zeros)
        yield from source.read(stored, length)
        stored += length
        at += length


class _Source:
    """The uncompressed stream of a layer, read forward."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._start = 0

    def read(self, offset: int, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes from `offset`, never before where the last read began."""
        while size:
            at = offset - self._start
            part = self._piece[at : at + size]
            if part:
                yield part
                offset += len(part)
                size -= len(part)
                continue
            self._start += len(self._piece)
            self._piece = memoryview(next(self._pieces, b""))
            if not self._piece:
                raise LayerInvalid("A layer is shorter than it was when it was indexed.")


class _Archive:
    """The pipe: gathers small parts into large writes, and passes large ones through."""

    def __init__(self, fd: int, stop: Event, report: Callable[[int], None]) -> None:
        self._fd = fd
        self._stop = stop
        self._report = report
        self._parts: list[bytes | memoryview] = []
        self._gathered = 0
        self._done = 0

    def write(self, part: bytes | memoryview) -> None:
        """Append headers and padding."""
        self._parts.append(part)
        self._gathered += len(part)
        if self._gathered >= PIECE:
            self.flush()

    def write_data(self, data: memoryview) -> None:
        """Append bytes of a file."""
        self._done += len(data)
        if len(data) < _LARGE:
            self.write(data)
        else:
            self.flush()
            self._write(data)

    def flush(self) -> None:
        """Write what is gathered, and say how far the data is."""
        self._write(memoryview(b"".join(self._parts)))
        self._parts.clear()
        self._gathered = 0
        self._report(self._done)

    def _write(self, data: memoryview) -> None:
        while data:
            if self._stop.is_set():
                raise Stopped
            data = data[os.write(self._fd, data) :]
