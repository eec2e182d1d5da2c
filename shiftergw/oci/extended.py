"""Extended headers of tar entries: PAX records and GNU long names.

PAX: POSIX.1-2017 `pax`, "pax Extended Header". GNU: `././@LongLink` entries of type L and K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shiftergw.errors import LayerInvalid

LIMIT = 1 << 20
"""Most bytes of one extended header, or of one map of a sparse file."""

TOTAL_LIMIT = 4 * LIMIT
"""Most bytes of all extended headers of one entry."""

_XATTRS = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_SPARSE = b"GNU.sparse."
_NAMES = frozenset({b"path", b"linkpath", _SPARSE + b"name"})
_LENGTH_DIGITS = 20


@dataclass(slots=True)
class ExtendedHeader:
    """The values of all extended headers of one entry; None or empty where they have none."""

    path: bytes | None = None
    target: bytes | None = None
    size: int | None = None
    mtime: int | None = None
    xattrs: bool = False
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Records of GNU sparse files in their order, without the prefix `GNU.sparse.`."""
    length: int = field(default=0, compare=False)
    """Bytes of all headers so far."""

    def read(self, kind: bytes, body: bytes) -> None:
        """Parse the body of an extended header of type `L`, `K`, or `x` (PAX)."""
        self.length += len(body)
        if self.length > TOTAL_LIMIT:
            raise LayerInvalid(
                f"A layer has more than {TOTAL_LIMIT >> 20} MiB of headers before one entry."
            )
        if kind == b"L":
            self.path = body.partition(b"\0")[0]
        elif kind == b"K":
            self.target = body.partition(b"\0")[0]
        else:
            for key, value in records(body):
                self._set(key, value)

    def _set(self, key: bytes, value: bytes) -> None:
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
    """Yield (key, value) of each line `<length> <key>=<value>`; raise `LayerInvalid` for damage."""
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + _LENGTH_DIGITS)
        length = body[start : max(space, start)]
        end = start + int(length) if length.isdigit() else 0
        if not space < end <= len(body) or body[end - 1 : end] != b"\n":
            raise LayerInvalid("A layer has a damaged PAX header.")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise LayerInvalid("A layer has a PAX record without a value.")
        yield key, value
        start = end


def decimal(text: bytes) -> int:
    """Parse an unsigned decimal number, such as a size."""
    if not text.isdigit() or len(text) > _LENGTH_DIGITS:
        raise LayerInvalid("A layer has a PAX header with an invalid number.")
    return int(text)


def _whole_seconds(text: bytes) -> int:
    """Parse a PAX time without its fraction."""
    whole = text.partition(b".")[0]
    negative = whole.startswith(b"-")
    value = decimal(whole[negative:] or b"0")
    return -value if negative else value
