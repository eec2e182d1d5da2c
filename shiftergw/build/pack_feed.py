"""The archive that becomes a pack: the contents of a layer's files under numbers.

A file has no name here but its number, such as `00000/000`, `00000/001`: `mksquashfs` takes time
that is quadratic in the entries of a directory, so a directory has `PER_DIRECTORY` of them. Numbers
sort as their names do, so the k-th file of a pack has the number k.
"""

from __future__ import annotations

from hashlib import sha256
from threading import Event

from shiftergw.build.pipes import LARGE, enlarge_pipe, write_all
from shiftergw.errors import ImageTooLarge, LayerInvalid
from shiftergw.oci.compression import PIECE
from shiftergw.oci.header import END, header, padding
from shiftergw.oci.sparse import data_extents
from shiftergw.oci.tar import Entry
from shiftergw.oci.tar_stream import TarStream

PER_DIRECTORY = 512
"""Files in one directory of a pack."""

MOST_CONTENTS = 100_000 * PER_DIRECTORY
"""Files of a pack: the name of a directory has five digits."""

BUFFER_LIMIT = 1 << 20
"""Bytes of the largest file whose content is known before it is written.

It is written only if the layer had no such content before. A larger file always is: the image does
not take over its data again.
"""

_LARGEST = 2**63 - 1
"""Bytes of the largest file that Linux can open."""

_BATCH = 1 << 18
"""Bytes of headers and small files that are written at once."""

_ZEROS = memoryview(bytes(PIECE))


def directory_count(contents: int) -> int:
    """Return how many directories a pack of this many files has below its root."""
    return -(-contents // PER_DIRECTORY)


class PackFeed:
    """Writes the contents of a layer into the pipe of `mksquashfs`. All methods block."""

    def __init__(self, pipe: int, block_size: int, stop: Event) -> None:
        """Write into `pipe`, which the caller closes, until `stop` is set.

        `block_size` is that of the pack, in bytes. The methods raise `BrokenPipeError` once the
        reader is gone, and `StopRequested` (see `write_all`).
        """
        enlarge_pipe(pipe)
        self._pipe = pipe
        self._block_size = block_size
        self._stop = stop
        self._numbers: dict[bytes, int] = {}
        self._parts: list[bytes] = []
        self._parts_size = 0
        self.digests: list[bytes] = []
        """The SHA-256 of each content, by number."""
        self.size = 0
        """Bytes of the archive that were written."""

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
            number = self._numbers[digest] = self._begin(size)
            self.digests.append(digest)
            self._parts += (content, padding(size))
            self._parts_size += size + -size % 512
            if self._parts_size >= _BATCH:
                self._flush()
        entry.number = number
        return 0

    def finish(self) -> None:
        """Write the end of the archive, without which `mksquashfs` makes no pack."""
        self._add(END)
        self._flush()

    def _begin(self, size: int) -> int:
        """Write the header of the next content; return its number."""
        number = len(self.digests)
        if number >= MOST_CONTENTS:
            raise ImageTooLarge(
                f"A layer has more than {MOST_CONTENTS} different files.",
                remedy="Make the image smaller.",
            )
        name = b"%05d/%03d" % divmod(number, PER_DIRECTORY)
        self._add(header(name, 0o644, 0, b"0", size))
        return number

    def _write_large(self, entry: Entry, stream: TarStream) -> None:
        entry.number = self._begin(entry.size)
        hasher = sha256()
        rest = entry.size
        while rest:
            data = stream.view(rest)
            hasher.update(data)
            self._add(data)
            rest -= len(data)
        self._end(entry, entry.size, hasher.digest())

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
        entry.number = self._begin(size)
        hasher = sha256()
        zeros = 0

        def add_zeros(size: int) -> None:
            nonlocal zeros
            zeros += size
            while size:
                part = _ZEROS[:size]
                hasher.update(part)
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
                    hasher.update(data)
                    self._add(data)
                    length -= len(data)
                offset, length = next(pieces, (entry.size, 0))
            add_zeros(end - position)
        self._end(entry, size, hasher.digest())
        return zeros

    def _end(self, entry: Entry, size: int, digest: bytes) -> None:
        """Write what follows the `size` bytes of the content of `entry`, and note its digest."""
        self._add(padding(size))
        self.digests.append(digest)
        self._numbers.setdefault(digest, entry.number)

    def _add(self, part: bytes | memoryview) -> None:
        """Write a part of the archive, now or together with the next ones."""
        size = len(part)
        if size >= LARGE:
            self._flush()
            write_all(self._pipe, part, self._stop)
            self.size += size
            return
        self._parts.append(bytes(part))  # a view would keep all of its piece in memory
        self._parts_size += size
        if self._parts_size >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        write_all(self._pipe, b"".join(self._parts), self._stop)
        self.size += self._parts_size
        self._parts.clear()
        self._parts_size = 0
