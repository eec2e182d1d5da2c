"""Used credentials in MongoDB: each is accepted once, by one of the gateways."""

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

FIRST, SECOND, THIRD = (bytes([n]) * 32 for n in range(3))
NamedDatabase = tuple[str, Any]


@pytest.fixture
def empty_database(mongodb: str) -> Iterator[NamedDatabase]:
    """Return the name of an empty database and pymongo's object for it."""
    with mongod.database(mongodb) as name_and_database:
        yield name_and_database


@pytest_twisted.ensureDeferred
async def test_a_credential_is_accepted_once(mongodb: str, empty_database: NamedDatabase) -> None:
    """Of many requests to several gateways with one credential, one is the first use."""
    name, _ = empty_database
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as peer:
        uses = await gather_or_cancel(any_store.use(FIRST, NOW) for any_store in [store, peer] * 5)
        assert sorted(uses) == [False] * 9 + [True]
        assert await peer.use(SECOND, NOW)
        assert not await store.use(SECOND, NOW + 1)


@pytest_twisted.ensureDeferred
async def test_gateways_on_one_database_share_used_credentials(
    mongodb: str, empty_database: NamedDatabase
) -> None:
    """The port of the store gives access to the credentials that all gateways have used."""
    name, _ = empty_database
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as peer:
        assert await store.used_credentials.use(FIRST, NOW)
        assert not await peer.used_credentials.use(FIRST, NOW)


@pytest_twisted.ensureDeferred
async def test_noted_credentials_are_used(mongodb: str, empty_database: NamedDatabase) -> None:
    """Credentials that were noted before stay used."""
    name, _ = empty_database
    async with mongo_running(mongodb, name) as store:
        assert await store.use(FIRST, NOW)
        await store.note_used([FIRST, SECOND], NOW)
        assert [await store.use(digest, NOW) for digest in (FIRST, SECOND, THIRD)] == [
            False,
            False,
            True,
        ]


@pytest_twisted.ensureDeferred
async def test_a_lost_answer_is_no_second_use(mongodb: str, empty_database: NamedDatabase) -> None:
    """A repeated call after a lost answer is still the first use; the next call is not."""
    port = urlsplit(mongodb).port
    assert port is not None
    with Wire(port, cut="insert") as wire:
        async with mongo_running(wire.uri, empty_database[0]) as store:
            assert await store.use(FIRST, NOW)
            assert not await store.use(FIRST, NOW)
    assert wire.commands.count("insert") == 3


@pytest_twisted.ensureDeferred
async def test_the_server_removes_old_credentials(
    mongodb: str, empty_database: NamedDatabase
) -> None:
    """Each document has the date of its use, and an index lets it expire."""
    name, db = empty_database
    async with mongo_running(mongodb, name) as store:
        await store.claim(request(), NOW)  # not before the indexes are made
        await store.use(FIRST, NOW)
        await store._require_open().indexes.create()
        assert await store._require_open().indexes.missing() == []
    (document,) = db[CREDENTIALS].find()
    assert document["_id"] == FIRST
    assert document["at"].replace(tzinfo=UTC) == datetime.fromtimestamp(NOW, UTC)
    index = db[CREDENTIALS].index_information()["shiftergw_used"]
    assert index["expireAfterSeconds"] == CREDENTIAL_SECONDS
    assert index["key"] == [("at", 1)]


@pytest_twisted.ensureDeferred
async def test_an_index_with_another_lifetime_does_not_count(
    mongodb: str, empty_database: NamedDatabase
) -> None:
    """The store still creates its own index."""
    name, db = empty_database
    db[CREDENTIALS].create_index("at", name="mine")
    async with mongo_running(mongodb, name) as store:
        assert "shiftergw_used" in await store._require_open().indexes.missing()


@pytest_twisted.ensureDeferred
async def test_no_credential_is_accepted_without_the_server() -> None:
    """Without the server the call raises `Unavailable`."""
    async with mongo_running("mongodb://127.0.0.1:1/", "images") as store:
        with pytest.raises(Unavailable):
            await store.use(FIRST, NOW)
        with pytest.raises(Unavailable):
            await store.note_used([FIRST], NOW)
