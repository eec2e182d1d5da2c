"""Which bytes of a converted file are data of layer packs.

Two files that have data of equal packs have equal bytes there. So a system that has one of them
gets only the rest of the other (`job.delta`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import NamedTuple

MOST_RANGES = 20_000
"""The limit on the ranges of one file; the longest stay."""

MOST_PACKS = 1000
"""The limit on the packs of one file; those with most bytes stay."""

SHORTEST_RANGE = 4096
"""Bytes of the shortest range: to ask for the copy of a shorter one costs as much as to send it."""

_VERSION = b"\1"
_HEAD = struct.Struct("<32sI")
"""The digest of a pack's data, and the number of its ranges."""

_RANGE_BYTES = 24
_RAW_LIMIT = MOST_RANGES * _RANGE_BYTES + MOST_PACKS * _HEAD.size
_POSITION_LIMIT = 1 << 62


class DataRange(NamedTuple):
    """`length` bytes at `offset` of the data area of a pack, which a file has at `position`."""

    offset: int
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class PackedData:
    """The ranges of a file by the SHA-256 of the data areas of their packs, in hexadecimal.

    The ranges of a pack are in the order of their offsets and do not overlap there.
    """

    ranges: Mapping[str, tuple[DataRange, ...]] = field(default_factory=dict)

    @classmethod
    def collect(cls, parts: Iterable[tuple[str, Iterable[tuple[int, int, int]]]]) -> PackedData:
        """Return the ranges of several packs: for each the digest of its data, and its ranges.

        Adjacent ranges become one. Short ranges, and those beyond the limits, are left out, and so
        is what overlaps other ranges of the same data.
        """
        by_data: dict[str, list[DataRange]] = {}
        for data_sha256, ranges in parts:
            by_data.setdefault(data_sha256, []).extend(map(DataRange._make, ranges))
        long_ranges = {
            data_sha256: [
                data_range
                for data_range in _merge(sorted(ranges))
                if data_range.length >= SHORTEST_RANGE
            ]
            for data_sha256, ranges in by_data.items()
        }
        largest = nlargest(MOST_PACKS, long_ranges, key=lambda name: _size_of(long_ranges[name]))
        lengths = sorted(
            (part.length for name in largest for part in long_ranges[name]), reverse=True
        )
        shortest = lengths[MOST_RANGES - 1] if len(lengths) > MOST_RANGES else 0
        room = MOST_RANGES
        result: dict[str, tuple[DataRange, ...]] = {}
        for name in largest:
            longest = [part for part in long_ranges[name] if part.length >= shortest][:room]
            room -= len(longest)
            if longest:
                result[name] = tuple(longest)
        return cls(result)

    def sizes(self) -> dict[str, int]:
        """Return for each digest of data the bytes of its ranges."""
        return {name: _size_of(ranges) for name, ranges in self.ranges.items()}

    def encode(self) -> bytes:
        """Return the bytes that `decode` reads: well under a megabyte."""
        return _VERSION + zlib.compress(b"".join(self._pieces()))

    def _pieces(self) -> Iterator[bytes]:
        for data_sha256, ranges in self.ranges.items():
            yield _HEAD.pack(bytes.fromhex(data_sha256), len(ranges))
            gaps, moves = [], []
            end = target = 0
            for offset, position, length in ranges:
                gaps.append(offset - end)
                moves.append(position - target)
                end, target = offset + length, position + length
            count = len(ranges)
            lengths = (data_range.length for data_range in ranges)
            yield struct.pack(f"<{count}Q{count}q{count}Q", *gaps, *moves, *lengths)

    @classmethod
    def decode(cls, content: bytes) -> PackedData:
        """Return the ranges that were encoded; raise `ValueError` for anything else."""
        if not content.startswith(_VERSION):
            raise ValueError("the ranges have an unknown format")
        try:
            decompressor = zlib.decompressobj()
            raw = decompressor.decompress(content[len(_VERSION) :], _RAW_LIMIT)
            if not decompressor.eof or decompressor.unused_data:
                raise ValueError("the ranges are too long, or cut short")
            return cls(dict(_read(raw)))
        except (zlib.error, struct.error) as error:
            raise ValueError(f"the ranges are damaged: {error}") from error


def _read(raw: bytes) -> Iterator[tuple[str, tuple[DataRange, ...]]]:
    place = 0
    while place < len(raw):
        digest, count = _HEAD.unpack_from(raw, place)
        place += _HEAD.size
        if not 0 < count <= MOST_RANGES:
            raise ValueError(f"a pack has {count} ranges")
        numbers = struct.unpack_from(f"<{count}Q{count}q{count}Q", raw, place)
        place += count * _RANGE_BYTES
        end = target = 0
        ranges = []
        columns = (numbers[:count], numbers[count : 2 * count], numbers[2 * count :])
        for gap, move, length in zip(*columns, strict=True):
            offset, position = end + gap, target + move
            end, target = offset + length, position + length
            if position < 0 or not length or max(end, target) > _POSITION_LIMIT:
                raise ValueError("a range is outside of its file")
            ranges.append(DataRange(offset, position, length))
        yield digest.hex(), tuple(ranges)


def _merge(ranges: Iterable[DataRange]) -> list[DataRange]:
    """Return ranges, which are in order, without overlaps and with adjacent ones combined."""
    result: list[DataRange] = []
    for offset, position, length in ranges:
        if result:
            last = result[-1]
            end = last.offset + last.length
            if offset < end:
                continue
            if (offset, position) == (end, last.position + last.length):
                result[-1] = DataRange(last.offset, last.position, last.length + length)
                continue
        result.append(DataRange(offset, position, length))
    return result


def _size_of(ranges: Iterable[DataRange]) -> int:
    return sum(data_range.length for data_range in ranges)
