"""Look-up rows in MongoDB: their order and their number."""

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
def empty_database(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return the name of an empty database and pymongo's object for it."""
    with mongod.database(mongodb) as name_and_database:
        yield name_and_database


async def record(store: MongoStore, *numbers: int, system: str = "alpha") -> None:
    """Record one row for each number, each a second after the last."""
    for n in numbers:
        await store.record_lookup({"system": system, "n": n, "time": NOW + n})


async def row_numbers(store: MongoStore, system: str = "alpha") -> list[int]:
    """Return the numbers of the rows."""
    return [row["n"] for row in await store.lookups(system, 1000)]


@pytest_twisted.ensureDeferred
async def test_rows_of_a_gateway_keep_their_order(
    mongodb: str, empty_database: tuple[str, Any]
) -> None:
    """Several gateways may write at the same time."""
    name, _ = empty_database
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as peer:
        await record(store, *range(200))
        await record(peer, *range(200, 400))
        await record(store, *range(400, 500))
        first, second = await row_numbers(store), await row_numbers(peer)
    assert set(first) | set(second) == set(range(500))
    assert [n for n in second if n < 200 or n >= 400] == [*range(200), *range(400, 500)]
    assert [n for n in second if 200 <= n < 400] == list(range(200, 400))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_number(
    mongodb: str, empty_database: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit the oldest rows of all systems are removed."""
    monkeypatch.setattr(mongo_lookups, "TIDY_SECONDS", 0)
    async with mongo_running(mongodb, empty_database[0], max_rows=10) as store:
        await record(store, *range(7), system="beta")
        await row_numbers(store)
        await record(store, *range(7, 15))
        assert await row_numbers(store) == list(range(7, 15))
        assert await row_numbers(store, "beta") == [5, 6]
        await record(store, *range(15, 40))
        assert await row_numbers(store) == list(range(30, 40))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_age(
    mongodb: str, empty_database: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows a year older than the newest are removed."""
    monkeypatch.setattr(mongo_lookups, "TIDY_SECONDS", 0)
    year = int(lookups.MAX_AGE_SECONDS)
    async with mongo_running(mongodb, empty_database[0]) as store:
        await record(store, 0, 5, 9)
        await record(store, year + 4)
        assert await row_numbers(store) == [5, 9, year + 4]


@pytest_twisted.ensureDeferred
async def test_old_rows_are_removed_once_an_hour(
    mongodb: str, empty_database: tuple[str, Any]
) -> None:
    """In between, rows are only added."""
    async with mongo_running(mongodb, empty_database[0], max_rows=5) as store:
        await record(store, *range(9))
        assert await row_numbers(store) == list(range(4, 9))
        await record(store, *range(9, 20))
        assert await row_numbers(store) == list(range(4, 20))


@pytest_twisted.ensureDeferred
async def test_a_stop_loses_no_rows(mongodb: str, empty_database: tuple[str, Any]) -> None:
    """Rows in the buffer are written before the store closes."""
    name, db = empty_database
    async with mongo_running(mongodb, name) as store:
        await record(store, 1, 2)
    assert [row["n"] for row in db["metrics"].find().sort("_id")] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_rows_of_the_original_come_first(
    mongodb: str, empty_database: tuple[str, Any]
) -> None:
    """Rows are returned as the original wrote them."""
    name, db = empty_database
    row = {"user": "me", "uid": 7, "system": "alpha", "type": "docker", "id": "a", "time": NOW}
    db["metrics"].insert_one({**row, "_id": ObjectId("1" * 24)})
    async with mongo_running(mongodb, name) as store:
        await record(store, 1)
        assert list(await store.lookups("alpha", 5)) == [
            row,
            {"system": "alpha", "n": 1, "time": NOW + 1},
        ]
        assert await row_numbers(store, "beta") == []
