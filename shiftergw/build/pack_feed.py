"""The contents of a layer's files under numbers, as they become a pack.

A file has no name here but its number, such as `00000/000`, `00000/001`: `mksquashfs` takes time
that is quadratic in the entries of a directory, so a directory has `PER_DIRECTORY` of them. Numbers
sort as their names do, so the k-th file of a pack has the number k.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from threading import Event
from typing import TYPE_CHECKING, Protocol

from shiftergw.errors import ImageTooLarge, LayerInvalid
from shiftergw.oci.compression import PIECE
from shiftergw.oci.sparse import data_extents
from shiftergw.oci.tar import Entry, LayerIndex, ReadFile
from shiftergw.oci.tar_stream import TarStream

if TYPE_CHECKING:
    import hashlib

PER_DIRECTORY = 512
"""Files in one directory of a pack."""

MOST_CONTENTS = 100_000 * PER_DIRECTORY
"""Files of a pack: the name of a directory has five digits."""

BUFFER_LIMIT = 1 << 20
"""Bytes of the largest file that is read whole before it is written.

Such a file is hashed, and written only if its content is new in the layer. A larger file is always
written, and not hashed; if its content occurs twice, the composed image leaves the second copy out
(`large_contents`).
"""

NO_DIGEST = bytes(32)
"""Stands for the digest of a content of more than `BUFFER_LIMIT` bytes."""

_LARGEST = 2**63 - 1
"""Bytes of the largest file that Linux can open."""

ReadLayer = Callable[[ReadFile, Event, Callable[[int], None]], LayerIndex]
"""Reads a layer until the event is set, and reports its compressed bytes; see `index_layer`."""

PackedLayer = tuple[LayerIndex, list[bytes]]
"""The index of a layer, and the digests of its contents by number."""

_ZEROS = memoryview(bytes(PIECE))


def directory_count(contents: int) -> int:
    """Return how many directories a pack of this many files has below its root."""
    return -(-contents // PER_DIRECTORY)


def content_name(number: int) -> tuple[bytes, bytes]:
    """Return the names of the directory and of the file of the content with this number."""
    directory, place = divmod(number, PER_DIRECTORY)
    return b"%05d" % directory, b"%03d" % place


class ContentSink(Protocol):
    """Takes the contents of a layer in the order of their numbers, which begin at 0.

    A content is given whole, or as `begin`, its parts, and `end`. No content is empty. The methods
    block, and raise `StopRequested` soon after a stop.
    """

    def add_content(self, number: int, content: bytes) -> None:
        """Take a whole content of at most `BUFFER_LIMIT` bytes."""
        ...

    def begin(self, number: int, size: int) -> None:
        """Begin a content of `size` bytes."""
        ...

    def add(self, part: bytes | memoryview) -> None:
        """Take the next bytes of the content; they must not be used after the call."""
        ...

    def end(self) -> None:
        """End the content, whose parts have `size` bytes."""
        ...


class PackFeed:
    """Numbers the contents of a layer and hands each of them to a sink. All methods block."""

    def __init__(self, sink: ContentSink, block_size: int) -> None:
        """Hand contents to `sink`, whose errors the methods raise.

        `block_size` is that of the pack, in bytes.
        """
        self._sink = sink
        self._block_size = block_size
        self._numbers: dict[bytes, int] = {}
        self._hasher: hashlib._Hash | None = None
        """The hash of the content that was begun; None for a large one."""
        self.digests: list[bytes] = []
        """The SHA-256 of each content, or `NO_DIGEST`, by number."""

    def read_file(self, entry: Entry, stream: TarStream) -> int:
        """Read the data of a regular file and give it its number; see `ReadFile`."""
        if entry.sparse is not None:
            return self._write_sparse(entry, stream)
        size = entry.size
        if size > BUFFER_LIMIT:
            self._write_large(entry, stream)
            return 0
        content = stream.take(size)
        digest = sha256(content).digest()
        number = self._numbers.get(digest)
        if number is None:
            number = self._numbers[digest] = self._next_number()
            self.digests.append(digest)
            self._sink.add_content(number, content)
        entry.number = number
        return 0

    def _next_number(self) -> int:
        """Return the number of the next content."""
        number = len(self.digests)
        if number >= MOST_CONTENTS:
            raise ImageTooLarge(
                f"A layer has more than {MOST_CONTENTS} different files.",
                remedy="Make the image smaller.",
            )
        return number

    def _begin(self, entry: Entry, size: int) -> None:
        """Give an entry the next number, and begin its content of `size` bytes."""
        entry.number = self._next_number()
        self._hasher = sha256() if size <= BUFFER_LIMIT else None
        self._sink.begin(entry.number, size)

    def _add(self, part: memoryview) -> None:
        """Add the next bytes of the content."""
        if self._hasher is not None:
            self._hasher.update(part)
        self._sink.add(part)

    def _end(self, entry: Entry) -> None:
        """End the content of `entry`, and note its digest."""
        self._sink.end()
        if self._hasher is None:
            self.digests.append(NO_DIGEST)
            return
        digest = self._hasher.digest()
        self.digests.append(digest)
        self._numbers.setdefault(digest, entry.number)

    def _write_large(self, entry: Entry, stream: TarStream) -> None:
        self._begin(entry, entry.size)
        rest = entry.size
        while rest:
            data = stream.view(rest)
            self._add(data)
            rest -= len(data)
        self._end(entry)

    def _write_sparse(self, entry: Entry, stream: TarStream) -> int:
        """Write the blocks that hold data; return how many of their bytes are zeros between pieces.

        Without any data the entry gets no number.
        """
        if entry.size > _LARGEST:
            raise LayerInvalid("A layer has a sparse file that is larger than Linux can handle.")
        assert entry.sparse is not None
        extents = list(data_extents(entry.sparse, entry.size, self._block_size))
        if not extents:
            return 0
        size = sum(end - start for start, end in extents)
        self._begin(entry, size)
        zeros = 0

        def add_zeros(size: int) -> None:
            nonlocal zeros
            zeros += size
            while size:
                part = _ZEROS[:size]
                self._add(part)
                size -= len(part)

        pieces = iter(entry.sparse)
        offset, length = next(pieces)
        for start, end in extents:
            position = start
            while offset < end:
                add_zeros(offset - position)
                position = offset + length
                while length:
                    data = stream.view(length)
                    self._add(data)
                    length -= len(data)
                offset, length = next(pieces, (entry.size, 0))
            add_zeros(end - position)
        self._end(entry)
        return zeros
