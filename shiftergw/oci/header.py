"""Read and write 512-byte tar headers (POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar).

Names are bytes. The reader accepts V7, ustar and GNU headers. The writer uses GNU headers, because
`mksquashfs` reads all their names, targets and sizes correctly.
"""

from __future__ import annotations

from struct import Struct
from zlib import adler32

from shiftergw.errors import LayerInvalid

BLOCK = 512
"""Bytes of a header. Data is padded to a multiple of it."""

END = bytes(2 * BLOCK)
"""The two zero blocks that end an archive."""

_NAME = 100  # bytes of a name or target that fit into the header itself
_ADLER = 65521
_OCTAL_SIZE = 8**11
_BLANKS = sum(b" " * 8)  # the checksum field counts as blanks
_FRONT = b"%b%07o\0" + b"0000000\0" * 2 + b"%b%011o\0"  # before the checksum; owned by root
_MAGIC_AND_REST = b"ustar  \0" + bytes(BLOCK - 265)

# name, mode, (uid, gid), size, mtime, checksum, type, target, magic and version, (user, group,
# device), prefix, (unused)
FIELDS = Struct("100s8s16x12s12s8sc100s8s80x155s12x")
"""The fields of a header that the gateway reads."""


def number(field: bytes) -> int:
    """Parse a number: octal digits, or base 256 (GNU) if the first bit is set."""
    digits = field.rstrip(b" \0")
    if not digits.isdigit():  # empty, base 256, or blanks in unusual places
        if field[0] & 0x80:
            bits = 8 * len(field) - 1
            value = int.from_bytes(field, "big") & ((1 << bits) - 1)
            return value - (1 << bits) if value >> (bits - 1) else value
        digits = field.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise LayerInvalid("A layer's tar header has an invalid number.")


def has_valid_checksum(block: bytes, checksum: bytes) -> bool:
    """Return whether the bytes of a header add up to its `checksum` field.

    The low half of an Adler-32 (RFC 1950) is one more than the sum of the bytes modulo 65521, and
    is computed ten times faster than a sum in Python. Some old writers added signed bytes.
    """
    try:
        total = number(checksum) - _BLANKS
    except LayerInvalid:
        return False
    unsigned_sum = (adler32(block) & 0xFFFF) - (adler32(block[148:156]) & 0xFFFF)
    if (unsigned_sum - total) % _ADLER == 0:
        return True
    signed_bytes = memoryview(block).cast("b")
    return sum(signed_bytes[:148]) + sum(signed_bytes[156:]) == total


def _block(
    name: bytes, mode: int, size: int, mtime: int, kind: bytes, target: bytes = b""
) -> bytes:
    octets = b"%011o\0" % size if size < _OCTAL_SIZE else b"\x80" + size.to_bytes(11, "big")
    front = _FRONT % (name.ljust(_NAME, b"\0"), mode, octets, mtime)
    back = kind + target.ljust(_NAME, b"\0") + _MAGIC_AND_REST
    # The sum of at most 200 bytes of 255 and some digits never reaches Adler's modulus.
    total = (adler32(back, adler32(front)) & 0xFFFF) - 1 + _BLANKS
    return b"%b%06o\0 %b" % (front, total, back)


def _long(kind: bytes, text: bytes) -> bytes:
    """Return the GNU header of a name or target of more than 100 bytes; it precedes the entry."""
    body = text + b"\0"
    header = _block(b"././@LongLink", 0, len(body), 0, kind)
    return header + body + padding(len(body))


def header(
    path: bytes, mode: int, mtime: int, kind: bytes, size: int = 0, target: bytes = b""
) -> bytes:
    """Return the header blocks of one entry.

    `kind` is `0` (file of `size` bytes), `1` (hard link to `target`), `2` (symlink) or `5`
    (directory). `mode` has the permission bits, `mtime` is in 0…2³²-1, and the owner is root.
    """
    long = b""
    if len(path) > _NAME or len(target) > _NAME:
        if len(target) > _NAME:
            long += _long(b"K", target)
        if len(path) > _NAME:
            long += _long(b"L", path)
        path, target = path[:_NAME], target[:_NAME]
    return long + _block(path, mode, size, mtime, kind, target)


class HeaderTemplate:
    """Makes the headers of files that differ only in their names and sizes."""

    def __init__(self, name_length: int, mode: int) -> None:
        """Take names of `name_length` bytes, at most 100; the time of all files is 0."""
        block = _block(bytes(name_length), mode, 0, 0, b"0")
        self._mode = mode
        self._before_size, self._after_size = block[name_length:124], block[136:148]
        self._back = block[156:]
        self._back_sum = sum(self._back) + _BLANKS

    def header(self, name: bytes, size: int) -> bytes:
        """Return what the function `header` returns, in half of the time."""
        if size >= _OCTAL_SIZE:
            return _block(name, self._mode, size, 0, b"0")
        front = b"%b%b%011o\0%b" % (name, self._before_size, size, self._after_size)
        total = (adler32(front) & 0xFFFF) - 1 + self._back_sum
        return b"%b%06o\0 %b" % (front, total, self._back)


def padding(size: int) -> bytes:
    """Return the zeros after `size` bytes of data."""
    return bytes(-size % BLOCK)
