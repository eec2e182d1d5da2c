"""The store's promises about the ranges of delivered files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest_twisted

from shiftergw.model.packed_data import SHORTEST_RANGE, PackedData
from shiftergw.model.records import Expired, Ready
from shiftergw.ports import DeltaBase, ImageStore
from tests.store.places import Place
from tests.store.pulls import LIMIT, NOW, begin_pull, request, request_removal

BASE_DATA, OTHER_DATA, TOP_DATA = "a" * 64, "b" * 64, "c" * 64
"""Digests of the data of packs."""

SMALL = SHORTEST_RANGE
IDS = [f"{number:064x}" for number in range(1, 9)]
FILES = [f"{number:064x}" for number in range(101, 109)]
RECENT_TIME = NOW + 1000


def packed_data(**sizes: int) -> PackedData:
    """Return ranges of packs, whose names are those of the constants, of these bytes each."""
    names = {"base": BASE_DATA, "other": OTHER_DATA, "top": TOP_DATA}
    return PackedData.collect((names[name], [(0, 96, size)]) for name, size in sizes.items())


async def deliver(
    store: ImageStore, number: int, data: PackedData | None, system: str = "alpha", **facts: object
) -> None:
    """Record the image of a number as READY, with the ranges of its file if it has any."""
    record = await begin_pull(store, request(f"app:{number}", system=system))
    if data is not None:
        await store.save_ranges(FILES[number], data, NOW)
    changes = {"sha256": FILES[number], "size": 5000 + number, "modified": 77, **facts}
    await store.finish(record.key, 1, Ready(IDS[number], changes), NOW)


async def bases(
    store: ImageStore, systems: Sequence[str] = ("alpha",), limit: int = 9, **sizes: int
) -> list[int]:
    """Return the numbers of the images that have data in common with a file of these packs."""
    matches = await find(store, packed_data(**sizes).sizes(), systems, limit)
    return [IDS.index(base.image_id) for base in matches]


async def find(
    store: ImageStore, sizes: Mapping[str, int], systems: Sequence[str], limit: int
) -> Sequence[DeltaBase]:
    """Return the images that have data in common, without the last of `IDS`."""
    return await store.find_bases(systems, sizes, IDS[-1], limit)


class RangesContract:
    """`save_ranges`, `find_bases` and `forget_ranges`."""

    @pytest_twisted.ensureDeferred
    async def test_an_image_with_the_same_data_is_found(self, place: Place) -> None:
        """It comes with the facts of its file and with all its ranges."""
        data = packed_data(base=9 * SMALL, other=2 * SMALL)
        await deliver(place.store, 0, data)
        (base,) = await find(place.store, {BASE_DATA: 1}, ["alpha"], 9)
        assert base == DeltaBase(IDS[0], FILES[0], 5000, 77, data)
        assert await find(place.store, {TOP_DATA: 1}, ["alpha"], 9) == []
        assert await find(place.store, {}, ["alpha"], 9) == []

    @pytest_twisted.ensureDeferred
    async def test_the_image_with_most_of_the_data_comes_first(self, place: Place) -> None:
        """Bytes count only as far as the new file needs them; at most `limit` images come."""
        await deliver(place.store, 0, packed_data(base=2 * SMALL))
        await deliver(place.store, 1, packed_data(base=9 * SMALL, top=SMALL))
        await deliver(place.store, 2, packed_data(base=2 * SMALL, other=90 * SMALL))
        assert await bases(place.store, base=9 * SMALL) == [1, 0, 2]
        assert await bases(place.store, base=2 * SMALL, other=50 * SMALL) == [2, 0, 1]
        assert await bases(place.store, limit=1, base=2 * SMALL, top=SMALL) == [1]

    @pytest_twisted.ensureDeferred
    async def test_only_files_on_the_system_are_bases(self, place: Place) -> None:
        """Other systems, images that are about to go or to come, and the image itself are none."""
        store = place.store
        data = packed_data(base=SMALL)
        for number, system in ((0, "alpha"), (1, "beta"), (7, "alpha")):
            await deliver(store, number, data, system)
        await deliver(store, 2, None)
        await store.save_ranges(FILES[3], data, NOW)
        await begin_pull(store, request("app:3"))
        assert await bases(store, base=SMALL) == [0]
        assert await bases(store, ["alpha", "beta"], base=SMALL) == [0, 1]
        assert await bases(store, [], base=SMALL) == []
        (record,) = await store.find_id(["alpha"], IDS[0])
        await store.expire(record.key)
        assert await bases(store, base=SMALL) == []

    @pytest_twisted.ensureDeferred
    async def test_one_file_serves_several_systems(self, place: Place) -> None:
        """Systems with the same file share its ranges; an image with two records comes once."""
        store = place.store
        data = packed_data(base=SMALL)
        await deliver(store, 0, data)
        await deliver(store, 0, data, "beta")
        assert await bases(store, ["alpha", "beta"], base=SMALL) == [0]
        assert await bases(store, ["beta"], base=SMALL) == [0]

    @pytest_twisted.ensureDeferred
    async def test_ranges_are_replaced(self, place: Place) -> None:
        """The ranges that were saved last count."""
        store = place.store
        await deliver(store, 0, packed_data(base=SMALL, other=SMALL))
        await store.save_ranges(FILES[0], packed_data(top=SMALL, base=2 * SMALL), NOW)
        assert await bases(store, other=SMALL) == []
        (base,) = await find(store, {BASE_DATA: 1}, ["alpha"], 9)
        assert base.data == packed_data(top=SMALL, base=2 * SMALL)

    @pytest_twisted.ensureDeferred
    async def test_records_without_a_size_are_no_bases(self, place: Place) -> None:
        """What a record does not say of its file cannot be checked."""
        await deliver(place.store, 0, packed_data(base=SMALL), size=None)
        await deliver(place.store, 1, packed_data(base=SMALL), modified=None)
        assert await bases(place.store, base=SMALL) == [1]

    @pytest_twisted.ensureDeferred
    async def test_ranges_stay_while_an_image_has_the_file(self, place: Place) -> None:
        """Ranges of a removed file, or of a delivery that has ended in a crash, are forgotten."""
        store = place.store
        data = packed_data(base=SMALL)
        await deliver(store, 0, data)
        removal_record = await request_removal(store, request("app:5"), IDS[1])
        await store.save_ranges(FILES[2], data, NOW)  # no image ever has this file
        await store.save_ranges(FILES[3], data, RECENT_TIME)  # one that is being delivered
        assert await store.forget_ranges(NOW) == 0
        assert await store.forget_ranges(NOW + 1) == 1
        assert await store.forget_ranges(NOW + 1) == 0
        assert await bases(store, base=SMALL) == [0]
        (record,) = await store.find_id(["alpha"], IDS[0])
        await store.expire(record.key)
        assert await store.forget_ranges(NOW + 1) == 0  # it may become READY again
        for key in (record.key, removal_record.key):
            begun_record = await store.begin(key, "n", NOW + 5, LIMIT)
            assert begun_record is not None
            await store.finish(key, begun_record.attempt, Expired(), NOW + 5)
        assert await store.forget_ranges(NOW + 1) == 1
        assert await store.forget_ranges(RECENT_TIME + 1) == 1
