"""Rows of look-up metrics in MongoDB: in order, and not too many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from bson.objectid import ObjectId

from shiftergw.store import lookups
from shiftergw.store.mongo import lookups as mongo_lookups
from shiftergw.store.mongo.store import MongoStore
from tests import mongod
from tests.store.places import mongo_running
from tests.store.pulls import NOW


@pytest.fixture
def named(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return a database of the test's own."""
    with mongod.database(mongodb) as there:
        yield there


async def record(store: MongoStore, *numbers: int, system: str = "alpha") -> None:
    """Record one row for each number, each a second after the last."""
    for n in numbers:
        await store.record_lookup({"system": system, "n": n, "time": NOW + n})


async def kept(store: MongoStore, system: str = "alpha") -> list[int]:
    """Return the numbers of the rows."""
    return [row["n"] for row in await store.lookups(system, 1000)]


@pytest_twisted.ensureDeferred
async def test_rows_of_several_gateways(mongodb: str, named: tuple[str, Any]) -> None:
    """Each gateway's rows stand in the order of their coming, however many came at once."""
    name, _ = named
    async with mongo_running(mongodb, name) as one, mongo_running(mongodb, name) as two:
        await record(one, *range(200))
        await record(two, *range(200, 400))
        await record(one, *range(400, 500))
        first, second = await kept(one), await kept(two)
    assert set(first) | set(second) == set(range(500))
    assert [n for n in second if n < 200 or n >= 400] == [*range(200), *range(400, 500)]
    assert [n for n in second if 200 <= n < 400] == list(range(200, 400))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_number(
    mongodb: str, named: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the number kept, old rows of any system go, when it is looked at."""
    monkeypatch.setattr(mongo_lookups, "TIDY_SECONDS", 0)
    async with mongo_running(mongodb, named[0], max_rows=10) as store:
        await record(store, *range(7), system="beta")
        await kept(store)
        await record(store, *range(7, 15))
        assert await kept(store) == list(range(7, 15))
        assert await kept(store, "beta") == [5, 6]
        await record(store, *range(15, 40))
        assert await kept(store) == list(range(30, 40))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_age(
    mongodb: str, named: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is a year older than the newest goes, the others stay."""
    monkeypatch.setattr(mongo_lookups, "TIDY_SECONDS", 0)
    year = int(lookups.KEPT_SECONDS)
    async with mongo_running(mongodb, named[0]) as store:
        await record(store, 0, 5, 9)
        await record(store, year + 4)
        assert await kept(store) == [5, 9, year + 4]


@pytest_twisted.ensureDeferred
async def test_it_is_not_tidied_all_the_time(mongodb: str, named: tuple[str, Any]) -> None:
    """Rows are removed once an hour; in between they are only added."""
    async with mongo_running(mongodb, named[0], max_rows=5) as store:
        await record(store, *range(9))
        assert await kept(store) == list(range(4, 9))
        await record(store, *range(9, 20))
        assert await kept(store) == list(range(4, 20))


@pytest_twisted.ensureDeferred
async def test_a_stop_loses_none(mongodb: str, named: tuple[str, Any]) -> None:
    """Rows that wait when the store stops are written before it closes."""
    name, db = named
    async with mongo_running(mongodb, name) as store:
        await record(store, 1, 2)
    assert [row["n"] for row in db["metrics"].find().sort("_id")] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_rows_of_the_original(mongodb: str, named: tuple[str, Any]) -> None:
    """What it wrote comes first, as it wrote it."""
    name, db = named
    row = {"user": "me", "uid": 7, "system": "alpha", "type": "docker", "id": "a", "time": NOW}
    db["metrics"].insert_one({**row, "_id": ObjectId("1" * 24)})
    async with mongo_running(mongodb, name) as store:
        await record(store, 1)
        assert list(await store.lookups("alpha", 5)) == [
            row,
            {"system": "alpha", "n": 1, "time": NOW + 1},
        ]
        assert await kept(store, "beta") == []
