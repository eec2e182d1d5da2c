"""Follow the frames of a zstd stream (RFC 8878, section 3.1.1) while a decompressor reads them.

The library does not report a truncated stream, does not distinguish bytes after the last frame from
damage, and does not report how much memory a frame needs. `FrameReader` wraps its source to do so.
"""

from __future__ import annotations

from collections.abc import Callable

from shiftergw.errors import LayerInvalid

_MAGIC = (0xFD2FB528).to_bytes(4, "little")
_SKIPPABLE_MAGICS = frozenset((0x184D2A50 + n).to_bytes(4, "little") for n in range(16))

_FIELD_FROM_256 = 2
"""Bytes of the content size field whose value is offset by 256 (RFC 8878, section 3.1.1.1.4)."""

WINDOW_LIMIT = 1 << 27
"""Bytes of the largest window of a frame: the limit of `zstd` without further options."""


def is_frame(magic: bytes) -> bool:
    """Return whether these four bytes start a frame, skippable or not."""
    return magic == _MAGIC or magic in _SKIPPABLE_MAGICS


class FrameReader:
    """A source of compressed bytes that checks whether the last frame is complete.

    It steps from block to block: about 10,000 steps for a GB of what `zstd` writes.
    """

    def __init__(self, read: Callable[[int], bytes], claim_window: Callable[[int], None]) -> None:
        """Read from `read`; call `claim_window` with the window size in bytes of each frame.

        `claim_window` is called before the decompressor gets the frame, and may wait.
        """
        self._read = read
        self._claim_window = claim_window
        self._step: Callable[[bytes], int] = self._magic
        self._length = 4
        """Bytes that the next step parses."""
        self._buffer = b""
        """The first of these bytes, if the rest has not been read yet."""
        self._skip = 0
        """Bytes to skip before the next step."""
        self._has_checksum = False
        self._has_window = False
        self._content_size = 0
        """Bytes of the frame's content size field."""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, none at the end; raise `LayerInvalid` for bytes between frames."""
        data = self._read(size)
        self._follow(data)
        return data

    def check_end(self) -> None:
        """Raise `LayerInvalid` unless the last frame has ended."""
        if self._step != self._magic or self._skip or self._buffer:
            raise LayerInvalid("A layer's zstd data ends too early.")

    def _follow(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        start = self._skip
        while start + self._length <= len(data):
            part = data[start : start + self._length]
            start += self._length + self._step(part)
        self._buffer = data[start:]
        if self._step == self._magic and not _is_magic_prefix(self._buffer):
            raise _trailing_data_error()
        self._skip = max(0, start - len(data))

    def _expect(self, length: int, step: Callable[[bytes], int]) -> None:
        self._length, self._step = length, step

    # Each step parses its bytes, sets the next step, and returns how many bytes to skip before it.

    def _magic(self, part: bytes) -> int:
        if part == _MAGIC:
            self._expect(1, self._descriptor)
        elif part in _SKIPPABLE_MAGICS:
            self._expect(4, self._skippable)
        else:
            raise _trailing_data_error()
        return 0

    def _skippable(self, part: bytes) -> int:
        self._expect(4, self._magic)
        return int.from_bytes(part, "little")

    def _descriptor(self, part: bytes) -> int:
        flags = part[0]
        single_segment = flags >> 5 & 1
        self._has_checksum = bool(flags >> 2 & 1)
        self._has_window = not single_segment
        self._content_size = (single_segment, 2, 4, 8)[flags >> 6]
        dictionary_id = (0, 1, 2, 4)[flags & 3]
        self._expect(1 - single_segment + dictionary_id + self._content_size, self._header)
        return 0

    def _header(self, part: bytes) -> int:
        if self._has_window:
            base = 1 << 10 + (part[0] >> 3)
            window = base + base // 8 * (part[0] & 7)
        else:  # a single segment: the window is the whole content of the frame
            window = int.from_bytes(part[-self._content_size :], "little")
            window += 256 * (self._content_size == _FIELD_FROM_256)
        if window > WINDOW_LIMIT:
            raise LayerInvalid(
                f"A layer's zstd data needs a window of {_binary(window)};"
                f" at most {_binary(WINDOW_LIMIT)} is allowed.",
                remedy="Push the image once more, its layers compressed with `--long=27` or less.",
            )
        self._claim_window(window)
        self._expect(3, self._block)
        return 0

    def _block(self, part: bytes) -> int:
        number = int.from_bytes(part, "little")
        is_repeated_byte = number >> 1 & 3 == 1
        size = 1 if is_repeated_byte else number >> 3
        if number & 1:
            self._expect(4, self._magic)
            return size + 4 * self._has_checksum
        return size


def _is_magic_prefix(part: bytes) -> bool:
    """Return whether a frame can start with these bytes, which are fewer than four."""
    return any(magic.startswith(part) for magic in (_MAGIC, *_SKIPPABLE_MAGICS))


def _trailing_data_error() -> LayerInvalid:
    return LayerInvalid("A layer's zstd data has bytes after its end.")


def _binary(size: int) -> str:
    """Return a number of bytes by powers of 1024, as the options of `zstd` count them."""
    gigabyte = 1 << 30
    return f"{size / gigabyte:g} GB" if size >= gigabyte else f"{size >> 20} MB"
