"""The ranges of a file that are data of packs: combined, bounded, and stored in few bytes."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.model.packed_data import (
    MOST_PACKS,
    MOST_RANGES,
    SHORTEST_RANGE,
    DataRange,
    PackedData,
)

A, B = "a" * 64, "b" * 64
SIZE = 10 * SHORTEST_RANGE


def test_adjacent_ranges_become_one() -> None:
    """Ranges are combined if they are adjacent both in the pack and in the file."""
    ranges = [(0, 100, SIZE), (SIZE, 100 + SIZE, SIZE), (2 * SIZE, 900 + 2 * SIZE, SIZE)]
    data = PackedData.collect([(A, ranges)])
    expected = (DataRange(0, 100, 2 * SIZE), DataRange(2 * SIZE, 900 + 2 * SIZE, SIZE))
    assert data.ranges == {A: expected}
    assert data.sizes() == {A: 3 * SIZE}


def test_packs_with_equal_data_are_one() -> None:
    """Two layers with the same data have one list, in order and without overlaps."""
    data = PackedData.collect(
        [(A, [(SIZE, 0, SIZE)]), (B, [(0, 5 * SIZE, SIZE)]), (A, [(0, 9 * SIZE, SIZE + 1)])]
    )
    assert data.ranges == {
        A: (DataRange(0, 9 * SIZE, SIZE + 1),),
        B: (DataRange(0, 5 * SIZE, SIZE),),
    }


def test_short_ranges_are_left_out() -> None:
    """A range that is not worth a request is no range, and a pack without ranges is not named."""
    ranges = [(0, 0, SHORTEST_RANGE - 1), (SIZE, SIZE, SHORTEST_RANGE)]
    data = PackedData.collect([(A, ranges), (B, ranges[:1]), ("c" * 64, [])])
    assert data.ranges == {A: (DataRange(SIZE, SIZE, SHORTEST_RANGE),)}


def test_the_longest_ranges_stay_within_the_limits() -> None:
    """Of too many ranges the longest stay, and of too many packs the largest."""
    lengths = [SHORTEST_RANGE + number % 7 for number in range(MOST_RANGES + 5000)]
    ranges = [(2 * number * SIZE, number * SIZE, size) for number, size in enumerate(lengths)]
    data = PackedData.collect([(A, ranges)])
    assert len(data.ranges[A]) == MOST_RANGES
    assert {part.length for part in data.ranges[A]} == set(range(4097, 4103))
    packs = [(f"{number:064x}", [(0, 0, SIZE + number)]) for number in range(MOST_PACKS + 9)]
    names = PackedData.collect(packs).ranges
    assert set(names) == {name for name, _ in packs[9:]}


def test_the_largest_record_is_small() -> None:
    """A file with as many ranges as are allowed, of random lengths, needs a third of a megabyte."""
    numbers = random.Random(1)
    ranges = []
    offset = position = 0
    for _ in range(MOST_RANGES):
        offset += numbers.randrange(1, 1 << 20)
        position += numbers.randrange(1, 1 << 12)
        length = numbers.randrange(SHORTEST_RANGE, 1 << 20)
        ranges.append((offset, position, length))
        offset, position = offset + length, position + length
    data = PackedData.collect([(A, ranges)])
    content = data.encode()
    assert len(content) < 350_000
    assert PackedData.decode(content) == data


RANGES = st.lists(
    st.tuples(
        st.integers(0, 1 << 44), st.integers(0, 1 << 44), st.integers(SHORTEST_RANGE, 1 << 40)
    ),
    max_size=20,
)


@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(bytes.hex), RANGES, max_size=5))
def test_what_is_encoded_is_decoded(parts: dict[str, list[tuple[int, int, int]]]) -> None:
    """Every value survives its encoding, and ranges of one pack never overlap in its data."""
    data = PackedData.collect(parts.items())
    assert PackedData.decode(data.encode()) == data
    for ranges in data.ranges.values():
        ends = [0, *(part.offset + part.length for part in ranges)]
        assert all(part.offset >= end for part, end in zip(ranges, ends, strict=False))


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    """Bytes that are not an encoding raise `ValueError` and nothing else."""
    for content in (raw, b"\1" + raw, b"\1" + zlib.compress(raw)):
        try:
            ranges = PackedData.decode(content).ranges.values()
        except ValueError:
            continue
        assert all(part.position >= 0 and part.length > 0 for parts in ranges for part in parts)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\2" + zlib.compress(b""),
        b"\1",
        b"\1" + zlib.compress(bytes(36))[:-1],
        b"\1" + zlib.compress(b"") + b"x",
        b"\1" + zlib.compress(bytes(1 << 24)),
        b"\1" + zlib.compress(bytes(32) + b"\0\0\0\0"),
        b"\1" + zlib.compress(bytes(32) + b"\1\0\0\0" + bytes(24)),
        b"\1" + zlib.compress(bytes(32) + b"\1\0\0\0" + bytes(8) + b"\xff" * 8 + bytes(8)),
        b"\1" + zlib.compress(bytes(32) + b"\xff\xff\xff\xff" + bytes(24)),
        b"\1" + zlib.compress(bytes(32) + b"\1\0\0\0" + b"\xff" * 24),
    ],
)
def test_damaged_ranges_are_refused(content: bytes) -> None:
    """An unknown version, a cut or endless content, and ranges that cannot be, are errors."""
    with pytest.raises(ValueError, match="range"):
        PackedData.decode(content)
