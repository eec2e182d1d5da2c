"""A plan and its layers → the bytes of one tar archive, in the order that `mksquashfs -tar` needs.

Each path occurs once, parents before children, targets before links: `mksquashfs` drops entries in
another order, with exit code 0. The archive is in no file: it is written into a pipe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event

from shiftergw.build.pipes import LARGE, enlarge_pipe, write_all
from shiftergw.errors import LayerInvalid
from shiftergw.model.images import LayerFile
from shiftergw.oci.budget import stoppable, stoppable_sorted
from shiftergw.oci.compression import PIECE, decompress, opening_of
from shiftergw.oci.flatten import Plan
from shiftergw.oci.header import END, header, padding
from shiftergw.oci.sparse import SparseMap
from shiftergw.oci.tree import SYMLINK, Directory, Leaf, walk

_ZEROS = memoryview(bytes(PIECE))

_Part = bytes | memoryview
"""A piece of the archive: data of files is a view, headers and padding are bytes."""


def stream(
    plan: Plan,
    layers: Sequence[LayerFile],
    write_fd: int,
    stop: Event,
    report: Callable[[int, int], None],
) -> None:
    """Write the archive of `plan` into a pipe; the caller closes it.

    Blocks while the reader is slow: run it in a thread. In that thread `report` gets the bytes of
    files that are done, of `plan.report.size`, and the bytes of the archive. The same plan gives
    the same bytes. Raises `BrokenPipeError` once the reader is gone, `LayerInvalid` if a layer has
    changed since it was indexed, and `StopRequested` soon after `stop` is set, unless the pipe is
    full: end its reader too.
    """
    enlarge_pipe(write_fd)
    with closing(_archive(plan, layers, stop)) as parts:
        _write_archive(parts, write_fd, stop, report)


def _archive(plan: Plan, layers: Sequence[LayerFile], stop: Event) -> Generator[_Part, None, None]:
    """Yield the whole archive in parts."""
    contents = _Contents()
    yield from _directories(plan.root, contents, stop)
    for path, leaf in contents.without_data:
        kind = b"2" if leaf.kind == SYMLINK else b"0"
        yield header(path, leaf.mode, leaf.mtime, kind, target=leaf.target)
        yield from _links(path, leaf, contents)
    for number, files in sorted(contents.by_layer.items()):
        files_in_order = stoppable_sorted(files, stop, lambda file: file[2].offset)
        with closing(decompress(opening_of(layers[number].path), stop)) as pieces:
            source = _Source(pieces)
            for prefix, name, leaf in files_in_order:
                path = prefix + name
                yield header(path, leaf.mode, leaf.mtime, b"0", leaf.size)
                if leaf.sparse is None:
                    yield from source.read(leaf.offset, leaf.size)
                else:
                    yield from _with_zeros(source, leaf, leaf.sparse)
                yield padding(leaf.size)
                if leaf.names > 1:
                    yield from _links(path, leaf, contents)
    yield END


@dataclass(slots=True)
class _Contents:
    """The entries after the directories: the first name of each inode, by the place of its data.

    Files with data are (parent's path and a slash, name, leaf): the parts are shared, a joined
    path is not.
    """

    without_data: list[tuple[bytes, Leaf]] = field(default_factory=list)
    by_layer: dict[int, list[tuple[bytes, bytes, Leaf]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    more_names: dict[Leaf, list[bytes]] = field(default_factory=dict)

    def add(self, prefix: bytes, name: bytes, leaf: Leaf) -> None:
        """Add one name of an inode."""
        if leaf.names > 1:
            names = self.more_names.get(leaf)
            if names is not None:
                names.append(prefix + name)
                return
            self.more_names[leaf] = []
        if leaf.size:
            self.by_layer[leaf.layer].append((prefix, name, leaf))
        else:
            self.without_data.append((prefix + name, leaf))


def _directories(root: Directory, contents: _Contents, stop: Event) -> Iterator[bytes]:
    """Yield the headers of all directories, and add all other entries to `contents`."""
    _add_leaves(contents, b"", root, stop)
    for path, node in stoppable(walk(root, stop), stop):
        if isinstance(node, Directory):
            yield header(path, node.mode, node.mtime, b"5")
            _add_leaves(contents, path + b"/", node, stop)


def _add_leaves(contents: _Contents, prefix: bytes, directory: Directory, stop: Event) -> None:
    for name, node in stoppable(directory.children.items(), stop):
        if isinstance(node, Directory):
            continue
        if node.names == 1 and node.size:  # nearly all
            contents.by_layer[node.layer].append((prefix, name, node))
        else:
            contents.add(prefix, name, node)


def _links(target: bytes, leaf: Leaf, contents: _Contents) -> Iterator[bytes]:
    """Yield the headers of the other names of an inode, which directly follow it."""
    for path in contents.more_names.get(leaf, ()):
        yield header(path, leaf.mode, leaf.mtime, b"1", target=target)


def _with_zeros(source: _Source, leaf: Leaf, sparse: SparseMap) -> Iterator[memoryview]:
    """Yield the bytes of a sparse file, with its zeros.

    `mksquashfs` before 4.7.5 could damage sparse files, and finds runs of zeros by itself.
    """
    at, position = 0, leaf.offset
    for offset, length in (*sparse, (leaf.size, 0)):
        while at < offset:
            zeros = _ZEROS[: offset - at]
            yield zeros
            at += len(zeros)
        yield from source.read(position, length)
        position += length
        at += length


class _Source:
    """The uncompressed stream of a layer, read forward."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._start = 0

    def read(self, offset: int, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes from `offset`, which is never before the start of the last read."""
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


def _write_archive(
    parts: Iterator[_Part], fd: int, stop: Event, report: Callable[[int, int], None]
) -> None:
    """Write an archive: combine small parts into large writes, and write large parts directly."""
    small_parts: list[_Part] = []
    size = done = archive_bytes = 0

    def flush() -> None:
        nonlocal size, archive_bytes
        write_all(fd, b"".join(small_parts), stop)
        small_parts.clear()
        archive_bytes += size
        size = 0
        report(done, archive_bytes)

    for part in parts:
        length = len(part)
        if isinstance(part, memoryview):
            done += length
            if length >= LARGE:
                flush()
                write_all(fd, part, stop)
                archive_bytes += length
                continue
        small_parts.append(part)
        size += length
        if size >= LARGE:
            flush()
    flush()
