"""Measure the file of a pack: size, time, digests of its data and of the rest, and its columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from functools import partial
from hashlib import sha256
from threading import Event

from shiftergw.build.pack_feed import directory_count
from shiftergw.build.pack_sidecar import Measures
from shiftergw.errors import SquashfsCorrupt
from shiftergw.oci.budget import stoppable
from shiftergw.oci.compression import StopRequested
from shiftergw.plumbing.hashing import PIECE_BYTES
from shiftergw.squashfs.blocks import Source, read_options
from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.reader import SquashfsReader
from shiftergw.squashfs.superblock import SIZE as SUPERBLOCK_SIZE
from shiftergw.squashfs.superblock import Superblock


def measure(descriptor: int, contents: int, stop: Event) -> Measures:
    """Measure an open pack of this many contents; raise `SquashfsCorrupt`, `StopRequested`."""
    pieces = measuring(descriptor, contents)
    while not stop.is_set():
        try:
            next(pieces)
        except StopIteration as end:
            measures: Measures = end.value
            return measures
    raise StopRequested


def measuring(descriptor: int, contents: int) -> Generator[int, None, Measures]:
    """Measure an open pack piece by piece; yield the bytes of each, and return the measures."""
    state = os.fstat(descriptor)
    source = Source(partial(os.pread, descriptor), state.st_size)
    head = Superblock.unpack(source.read(0, min(SUPERBLOCK_SIZE, state.st_size)))
    head.check(state.st_size)
    inodes = 1 + directory_count(contents) + contents
    if head.inodes != inodes:
        raise SquashfsCorrupt(
            "A pack has too few or too many files.", detail=f"{head.inodes} inodes, not {inodes}"
        )
    start = SUPERBLOCK_SIZE
    if head.has_compressor_options:
        _, start = read_options(source, start)
    data, rest = sha256(), sha256()
    yield from _hashing(descriptor, rest, 0, start)
    yield from _hashing(descriptor, data, start, head.inode_table)
    yield from _hashing(descriptor, rest, head.inode_table, state.st_size)
    return Measures(state.st_size, state.st_mtime_ns, data.hexdigest(), rest.hexdigest())


def read_columns(descriptor: int, stop: Event) -> FileColumns:
    """Return where the data of each content of an open pack is, by number.

    Raises `SquashfsCorrupt`, `SquashfsUnsupported`, and `StopRequested` soon after `stop` is set.
    """
    reader = SquashfsReader(partial(os.pread, descriptor), os.fstat(descriptor).st_size)
    columns = FileColumns(reader.tables.superblock.block_size)
    for data, link in stoppable(reader.file_data(), stop):
        columns.append(data, link)
    return columns


def _hashing(descriptor: int, hasher: hashlib._Hash, start: int, end: int) -> Iterator[int]:
    """Add the bytes from `start` to `end` to a hash; yield the size of each piece."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    while start < end:
        size = os.preadv(descriptor, [buffer[: end - start]], start)
        if not size:
            raise SquashfsCorrupt("A pack is shorter than before.")
        hasher.update(buffer[:size])
        start += size
        yield size
