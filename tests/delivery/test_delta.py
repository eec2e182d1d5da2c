"""Plans of deliveries that share ranges with an installed image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent

from shiftergw.delivery import delta as deltas
from shiftergw.delivery.assembly import OPERATION, batches_of
from shiftergw.delivery.delta import (
    Delta,
    DeltaUnusable,
    Segment,
    cloneable_segments,
    copy_counter,
    segments_from,
    segments_of,
)
from shiftergw.ports import DeltaSource, SharedRange

ALIGNMENT = 16
SIZE = 3 * ALIGNMENT
SOURCE_SIZE = 5 * ALIGNMENT


@st.composite
def shared_ranges(draw: st.DrawFn) -> tuple[SharedRange, ...]:
    """Return ranges that a file of `SIZE` bytes shares with one of `SOURCE_SIZE` bytes."""
    points = sorted(draw(st.sets(st.integers(0, SIZE), max_size=8)))
    ranges = []
    for begin, end in zip(points[::2], points[1::2], strict=False):
        source_offset = draw(st.integers(0, SOURCE_SIZE - (end - begin)) | st.just(begin))
        ranges.append(SharedRange(begin, source_offset, end - begin))
    return tuple(ranges)


def places(segments: tuple[Segment, ...]) -> list[int | None]:
    """Return for each byte where it is in the source; None if it must be sent."""
    result: list[int | None] = []
    for segment in segments:
        assert segment.length > 0
        assert segment.offset == len(result)
        begin = segment.source_offset
        result += [None if begin is None else begin + n for n in range(segment.length)]
    return result


def expected_places(ranges: tuple[SharedRange, ...]) -> list[int | None]:
    """Return what `places` returns for these ranges."""
    result: list[int | None] = [None] * SIZE
    for shared_range in ranges:
        for n in range(shared_range.length):
            result[shared_range.offset + n] = shared_range.source_offset + n
    return result


@given(shared_ranges(), st.integers(0, SIZE))
def test_segments(ranges: tuple[SharedRange, ...], start: int) -> None:
    """Segments cover the file, in order; each byte is copied from its place, or sent."""
    segments = segments_of(DeltaSource("a", SOURCE_SIZE, ranges), SIZE)
    expected = expected_places(ranges)
    assert places(segments) == expected
    rest = segments_from(segments, start)
    shifted_segments = tuple(Segment(s.offset - start, s.length, s.source_offset) for s in rest)
    assert places(shifted_segments) == expected[start:]
    is_copied = [place is not None for place in expected]
    assert copy_counter(segments)(start) == sum(is_copied[:start])
    assert copy_counter(rest)(SIZE) == sum(is_copied[start:])


@given(shared_ranges())
def test_cloneable_segments(ranges: tuple[SharedRange, ...]) -> None:
    """What can be cloned is aligned in both files; less than two blocks of a range are sent."""
    segments = segments_of(DeltaSource("a", SOURCE_SIZE, ranges), SIZE)
    cloneable = cloneable_segments(segments, ALIGNMENT)
    for place, expected in zip(places(cloneable), expected_places(ranges), strict=True):
        assert place in {expected, None}
    sent_bytes = sum(segment.length for segment in cloneable if segment.source_offset is None)
    assert sent_bytes - sum(s.length for s in segments if s.source_offset is None) < (
        2 * ALIGNMENT * max(1, len(ranges))
    )
    for segment in cloneable:
        if segment.source_offset is not None and segment.offset % ALIGNMENT == 0:
            assert segment.source_offset % ALIGNMENT or segment.length % ALIGNMENT == 0


def test_adjacent_ranges() -> None:
    """Ranges that continue each other in both files become one segment."""
    ranges = (SharedRange(0, 5, 3), SharedRange(3, 8, 4), SharedRange(7, 13, 1))
    segments = segments_of(DeltaSource("a", 20, ranges), 8)
    assert segments == (Segment(0, 7, 5), Segment(7, 1, 13))


@pytest.mark.parametrize(
    "ranges",
    [
        (SharedRange(0, 0, 0),),
        (SharedRange(0, 0, -1),),
        (SharedRange(-1, 0, 3),),
        (SharedRange(0, -1, 3),),
        (SharedRange(5, 0, 3), SharedRange(0, 0, 3)),
        (SharedRange(0, 0, 3), SharedRange(2, 5, 3)),
        (SharedRange(8, 0, 3),),
        (SharedRange(0, 18, 3),),
        (SharedRange(0, 0, 1 << 64),),
        tuple(SharedRange(2 * n, n, 1) for n in range(deltas.MOST_RANGES + 1)),
    ],
    ids=str.split("empty negative before before-source order overlap end source-end huge many"),
)
def test_impossible_ranges(ranges: tuple[SharedRange, ...]) -> None:
    """Impossible ranges are not used, and the log says why."""
    source = DeltaSource("a", 20, ranges)
    size = 10 if len(ranges) < 10 else 1 << 20
    with pytest.raises(DeltaUnusable, match="ranges"):
        segments_of(source, size)
    with capturedLogs() as events:
        assert Delta("b", source, str.encode, size).plan is None
    assert [formatEvent(event).partition(": ")[0] for event in events] == ["b is sent as a whole"]


def test_attempts() -> None:
    """The plan is given up after two attempts without progress, one after the other."""
    delta = Delta("b", DeltaSource("a", 20, (SharedRange(0, 0, 5),)), str.encode, 10)
    for start in (0, 0, 3, 3, 4, 4):
        delta.begin_attempt(start)
        assert delta.plan is not None
        assert delta.plan.path == b"a"
    delta.begin_attempt(4)
    assert delta.plan is None
    assert Delta("b", None, str.encode, 10).plan is None
    assert Delta("b", DeltaSource("a", 20, ()), str.encode, 10).plan is None


def test_batches() -> None:
    """Batches carry out all segments in order, and each of them sends a stretch at most."""
    stretch = 1000
    long = 2 * OPERATION + 1
    segments = (
        Segment(0, 700),
        Segment(700, long, 50),
        Segment(700 + long, 5000),
        *(Segment(5700 + long + n, 1, 2 * n) for n in range(5000)),
    )
    position = 0
    extents: list[tuple[int, int]] = []
    for batch in batches_of(segments, stretch):
        assert batch.start == position
        assert 0 < len(batch.operations) <= 4096
        extents += batch.extents
        lengths = [length for _, length in batch.extents]
        assert sum(lengths) <= stretch
        assert all(operation.length <= OPERATION for operation in batch.operations)
        position += sum(operation.length for operation in batch.operations)
    assert position == segments[-1].end
    assert sum(length for _, length in extents) == 5700
