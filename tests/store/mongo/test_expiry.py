"""In a database that was taken over, nothing expires on schedule until an admin decides so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.plumbing.timing import pause
from shiftergw.service.housekeeping import Housekeeping, Schedule
from shiftergw.states import State
from shiftergw.store.legacy_documents import read_number
from shiftergw.store.mongo import expiry as mongo_expiry
from tests import mongod
from tests.store.original import NOW, ROUND, SYSTEMS, records
from tests.store.places import mongo_running
from tests.store.pulls import all_of, complete_pull, request

LIFETIME = 1000.0
READY = {"$in": ["READY", "SUCCESS"]}
NamedDatabase = tuple[str, Any]


@pytest.fixture
def small_database(mongodb: str) -> Iterator[NamedDatabase]:
    """Return a database of the original with a record of each kind."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many([record for _, record in records(len(ROUND))])
        yield name, db


def dates(db: Any, **members: Any) -> list[Any]:
    """Return the expirations of records in the order of their keys."""
    documents = db["images"].find({"status": READY, **members}).sort("_id", 1)
    return [record.get("expiration") for record in documents]


@pytest_twisted.ensureDeferred
async def test_expiry_is_off_until_it_is_switched_on(
    mongodb: str, small_database: NamedDatabase
) -> None:
    """With the key absent or false, only the fact of the takeover is written."""
    name, db = small_database
    before = str(db["images"].find().sort("_id", 1).to_list())
    async with mongo_running(mongodb, name) as store:
        for setting in (None, False, None):
            assert await store.expires(setting, NOW, LIFETIME) is False
    assert str(db["images"].find().sort("_id", 1).to_list()) == before
    assert db["shiftergw.state"].find().to_list() == [{"_id": "expiry", "taken_over": NOW}]


@pytest_twisted.ensureDeferred
async def test_expiry_stays_off(mongodb: str, small_database: NamedDatabase) -> None:
    """Expiry stays off even after all records of the original were removed."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        await store.expires(None, NOW, LIFETIME)
        db["images"].delete_many({})
        await complete_pull(store, request())
        assert await store.expires(None, NOW, LIFETIME) is False


@pytest_twisted.ensureDeferred
async def test_records_restored_after_the_start_count(mongodb: str) -> None:
    """A gateway may have started before the data was restored."""
    with mongod.database(mongodb) as (name, db):
        async with mongo_running(mongodb, name) as store:
            await complete_pull(store, request())
            assert await store.expires(None, NOW, LIFETIME) is True
            assert db["shiftergw.state"].find_one() is None
            db["images"].insert_many([record for _, record in records(3)])
            assert await store.expires(None, NOW, LIFETIME) is False


@pytest.mark.parametrize("batch", [3, 200])
@pytest_twisted.ensureDeferred
async def test_missing_and_past_dates_count_from_the_switch(
    mongodb: str, small_database: NamedDatabase, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Missing and past dates are replaced once, and all other members stay.

    An expiration that is not a date stays, too: it never comes.
    """
    monkeypatch.setattr(mongo_expiry, "BATCH", batch)
    name, db = small_database
    before = list(db["images"].find().sort("_id", 1))
    async with mongo_running(mongodb, name) as store:
        assert await store.expires(True, NOW, LIFETIME) is True
        after = list(db["images"].find().sort("_id", 1))
        for old, new in zip(before, after, strict=True):
            date, number = old.get("expiration"), read_number(old.get("expiration"))
            is_ready = old.get("status") in ("READY", "SUCCESS", ["READY"])
            if is_ready and (date is None or (number is not None and number < NOW)):
                old["expiration"] = NOW + LIFETIME
            assert str(sorted(new.items())) == str(sorted(old.items()))
        assert await store.list_expired(NOW + 1) == []
        assert await store.expires(True, NOW + LIFETIME + 5, LIFETIME) is True
        due = {record.expiration for record in await store.list_expired(NOW + LIFETIME)}
        assert NOW + LIFETIME in due
        assert await store.expires(None, NOW + LIFETIME, LIFETIME) is False
        assert await store.expires(True, NOW + LIFETIME + 9, LIFETIME) is True
        assert {record.expiration for record in await store.list_expired(NOW + LIFETIME)} == due


@pytest_twisted.ensureDeferred
async def test_several_gateways_may_switch_it_on(
    mongodb: str, small_database: NamedDatabase
) -> None:
    """Gateways agree on the time, and complete the work of one that died."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as peer:
        stores = (store, peer, store)
        answers = await all_of(any_store.expires(True, NOW, LIFETIME) for any_store in stores)
        assert answers == [True, True, True]
        dates_before = dates(db)
        db["shiftergw.state"].update_one({}, {"$unset": {"begun": ""}})
        db["images"].update_one({"expiration": NOW + LIFETIME}, {"$unset": {"expiration": ""}})
        assert await peer.expires(True, NOW + 0.5, LIFETIME) is True
    assert [date for date in dates(db) if date not in dates_before] == [NOW + 0.5 + LIFETIME]


@pytest_twisted.ensureDeferred
async def test_no_timeout_removes_past_dates(mongodb: str, small_database: NamedDatabase) -> None:
    """Without `ImageExpirationTimeout` no image is due afterwards."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        assert await store.expires(True, NOW, None) is True
        assert await store.list_expired(NOW) == []
    assert len([date for date in dates(db) if isinstance(date, float)]) > 30


@pytest.mark.parametrize("setting", [None, True])
@pytest_twisted.ensureDeferred
async def test_housekeeping_changes_no_foreign_document(
    mongodb: str, small_database: NamedDatabase, setting: bool | None
) -> None:
    """The log says that expiry is off.

    If it is switched on, only records that ended long ago are removed.
    """
    name, db = small_database
    before = list(db["images"].find().sort("_id", 1))
    clock = Clock()
    clock.advance(NOW)
    async with mongo_running(mongodb, name) as store:
        keeper = Housekeeping(store, lambda: None, clock, Schedule(setting, LIFETIME, SYSTEMS))
        with capturedLogs() as log:
            keeper.startService()
            while not clock.getDelayedCalls():
                await pause(0.01, reactor)
        await keeper.stopService()
    after = list(db["images"].find().sort("_id", 1))
    texts = [formatEvent(event) for event in log if event["log_namespace"].endswith("keeping")]
    if setting is None:
        assert str(after) == str(before)
        assert ["set ScheduledExpiry to true or false" in text for text in texts] == [True]
    else:
        missing_keys = {str(record["_id"]) for record in before} - {
            str(record["_id"]) for record in after
        }
        final_keys = {
            str(record["_id"])
            for record in before
            if record.get("status") in ("FAILURE", "EXPIRED")
        }
        assert missing_keys == final_keys
        assert "images expire by themselves" in texts
    assert not [
        record for record in after if record.get("status") == State.EXPIRING and "claim" in record
    ]
