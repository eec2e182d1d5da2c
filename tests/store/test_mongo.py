"""The MongoDB store keeps the contract, and the original's database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.store.mongo import MongoStore
from tests import mongod
from tests.store.contract import StoreContract
from tests.store.places import Place, mongo_place


@pytest.fixture
def named(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return the name of a database, and pymongo's way to it."""
    with mongod.database(mongodb) as there:
        yield there


@pytest.fixture
def place(mongodb: str, named: tuple[str, Any]) -> Iterator[Place]:
    """Return a running store."""
    name, db = named
    store = MongoStore(reactor, mongodb, name)
    store.startService()
    yield mongo_place(store, mongodb, db)
    pytest_twisted.blockon(store.stopService())


class TestMongoStore(StoreContract):
    """The contract, on MongoDB."""
