"""The search for a base: which ranges are worth a copy, and which bases are avoided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import DeliveryFailed, RetryLater
from shiftergw.job import delta
from shiftergw.job.delta import (
    AVOID_SECONDS,
    LEAST_BYTES,
    RANGE_COST,
    SEARCH_SECONDS,
    Deltas,
    worthwhile_ranges,
)
from shiftergw.job.targets import Target
from shiftergw.model.build_options import SquashOptions
from shiftergw.model.images import BuiltImage, ContentReport, Platform
from shiftergw.model.packed_data import DataRange, PackedData
from shiftergw.ports import DeltaBase, DeltaSource, InstalledFile, SharedRange

DATA = "a" * 64
FILE = PackedData({DATA: (DataRange(0, 96, 9 * LEAST_BYTES),)})
"""The ranges of the file that is to be delivered."""


def base(number: int, *ranges: DataRange) -> DeltaBase:
    """Return a base; without ranges it has less of `FILE` the higher its number is."""
    size = (9 - number) * LEAST_BYTES
    data = PackedData({DATA: ranges or (DataRange(0, 96, size),)})
    return DeltaBase(f"{number:064x}", f"{number:064x}", 10 * LEAST_BYTES, 7, data)


class Search:
    """Searches on a system whose files the test describes, among bases that it names."""

    def __init__(self, *bases: DeltaBase) -> None:
        """Start with files that are as they were delivered."""
        self.clock = Clock()
        self.looks: list[int] = []
        """The numbers of the bases whose files were looked at."""
        self.look: Callable[[], Any] | None = None
        """What a look at a file does instead."""
        self.bases = bases
        store: Any = self
        directory: Any = self
        self.deltas = Deltas(store, self.clock)
        self.target = Target("images", directory, Platform(), SquashOptions(), ("alpha",))

    async def find_bases(self, *_: object) -> tuple[DeltaBase, ...]:
        """See `RangeStore`."""
        return self.bases

    async def exists(self, name: str) -> InstalledFile:
        """See `ImageDirectory`."""
        self.looks.append(int(name.removesuffix(".squashfs"), 16))
        if self.look is not None:
            await self.look()
        return InstalledFile(name, 10 * LEAST_BYTES, 7)

    def begin(self) -> Deferred[DeltaSource | None]:
        """Begin a search for the base of `FILE`."""
        file = BuiltImage(Path("file"), 1, "c" * 64, ContentReport(), data=FILE)
        search = Deferred.fromCoroutine(self.deltas.find(self.target, "b" * 64, file))
        self.clock.advance(0)
        return search

    async def base_number(self) -> int | None:
        """Search; return the number of the base."""
        source = await self.begin()
        return None if source is None else int(source.name.removesuffix(".squashfs"), 16)


def test_ranges_that_cost_more_than_they_save_are_sent() -> None:
    """Short ranges are left out; those that are adjacent in both files count as one."""
    ranges = (
        SharedRange(0, 50, RANGE_COST // 2),
        SharedRange(RANGE_COST // 2, 50 + RANGE_COST // 2, RANGE_COST),
        SharedRange(5 * RANGE_COST, 9 * RANGE_COST, RANGE_COST),
        SharedRange(7 * RANGE_COST, 0, RANGE_COST + 1),
    )
    assert worthwhile_ranges(ranges) == (
        SharedRange(0, 50, RANGE_COST + RANGE_COST // 2),
        SharedRange(7 * RANGE_COST, 0, RANGE_COST + 1),
    )
    assert worthwhile_ranges(()) == ()


@pytest_twisted.ensureDeferred
async def test_a_base_must_save_more_than_its_ranges_cost() -> None:
    """Many ranges just above their cost save little, and a base with fewer ranges is better."""
    length, count = RANGE_COST + 4096, 130
    pieces = [DataRange(2 * n * length, 96 + n * length, length) for n in range(count)]
    assert count * length > LEAST_BYTES
    assert await Search(base(1, *pieces)).base_number() is None
    few = DataRange(0, 96, 2 * LEAST_BYTES)
    assert await Search(base(1, *pieces), base(2, few)).base_number() == 2


AWAY = RetryLater(0, "the system", DeliveryFailed("The system does not answer."))


async def refuse() -> None:
    """Fail as a system that does not answer."""
    raise AWAY


async def hang() -> None:
    """Return never."""
    await Deferred[None]()


@pytest.mark.parametrize("look", [refuse, hang])
@pytest_twisted.ensureDeferred
async def test_a_base_that_cannot_be_looked_at_is_avoided(look: Callable[[], Any]) -> None:
    """For some hours the next one is the base, and the file is not looked at."""
    search = Search(base(1), base(2))
    search.look = look
    first_search = search.begin()
    search.clock.advance(SEARCH_SECONDS)
    assert await first_search is None
    search.look = None
    assert [await search.base_number() for _ in range(2)] == [2, 2]
    assert search.looks == [1, 2, 2]
    search.clock.advance(AVOID_SECONDS)
    assert await search.base_number() == 1


@pytest_twisted.ensureDeferred
async def test_few_bases_are_avoided_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the first one is tried again; another system's file is another base."""
    monkeypatch.setattr(delta, "MOST_AVOIDED", 2)
    search = Search(base(1), base(2), base(3))
    names = [f"{number:064x}.squashfs" for number in (1, 2, 3)]
    search.deltas.avoid(replace(search.target, name="others"), names[0])
    assert await search.base_number() == 1
    for name, number in zip(names, (2, 3, 1), strict=True):
        search.deltas.avoid(search.target, name)
        assert await search.base_number() == number
