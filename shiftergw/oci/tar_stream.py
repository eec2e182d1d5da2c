"""The uncompressed bytes of a tar archive, read forward in blocks, wholes and views."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from shiftergw.errors import LayerInvalid
from shiftergw.oci.header import BLOCK


class TarStream:
    """The uncompressed bytes of a layer, read forward and hashed on the way."""

    def __init__(self, pieces: Iterator[bytes], sha: hashlib._Hash | None) -> None:
        self._pieces = pieces
        self._sha = sha
        self._piece = b""
        self._index = 0  # of the next byte in the piece
        self._start = 0  # offset of the piece in the stream

    @property
    def position(self) -> int:
        """Return the offset of the next byte."""
        return self._start + self._index

    def _advance(self) -> bool:
        """Read the next piece; return False at the end of the stream."""
        self._start += len(self._piece)
        self._index = 0
        self._piece = next(self._pieces, b"")
        if self._sha is not None:
            self._sha.update(self._piece)
        return bool(self._piece)

    def block(self) -> bytes | None:
        """Return the next block, or None at the end of the stream."""
        start = self._index
        block = self._piece[start : start + BLOCK]
        if len(block) == BLOCK:
            self._index = start + BLOCK
            return block
        if not block and not self._advance():
            return None
        return self.take(BLOCK)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; raise `LayerInvalid` if the stream ends before."""
        start = self._index
        part = self._piece[start : start + size]
        self._index = start + len(part)
        if len(part) == size:  # nearly always
            return part
        parts = [part]
        size -= len(part)
        while size:
            self._advance_within_entry()
            part = self._piece[:size]
            self._index = len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def view(self, size: int) -> memoryview:
        """Return a view of 1 to `size` of the next bytes, which are then read.

        Raises `LayerInvalid` if the stream ends.
        """
        if self._index == len(self._piece):
            self._advance_within_entry()
        start = self._index
        self._index = min(start + size, len(self._piece))
        return memoryview(self._piece)[start : self._index]

    def _advance_within_entry(self) -> None:
        if not self._advance():
            raise LayerInvalid("A layer's archive ends within an entry.")

    def skip(self, size: int) -> None:
        """Skip `size` bytes; raise `LayerInvalid` if the stream ends before."""
        index = self._index + size
        while index > len(self._piece):
            index -= len(self._piece)
            self._advance_within_entry()
        self._index = index

    def skip_padding(self, size: int) -> None:
        """Skip the padding after `size` bytes of data; the stream may end instead.

        The end of the file is the end of the archive: some writers omit the last padding.
        """
        padding = -size % BLOCK
        while padding > (remaining := len(self._piece) - self._index):
            padding -= remaining
            if not self._advance():
                return
        self._index += padding

    def drain(self) -> None:
        """Read, and hash, the rest of the stream."""
        while self._advance():
            pass

    def digest(self) -> str:
        """Return the digest of the whole stream, in hexadecimal."""
        assert self._sha is not None
        return self._sha.hexdigest()
