"""Metadata blocks out: a buffer before the file, and tables that are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

from shiftergw.squashfs.blocks import HEADER, STORED_BIT
from shiftergw.squashfs.compressors import Compress
from shiftergw.squashfs.superblock import METADATA_SIZE

BUFFER_SIZE = 1 << 16
"""Bytes that are written at a time, about."""

Write = Callable[[bytes], object]
"""Append bytes to the file. It may block; what it raises ends the writing."""


class BufferedOutput:
    """Collects small pieces before they are written, and knows the position in the file."""

    def __init__(self, write: Write, position: int) -> None:
        """Write from `position` on."""
        self.position = position
        self._write = write
        self._buffer = bytearray()

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        self._buffer += piece
        self.position += len(piece)
        if len(self._buffer) >= BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what is in the buffer."""
        if self._buffer:
            self._write(bytes(self._buffer))
            self._buffer.clear()


class MetadataWriter:
    """A table that is being written: its records are cut into blocks of 8 KiB."""

    def __init__(self, compress: Compress, write: Write) -> None:
        """Hand each finished block, with its header, to `write`."""
        self._compress = compress
        self._write = write
        self._buffer = bytearray()
        self._block = 0
        """Bytes of the table on disk before the buffer."""

    @property
    def reference(self) -> int:
        """Return the reference of the next record: block shifted by 16 bits, and offset."""
        return self._block << 16 | len(self._buffer)

    def add(self, record: bytes) -> int:
        """Append a record; return its reference."""
        buffer = self._buffer
        reference = self._block << 16 | len(buffer)
        buffer += record
        if len(buffer) >= METADATA_SIZE:
            self._write_blocks(METADATA_SIZE)
        return reference

    def finish(self) -> None:
        """Write the last block."""
        if self._buffer:
            self._write_blocks(1)

    def _write_blocks(self, least: int) -> None:
        """Write blocks while the buffer has at least `least` bytes."""
        buffer = self._buffer
        start = 0
        while len(buffer) - start >= least:
            block = bytes(buffer[start : start + METADATA_SIZE])
            start += len(block)
            raw = metadata_block(block, self._compress)
            self._block += len(raw)
            self._write(raw)
        del buffer[:start]


def metadata_block(content: bytes, compress: Compress) -> bytes:
    """Return a metadata block with its header; it is compressed if that makes it smaller."""
    block = compress(content)
    if len(block) < len(content):
        return HEADER.pack(len(block)) + block
    return HEADER.pack(len(content) | STORED_BIT) + content


def write_indexed_table(content: bytes, compress: Compress, output: BufferedOutput) -> int:
    """Write a table and the index of its blocks; return the position of the index."""
    pointers: list[int] = []
    for start in range(0, len(content), METADATA_SIZE):
        pointers.append(output.position)
        output.add(metadata_block(content[start : start + METADATA_SIZE], compress))
    index = output.position
    output.add(pack(f"<{len(pointers)}Q", *pointers))
    return index
