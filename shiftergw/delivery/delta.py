"""Send only the bytes of an image that its system does not have in another image.

`DeltaSource` names an installed image and the ranges that it shares with the file to be installed.
The system copies these ranges; the rest is sent. Nothing of a `DeltaSource` is trusted: a file that
was put together is installed only if the system computes the right digest of all of it. Whatever
else happens, the whole file is sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.errors import printable

if TYPE_CHECKING:
    from shiftergw.ports import DeltaSource

MOST_RANGES = 100_000
"""The limit on the ranges of one image: each takes a request, and some bytes of memory."""

IDLE_ATTEMPTS = 2
"""Attempts without progress after which a plan is given up; a delivery has more than these."""

ALIGNMENT = 4096
"""File systems clone blocks of this size, in bytes, if they are aligned in both files."""

_log = Logger()


class DeltaUnusable(Exception):
    """The ranges of a `DeltaSource` cannot be used; the text is the reason, in a few words."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes at `offset` of a file.

    They are also at `source_offset` of an installed image; None if they must be sent.
    """

    offset: int
    length: int
    source_offset: int | None = None

    @property
    def end(self) -> int:
        """Return the offset of the first byte behind the segment."""
        return self.offset + self.length

    @property
    def source_end(self) -> int | None:
        """Return the offset of the first byte behind the segment in the installed image."""
        return None if self.source_offset is None else self.source_offset + self.length

    def between(self, start: int, end: int) -> Segment:
        """Return the part of the segment from `start` to `end`, both within the segment."""
        source_offset = self.source_offset
        if source_offset is not None:
            source_offset += start - self.offset
        return Segment(start, end - start, source_offset)


def segments_of(delta: DeltaSource, size: int) -> tuple[Segment, ...]:
    """Return the segments of a file of `size` bytes, in order and without gaps.

    Adjacent ranges become one segment. Raises `DeltaUnusable` for ranges that overlap, that are not
    in order, or that are outside one of the files.
    """
    if len(delta.ranges) > MOST_RANGES:
        raise DeltaUnusable(f"it has {len(delta.ranges)} ranges; {MOST_RANGES} are allowed")
    segments: list[Segment] = []
    position = 0
    for shared_range in delta.ranges:
        segment = Segment(shared_range.offset, shared_range.length, shared_range.source_offset)
        if segment.length <= 0 or segment.offset < position or shared_range.source_offset < 0:
            raise DeltaUnusable("its ranges overlap, or are empty or not in order")
        if segment.end > size or shared_range.source_offset + segment.length > delta.size:
            raise DeltaUnusable("its ranges are longer than the files")
        if segment.offset > position:
            segments.append(Segment(position, segment.offset - position))
        previous = segments[-1] if segments else None
        if previous is not None and previous.source_end == segment.source_offset:
            segments[-1] = Segment(
                previous.offset, previous.length + segment.length, previous.source_offset
            )
        else:
            segments.append(segment)
        position = segment.end
    if position < size:
        segments.append(Segment(position, size - position))
    return tuple(segments)


def segments_from(segments: Sequence[Segment], start: int) -> tuple[Segment, ...]:
    """Return the part of the segments from byte `start` on."""
    return tuple(
        segment.between(max(segment.offset, start), segment.end)
        for segment in segments
        if segment.end > start
    )


def cloneable_segments(
    segments: Sequence[Segment], alignment: int = ALIGNMENT
) -> tuple[Segment, ...]:
    """Return the segments, split so that a file system can clone as much as possible.

    The unaligned head and tail of a shared segment, less than a block each, become segments that
    must be sent. Segments whose offsets differ modulo the alignment stay as they are.
    """
    result: list[Segment] = []
    for segment in segments:
        if segment.source_offset is None or (segment.offset - segment.source_offset) % alignment:
            result.append(segment)
            continue
        first = min(segment.offset + -segment.offset % alignment, segment.end)
        last = max(segment.end - segment.end % alignment, first)
        parts = (
            Segment(segment.offset, first - segment.offset),
            segment.between(first, last),
            Segment(last, segment.end - last),
        )
        result += [part for part in parts if part.length]
    return tuple(result)


def copy_counter(segments: Sequence[Segment]) -> Callable[[int], int]:
    """Return a function that counts the shared bytes before a byte of the file."""
    offsets = [segment.offset for segment in segments]
    lengths = (0 if segment.source_offset is None else segment.length for segment in segments)
    totals = list(accumulate(lengths, initial=0))

    def count(end: int) -> int:
        index = bisect_left(offsets, end) - 1
        if index < 0:
            return 0
        segment = segments[index]
        missing_bytes = max(0, segment.end - end) if segment.source_offset is not None else 0
        return totals[index + 1] - missing_bytes

    return count


@dataclass(frozen=True, slots=True)
class DeltaPlan:
    """How a file is put together on a system; shared segments are copied from the file at `path`.

    That file must have `source_size` bytes.
    """

    path: bytes
    source_size: int
    segments: tuple[Segment, ...]


class Delta:
    """The plan of one delivery; the first doubt ends its use.

    An interrupted delivery keeps the plan until `IDLE_ATTEMPTS` attempts in a row get no further
    than the ones before: perhaps the server breaks because of it.
    """

    def __init__(
        self, name: str, source: DeltaSource | None, path_of: Callable[[str], bytes], size: int
    ) -> None:
        """Plan the file `name` of `size` bytes; `path_of` returns the path of an image."""
        self._name = name
        self._last_start = -1
        self._idle_attempts = 0
        self.has_begun = False
        """Whether an attempt has used the plan, so that it may have left a file on the system."""
        self.plan: DeltaPlan | None = None
        if source is not None and source.ranges:
            try:
                segments = segments_of(source, size)
                self.plan = DeltaPlan(path_of(source.name), source.size, segments)
            except DeltaUnusable as error:
                self.give_up(str(error))

    def give_up(self, reason: str, *, has_begun: bool = False) -> None:
        """Use the plan no more, and log the reason.

        It is a warning if the work has begun: then the image there, or what is recorded of it, may
        be damaged.
        """
        self.plan = None
        log = _log.warn if has_begun else _log.info
        log("{name} is sent as a whole: {reason}", name=self._name, reason=printable(reason))

    def begin_attempt(self, start: int) -> None:
        """Begin an attempt at byte `start`, or give up if the last ones made no progress."""
        self._idle_attempts = self._idle_attempts + 1 if start <= self._last_start else 0
        self._last_start = start
        if self.plan is not None and self._idle_attempts >= IDLE_ATTEMPTS:
            self.give_up("the last attempts made no progress")
        self.has_begun = self.has_begun or self.plan is not None

    def log_end(self, copied_bytes: int, sent_bytes: int) -> None:
        """Log what was saved."""
        _log.info(
            "{name}: the system had {copied} bytes in another image, {sent} bytes were sent",
            name=self._name,
            copied=copied_bytes,
            sent=sent_bytes,
        )
