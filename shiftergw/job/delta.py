"""Find an image of a system whose file has most of the bytes of a file to be delivered.

The search is optional: after a failure, which is logged, the whole file is sent. A delivery does
not trust its result, and verifies the whole new file (`ImageDirectory`).

An image of any user may be the base, because only bytes are copied that the new file has, too, and
the user of the pull has proven access to them.

A base that its system cannot read, as on a broken disk of a parallel file system, would fail each
delivery that tries it. So a base that was of no use is avoided for hours by the process that tried
it, and a pull that may have failed with a base, in any process, uses none again (`may_use_base`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import GatewayError, TimedOut
from shiftergw.job.targets import Target
from shiftergw.model.images import BuiltImage
from shiftergw.model.packed_data import SHORTEST_RANGE, DataRange, PackedData
from shiftergw.plumbing.recent import RecentValues
from shiftergw.plumbing.timing import pause, within
from shiftergw.ports import DeltaBase, DeltaSource, ImageStore, SharedRange

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.model.records import ImageRecord

SEARCH_SECONDS = 5.0
"""Seconds that a delivery waits for the search, or for the ranges of its file to be stored."""

MOST_BASES = 4
"""The most images whose ranges are compared with those of a file."""

LEAST_BYTES = 4 << 20
"""Bytes that a delivery must save, beyond the cost of its ranges.

To put a file together takes some ten round trips more than to send it: half a second at 50 ms.
"""

RANGE_COST = 128 << 10
"""Bytes that could be sent in the time that a system needs to copy one more range.

