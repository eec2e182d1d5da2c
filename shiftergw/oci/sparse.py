"""Parse the maps of sparse files in the four formats that GNU tar has written.

Old GNU maps (type `S`) are in the header and in extension blocks, PAX 0.0 and 0.1 maps in PAX
records, and PAX 1.0 maps before the data. See "Storing Sparse Files" in the manual of GNU tar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from shiftergw.errors import LayerInvalid
from shiftergw.oci.extended import LIMIT, decimal
from shiftergw.oci.header import BLOCK, number

SparseMap = tuple[tuple[int, int], ...]
"""(offset in the file, length) of each piece of data, ascending; zeros are between them."""

Take = Callable[[int], bytes]
"""Reads this number of bytes from the layer's stream, or raises `LayerInvalid`."""

_NUMBER = 12
_IN_HEADER = slice(386, 482)
_IN_EXTENSION = slice(0, 504)


def old_gnu_map(block: bytes, take: Take, data_size: int) -> tuple[SparseMap, int]:
    """Return the map and the file size of an entry of type `S` with `data_size` bytes of data."""
    numbers = _pairs_of(block[_IN_HEADER])
    has_extension = block[482]
    read = 0
    while has_extension:
        read += BLOCK
        if read > LIMIT:
            raise LayerInvalid("A layer has a sparse file with too many pieces.")
        extension = take(BLOCK)
        numbers += _pairs_of(extension[_IN_EXTENSION])
        has_extension = extension[504]
    size = number(block[483:495])
    return _validate(numbers, size, data_size), size


def _pairs_of(field: bytes) -> list[int]:
    numbers = [field[start : start + _NUMBER] for start in range(0, len(field), _NUMBER)]
    used = numbers.index(bytes(_NUMBER)) if bytes(_NUMBER) in numbers else len(numbers)
    return [number(text) for text in numbers[:used]]


def pax_map(
    records: Sequence[tuple[bytes, bytes]], take: Take, data_size: int
) -> tuple[SparseMap, int, int]:
    """Return the map, the file size, and the bytes of the map itself in the data.

    `records` are the PAX records with the prefix `GNU.sparse.`, in their order and without it.
    `data_size` is the size of the entry's data in bytes, map included.
    """
    values = dict(records)
    used = 0
    try:
        if values.get(b"major", b"0") == b"0":  # versions 0.0 and 0.1
            size = decimal(values[b"size"])
            texts = values[b"map"].split(b",") if b"map" in values else _alternating(records)
            numbers = [decimal(text) for text in texts if text]
        else:
            size = decimal(values[b"realsize"])
            if (values[b"major"], values[b"minor"]) != (b"1", b"0"):
                raise LayerInvalid("A layer has a sparse file of a version that is not known.")
            numbers, used = _read_map(take, data_size)
    except KeyError as error:
        raise LayerInvalid("A layer has a sparse file without its size.") from error
    return _validate(numbers, size, data_size - used), size, used


def _alternating(records: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the numbers of version 0.0, whose records repeat the same two keys."""
    pairs = [(key, value) for key, value in records if key in {b"offset", b"numbytes"}]
    if [key for key, _ in pairs] != [b"offset", b"numbytes"] * (len(pairs) // 2):
        raise LayerInvalid("A layer has a sparse file with a damaged map.")
    return [value for _, value in pairs]


def _read_map(take: Take, data_size: int) -> tuple[list[int], int]:
    """Read a map of version 1.0: a line with the number of pairs, then a line for each number.

    Returns the numbers, and the bytes of the map, which is padded to a block.
    """
    text = take(BLOCK)
    count = decimal(text.partition(b"\n")[0])
    lines = text.count(b"\n")
    parts = [text]
    while lines < 1 + 2 * count:
        if len(parts) * BLOCK >= min(LIMIT, data_size):
            raise LayerInvalid("A layer has a sparse file with a damaged map.")
        parts.append(take(BLOCK))
        lines += parts[-1].count(b"\n")
    numbers = b"".join(parts).split(b"\n", 1 + 2 * count)[1:-1]
    return [decimal(line) for line in numbers], len(parts) * BLOCK


def _validate(numbers: list[int], size: int, data_size: int) -> SparseMap:
    """Return the pieces with data; raise `LayerInvalid` unless they fit the file and the data."""
    pieces = tuple((o, n) for o, n in zip(numbers[::2], numbers[1::2], strict=False) if n)
    end = 0
    for offset, length in pieces:
        if offset < end or length < 0:
            raise LayerInvalid("A layer has a sparse file whose pieces overlap.")
        end = offset + length
    if len(numbers) % 2 or end > size or sum(length for _, length in pieces) > data_size:
        raise LayerInvalid("A layer has a sparse file whose pieces do not fit it.")
    return pieces


def data_extents(pieces: SparseMap, size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of blocks that hold data, ascending, in bytes of the file.

    Blocks count from the beginning of the file, and the last one may be partial. Between two runs
    there is at least one block without data.
    """
    start = end = 0
    for offset, length in pieces:
        first = offset - offset % block_size
        if first > end:
            if end:
                yield start, end
            start = first
        stop = offset + length
        end = min(stop + -stop % block_size, size)
    if end:
        yield start, end
