"""In a database that was taken over nothing expires by itself before somebody says so."""

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

KEPT = 1000.0
READY = {"$in": ["READY", "SUCCESS"]}
Named = tuple[str, Any]


@pytest.fixture
def hundred(mongodb: str) -> Iterator[Named]:
    """Return a database of the original with a record of each kind."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many([one for _, one in records(len(ROUND))])
        yield name, db


def dates(db: Any, **wanted: Any) -> list[Any]:
    """Return the expirations of records, in the order of their keys."""
    found = db["images"].find({"status": READY, **wanted}).sort("_id", 1)
    return [one.get("expiration") for one in found]


@pytest_twisted.ensureDeferred
async def test_off_until_it_is_switched_on(mongodb: str, hundred: Named) -> None:
    """Whether the key is absent or false; nothing is written then but that fact."""
    name, db = hundred
    before = str(db["images"].find().sort("_id", 1).to_list())
    async with mongo_running(mongodb, name) as store:
        for wanted in (None, False, None):
            assert await store.expires(wanted, NOW, KEPT) is False
    assert str(db["images"].find().sort("_id", 1).to_list()) == before
    assert db["shiftergw.state"].find().to_list() == [{"_id": "expiry", "taken_over": NOW}]


@pytest_twisted.ensureDeferred
async def test_it_stays_off(mongodb: str, hundred: Named) -> None:
    """Also once all records of the original have been pulled again, or are gone."""
    name, db = hundred
    async with mongo_running(mongodb, name) as store:
        await store.expires(None, NOW, KEPT)
        db["images"].delete_many({})
        await complete_pull(store, request())
        assert await store.expires(None, NOW, KEPT) is False


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_filled_later(mongodb: str) -> None:
    """It is found out as well: a gateway may have started before the data was restored."""
    with mongod.database(mongodb) as (name, db):
        async with mongo_running(mongodb, name) as store:
            await complete_pull(store, request())
            assert await store.expires(None, NOW, KEPT) is True
            assert db["shiftergw.state"].find_one() is None
            db["images"].insert_many([one for _, one in records(3)])
            assert await store.expires(None, NOW, KEPT) is False


@pytest.mark.parametrize("batch", [3, 200])
@pytest_twisted.ensureDeferred
async def test_switched_on(
    mongodb: str, hundred: Named, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Dates that are absent or have passed count from then, once; the others, and all else, stay.

    What is no date stays too: it never comes.
    """
    monkeypatch.setattr(mongo_expiry, "BATCH", batch)
    name, db = hundred
    before = list(db["images"].find().sort("_id", 1))
    async with mongo_running(mongodb, name) as store:
        assert await store.expires(True, NOW, KEPT) is True
        after = list(db["images"].find().sort("_id", 1))
        for old, new in zip(before, after, strict=True):
            date, number = old.get("expiration"), read_number(old.get("expiration"))
            is_ready = old.get("status") in ("READY", "SUCCESS", ["READY"])
            if is_ready and (date is None or (number is not None and number < NOW)):
                old["expiration"] = NOW + KEPT
            assert str(sorted(new.items())) == str(sorted(old.items()))
        assert await store.list_expired(NOW + 1) == []
        assert await store.expires(True, NOW + KEPT + 5, KEPT) is True
        due = {one.expiration for one in await store.list_expired(NOW + KEPT)}
        assert NOW + KEPT in due
        assert await store.expires(None, NOW + KEPT, KEPT) is False
        assert await store.expires(True, NOW + KEPT + 9, KEPT) is True
        assert {one.expiration for one in await store.list_expired(NOW + KEPT)} == due


@pytest_twisted.ensureDeferred
async def test_two_gateways_and_one_that_died(mongodb: str, hundred: Named) -> None:
    """Several that switch it on at once agree; one that died half-way is followed up."""
    name, db = hundred
    async with mongo_running(mongodb, name) as one, mongo_running(mongodb, name) as two:
        assert await all_of(store.expires(True, NOW, KEPT) for store in (one, two, one)) == [
            True, True, True,
        ]  # fmt: skip
        found = dates(db)
        db["shiftergw.state"].update_one({}, {"$unset": {"begun": ""}})
        db["images"].update_one({"expiration": NOW + KEPT}, {"$unset": {"expiration": ""}})
        assert await two.expires(True, NOW + 0.5, KEPT) is True
    assert [date for date in dates(db) if date not in found] == [NOW + 0.5 + KEPT]


@pytest_twisted.ensureDeferred
async def test_no_limit_on_age(mongodb: str, hundred: Named) -> None:
    """Without `ImageExpirationTimeout` dates that have passed go, and nothing is due."""
    name, db = hundred
    async with mongo_running(mongodb, name) as store:
        assert await store.expires(True, NOW, None) is True
        assert await store.list_expired(NOW) == []
    assert len([date for date in dates(db) if isinstance(date, float)]) > 30


@pytest.mark.parametrize("wanted", [None, True])
@pytest_twisted.ensureDeferred
async def test_housekeeping(mongodb: str, hundred: Named, wanted: bool | None) -> None:
    """A round on a database taken over leaves every document as it was, and the log says so.

    Where it is switched on, only what ended long ago is forgotten.
    """
    name, db = hundred
    before = list(db["images"].find().sort("_id", 1))
    clock = Clock()
    clock.advance(NOW)
    async with mongo_running(mongodb, name) as store:
        keeper = Housekeeping(store, lambda: None, clock, Schedule(wanted, KEPT, SYSTEMS))
        with capturedLogs() as logged:
            keeper.startService()
            while not clock.getDelayedCalls():
                await pause(0.01, reactor)
        await keeper.stopService()
    after = list(db["images"].find().sort("_id", 1))
    told = [formatEvent(event) for event in logged if event["log_namespace"].endswith("keeping")]
    if wanted is None:
        assert str(after) == str(before)
        assert ["set ScheduledExpiry to true or false" in text for text in told] == [True]
    else:
        gone = {str(one["_id"]) for one in before} - {str(one["_id"]) for one in after}
        ended = {str(one["_id"]) for one in before if one.get("status") in ("FAILURE", "EXPIRED")}
        assert gone == ended
        assert "images expire by themselves" in told
    assert not [one for one in after if one.get("status") == State.EXPIRING and "claim" in one]