Each range takes a request, or a run of `dd`, of some milliseconds.
"""

AVOID_SECONDS = 6 * 3600.0
"""Seconds for which a base is avoided after a search or a delivery that failed with it."""

MOST_AVOIDED = 1000
"""The most bases that are avoided at a time; beyond it, the first one may be tried again."""


class Deltas:
    """Finds the bases of deliveries, and records what later ones need to know of their files."""

    _log = Logger()

    def __init__(self, store: ImageStore, clock: IReactorTime) -> None:
        """Search in `store`, which has the ranges of delivered files."""
        self._store = store
        self._clock = clock
        self._useless_bases: RecentValues[tuple[str, str], bool] = RecentValues(
            MOST_AVOIDED, AVOID_SECONDS, clock
        )
        """The bases that were of no use, by the names of the target and of the file."""

    def avoid(self, target: Target, name: str) -> None:
        """Do not use the file `name` of an image as a base for `AVOID_SECONDS`.

        An outage of the system, which has nothing to do with the base, has the same effect: then
        whole files are sent, which is slower and always right.
        """
        self._useless_bases.set((target.name, name), True)
        self._log.info(
            "{name} in {directory} is not copied from for {hours:.0f} hours",
            name=name,
            directory=target.name,
            hours=AVOID_SECONDS / 3600,
        )

    async def find(self, target: Target, image_id: str, file: BuiltImage) -> DeltaSource | None:
        """Return what another image of the same directory shares with the file of an image.

        Returns None if there is no such image, and after any failure, which is logged.
        """
        if not file.data.ranges:
            return None
        try:
            return await within(
                SEARCH_SECONDS, self._clock, self._find(target, image_id, file.data), _too_slow
            )
        except CancelledError:
            raise
        except GatewayError as error:
            self._warn(
                "{id} is sent as a whole: the search for a base failed: {error} {detail}",
                image_id,
                error,
            )
        except Exception:  # noqa: BLE001 - without a base the whole file is sent
            self._log.failure("{id} is sent as a whole: the search for a base failed", id=image_id)
        return None

    async def _find(self, target: Target, image_id: str, data: PackedData) -> DeltaSource | None:
        bases = await self._store.find_bases(target.systems, data.sizes(), image_id, MOST_BASES)
        sources: list[tuple[int, DeltaBase, tuple[SharedRange, ...]]] = []
        for base in bases:
            if self._useless_bases.get((target.name, _file_name(base))):
                continue
            await pause(0, self._clock)  # heartbeats go on
            ranges = worthwhile_ranges(shared_ranges(data, base.data))
            saved_bytes = sum(part.length - RANGE_COST for part in ranges)
            sources.append((saved_bytes, base, ranges))
        sources.sort(key=lambda source: source[0], reverse=True)
        for saved_bytes, base, ranges in sources:
            if saved_bytes < LEAST_BYTES:
                break
            if await self._is_unchanged(target, base):
                self._log.info(
                    "{id} shares {size} bytes with {base} in {directory}",
                    id=image_id,
                    size=sum(part.length for part in ranges),
                    base=base.image_id,
                    directory=target.name,
                )
                return DeltaSource(_file_name(base), base.size, ranges)
        return None

    async def _is_unchanged(self, target: Target, base: DeltaBase) -> bool:
        """Return whether the file of a base has the size and the time of its delivery.

        A base whose file the system cannot look at in time is avoided.
        """
        name = _file_name(base)
        try:
            file = await target.directory.exists(name)
        except (CancelledError, GatewayError):
            self.avoid(target, name)
            raise
        return (
            file is not None
            and file.size == base.size
            and (file.modified == base.modified or None in {file.modified, base.modified})
        )

    async def record(self, image_id: str, file: BuiltImage) -> None:
        """Record the ranges of the delivered file of an image; a failure is logged."""
        if not file.data.ranges:
            return
        saving = self._store.save_ranges(file.sha256, file.data, self._clock.seconds())
        try:
            await within(SEARCH_SECONDS, self._clock, saving, _too_slow)
        except GatewayError as error:
            self._warn("the data of {id} is not recorded: {error} {detail}", image_id, error)

    def _warn(self, text: str, image_id: str, error: GatewayError) -> None:
        self._log.warn(text, id=image_id, error=error, detail=error.detail)


def may_use_base(record: ImageRecord) -> bool:
    """Return whether an attempt may use a base: not if an earlier one may have failed with it.

    A base on a disk that hangs makes the pull wait for its system, or the worker die. An outage
    of the system looks the same, so the whole file is sent then, too.
    """
    return not record.deaths and not record.waited_for_system


def shared_ranges(file: PackedData, base: PackedData) -> tuple[SharedRange, ...]:
    """Return the ranges of a file that another file has too, in the order of their offsets."""
    ranges = [
        shared_range
        for name, parts in file.ranges.items()
        for shared_range in _intersect(parts, base.ranges.get(name, ()))
    ]
    return tuple(sorted(ranges, key=lambda shared_range: shared_range.offset))


def worthwhile_ranges(ranges: Iterable[SharedRange]) -> tuple[SharedRange, ...]:
    """Return the ranges, which are in order, without those that save no more than they cost.

    Ranges that are adjacent in both files become one, as they do in a delivery.
    """
    segments: list[SharedRange] = []
    for part in ranges:
        last = segments[-1] if segments else None
        if (
            last is not None
            and part.offset == last.offset + last.length
            and part.source_offset == last.source_offset + last.length
        ):
            segments[-1] = SharedRange(last.offset, last.source_offset, last.length + part.length)
        else:
            segments.append(part)
    return tuple(part for part in segments if part.length > RANGE_COST)


def _intersect(
    parts: Sequence[DataRange], base_parts: Sequence[DataRange]
) -> Iterator[SharedRange]:
    """Yield what two files have of the data of one pack, without pieces that are too short."""
    index = base_index = 0
    while index < len(parts) and base_index < len(base_parts):
        part, base_part = parts[index], base_parts[base_index]
        start = max(part.offset, base_part.offset)
        end, base_end = part.offset + part.length, base_part.offset + base_part.length
        length = min(end, base_end) - start
        if length >= SHORTEST_RANGE:
            yield SharedRange(
                part.position + start - part.offset,
                base_part.position + start - base_part.offset,
                length,
            )
        if end <= base_end:
            index += 1
        else:
            base_index += 1


def _file_name(base: DeltaBase) -> str:
    return f"{base.image_id}.squashfs"


def _too_slow() -> TimedOut:
    return TimedOut(f"The database or the system took longer than {SEARCH_SECONDS:.0f} s.")
