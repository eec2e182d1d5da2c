"""Maps of sparse files, in the four ways GNU tar has written them.

Old GNU (type `S`: in the header and extension blocks), and PAX 0.0, 0.1 (in records) and 1.0
(before the data). See "Storing Sparse Files" in the manual of GNU tar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shiftergw.errors import LayerInvalid
from shiftergw.oci.extended import LIMIT, decimal
from shiftergw.oci.header import BLOCK, number

SparseMap = tuple[tuple[int, int], ...]
"""(offset in the file, length) of each piece of data, ascending; between lie zeros."""

Take = Callable[[int], bytes]
"""Reads so many bytes of the layer's stream, or raises `LayerInvalid`."""

_NUMBER = 12
_IN_HEADER = slice(386, 482)
_IN_EXTENSION = slice(0, 504)


def old_gnu_map(block: bytes, take: Take, stored: int) -> tuple[SparseMap, int]:
    """Return the map and the file's size of an entry of type `S` with `stored` bytes of data."""
    numbers = _pairs_of(block[_IN_HEADER])
    more = block[482]
    read = 0
    while more:
        read += BLOCK
        if read > LIMIT:
            raise LayerInvalid("A layer has a sparse file with too many pieces.")
        extension = take(BLOCK)
        numbers += _pairs_of(extension[_IN_EXTENSION])
        more = extension[504]
    size = number(block[483:495])
    return _checked(numbers, size, stored), size


def _pairs_of(field: bytes) -> list[int]:
    numbers = [field[at : at + _NUMBER] for at in range(0, len(field), _NUMBER)]
    used = numbers.index(bytes(_NUMBER)) if bytes(_NUMBER) in numbers else len(numbers)
    return [number(text) for text in numbers[:used]]


def pax_map(
    records: Sequence[tuple[bytes, bytes]], take: Take, stored: int
) -> tuple[SparseMap, int, int]:
    """Return the map, the file's size, and how many bytes of the stored data were the map.

    `records` are those of `GNU.sparse.`, without that prefix and in their order.
    """
    said = dict(records)
    used = 0
    try:
        if said.get(b"major", b"0") == b"0":  # versions 0.0 and 0.1
            size = decimal(said[b"size"])
            texts = said[b"map"].split(b",") if b"map" in said else _alternating(records)
            numbers = [decimal(text) for text in texts if text]
        else:
            size = decimal(said[b"realsize"])
            if (said[b"major"], said[b"minor"]) != (b"1", b"0"):
                raise LayerInvalid("A layer has a sparse file of a version that is not known.")
            numbers, used = _leading_numbers(take, stored)
    except KeyError as error:
        raise LayerInvalid("A layer has a sparse file without its size.") from error
    return _checked(numbers, size, stored - used), size, used


def _alternating(records: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the numbers of version 0.0, where the same two keys come again and again."""
    pairs = [(key, value) for key, value in records if key in {b"offset", b"numbytes"}]
    if [key for key, _ in pairs] != [b"offset", b"numbytes"] * (len(pairs) // 2):
        raise LayerInvalid("A layer has a sparse file with a damaged map.")
    return [value for _, value in pairs]


def _leading_numbers(take: Take, stored: int) -> tuple[list[int], int]:
    """Read a map of version 1.0: a count and so many pairs, a line each, padded to a block."""
    text = take(BLOCK)
    count = decimal(text.partition(b"\n")[0])
    lines = text.count(b"\n")
    parts = [text]
    while lines < 1 + 2 * count:
        if len(parts) * BLOCK >= min(LIMIT, stored):
            raise LayerInvalid("A layer has a sparse file with a damaged map.")
        parts.append(take(BLOCK))
        lines += parts[-1].count(b"\n")
    numbers = b"".join(parts).split(b"\n", 1 + 2 * count)[1:-1]
    return [decimal(line) for line in numbers], len(parts) * BLOCK


def _checked(numbers: list[int], size: int, stored: int) -> SparseMap:
    """Return the pieces that hold data; raise `LayerInvalid` unless they fit the file and data."""
    pieces = tuple((o, n) for o, n in zip(numbers[::2], numbers[1::2], strict=False) if n)
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0:
            raise LayerInvalid("A layer has a sparse file whose pieces overlap.")
        end = offset + length
    if len(numbers) % 2 or end > size or sum(length for _, length in pieces) > stored:
        raise LayerInvalid("A layer has a sparse file whose pieces do not fit it.")
    return pieces
