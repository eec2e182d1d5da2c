"""Credentials that were used, in MongoDB: each once, whoever asks and however often it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted

from shiftergw.errors import Unavailable
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.ports import CREDENTIAL_SECONDS
from shiftergw.store.mongo.queries import CREDENTIALS
from tests import mongod
from tests.store.places import mongo_running
from tests.store.pulls import NOW, request
from tests.store.wire import Wire

ONE, TWO, THREE = (bytes([n]) * 32 for n in range(3))
Named = tuple[str, Any]


@pytest.fixture
def named(mongodb: str) -> Iterator[Named]:
    """Return the name of a database of the test's own, and pymongo's way to it."""
    with mongod.database(mongodb) as there:
        yield there


@pytest_twisted.ensureDeferred
async def test_each_counts_once(mongodb: str, named: Named) -> None:
    """Of several gateways and many requests with one credential, one is the first."""
    name, _ = named
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as other:
        uses = await gather_or_cancel(one.use(ONE, NOW) for one in [store, other] * 5)
        assert sorted(uses) == [False] * 9 + [True]
        assert await other.use(TWO, NOW)
        assert not await store.use(TWO, NOW + 1)


@pytest_twisted.ensureDeferred
async def test_gateways_on_one_database_share_used_credentials(mongodb: str, named: Named) -> None:
    """The port of the store gives access to the credentials that all gateways have used."""
    name, _ = named
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as other:
        assert await store.used_credentials.use(ONE, NOW)
        assert not await other.used_credentials.use(ONE, NOW)


@pytest_twisted.ensureDeferred
async def test_what_is_noted_later(mongodb: str, named: Named) -> None:
    """It was used, as what was noted before it still is."""
    name, _ = named
    async with mongo_running(mongodb, name) as store:
        assert await store.use(ONE, NOW)
        await store.note_used([ONE, TWO], NOW)
        assert [await store.use(one, NOW) for one in (ONE, TWO, THREE)] == [False, False, True]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks(mongodb: str, named: Named) -> None:
    """A use whose answer is lost is no second one; the next is."""
    port = urlsplit(mongodb).port
    assert port is not None
    with Wire(port, cut="insert") as wire:
        async with mongo_running(wire.uri, named[0]) as store:
            assert await store.use(ONE, NOW)
            assert not await store.use(ONE, NOW)
    assert wire.commands.count("insert") == 3


@pytest_twisted.ensureDeferred
async def test_the_server_forgets_them(mongodb: str, named: Named) -> None:
    """It is told when: each has the date of its use, and there is an index of dates that expire."""
    name, db = named
    async with mongo_running(mongodb, name) as store:
        await store.claim(request(), NOW)  # not before the indexes are made
        await store.use(ONE, NOW)
        await store._require_open().indexes.create()
        assert await store._require_open().indexes.missing() == []
    (document,) = db[CREDENTIALS].find()
    assert document["_id"] == ONE
    assert document["at"].replace(tzinfo=UTC) == datetime.fromtimestamp(NOW, UTC)
    index = db[CREDENTIALS].index_information()["shiftergw_used"]
    assert index["expireAfterSeconds"] == CREDENTIAL_SECONDS
    assert index["key"] == [("at", 1)]


@pytest_twisted.ensureDeferred
async def test_an_index_that_keeps_for_another_time(mongodb: str, named: Named) -> None:
    """Whatever index of the dates is there already, it is not taken for one that we want."""
    name, db = named
    db[CREDENTIALS].create_index("at", name="mine")
    async with mongo_running(mongodb, name) as store:
        assert "shiftergw_used" in await store._require_open().indexes.missing()


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_away() -> None:
    """Nobody can say then, and nobody does."""
    async with mongo_running("mongodb://127.0.0.1:1/", "images") as store:
        with pytest.raises(Unavailable):
            await store.use(ONE, NOW)
        with pytest.raises(Unavailable):
            await store.note_used([ONE], NOW)
