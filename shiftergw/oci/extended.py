"""What stands before a tar header to say more than it can: PAX records, GNU long names.

PAX: POSIX.1-2017 `pax`, "pax Extended Header". GNU: `././@LongLink` entries of type L and K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shiftergw.errors import LayerInvalid

LIMIT = 1 << 20
"""Bytes that one extended header, or one map of a sparse file, may have."""

TOGETHER = 4 * LIMIT
"""Bytes that all extended headers before one entry may have."""

_XATTRS = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_SPARSE = b"GNU.sparse."
_NAMES = frozenset({b"path", b"linkpath", _SPARSE + b"name"})
_LENGTH_DIGITS = 20


@dataclass(slots=True)
class Extended:
    """What the extended headers before one entry said; None or empty where they did not."""

    path: bytes | None = None
    target: bytes | None = None
    size: int | None = None
    mtime: int | None = None
    xattrs: bool = False
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Records of GNU sparse files in their order, without their common prefix."""
    length: int = field(default=0, compare=False)
    """Bytes of all bodies so far."""

    def read(self, kind: bytes, body: bytes) -> None:
        """Take in the body of an extended header of type `L`, `K`, or `x` (PAX)."""
        self.length += len(body)
        if self.length > TOGETHER:
            raise LayerInvalid(
                f"A layer has more than {TOGETHER >> 20} MiB of headers before one entry."
            )
        if kind == b"L":
            self.path = body.partition(b"\0")[0]
        elif kind == b"K":
            self.target = body.partition(b"\0")[0]
        else:
            for key, value in records(body):
                self._take(key, value)

    def _take(self, key: bytes, value: bytes) -> None:
        if key in _NAMES and b"\0" in value:
            raise LayerInvalid("A layer has an entry with a NUL in its name or target.")
        if key in {b"path", b"linkpath"}:
            if key == b"path":
                self.path = value or None
            else:
                self.target = value or None
        elif key == b"size":
            self.size = decimal(value) if value else None
        elif key == b"mtime":
            self.mtime = _whole_seconds(value) if value else None
        elif key.startswith(_SPARSE):
            self.sparse.append((key.removeprefix(_SPARSE), value))
        elif key.startswith(_XATTRS):
            self.xattrs = True


def records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of each line `<length> <key>=<value>`; `LayerInvalid` for damage."""
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + _LENGTH_DIGITS)
        length = body[at : max(space, at)]
        end = at + int(length) if length.isdigit() else 0
        if not space < end <= len(body) or body[end - 1 : end] != b"\n":
            raise LayerInvalid("A layer has a damaged PAX header.")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise LayerInvalid("A layer has a PAX record without a value.")
        yield key, value
        at = end


def decimal(text: bytes) -> int:
    """Read a decimal number without sign, such as a size."""
    if not text.isdigit() or len(text) > _LENGTH_DIGITS:
        raise LayerInvalid("A layer has a PAX header with a number that is none.")
    return int(text)


def _whole_seconds(text: bytes) -> int:
    """Read a PAX time and cut its fraction."""
    whole = text.partition(b".")[0]
    negative = whole.startswith(b"-")
    value = decimal(whole[negative:] or b"0")
    return -value if negative else value
