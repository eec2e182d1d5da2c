"""Indexes of a database whose server refuses some of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import capturedLogs

from shiftergw.errors import Unavailable
from shiftergw.store.mongo.queries import INDEXES, LOOKUPS, RANGES
from tests.mongo.puppets import answering, serving
from tests.store.places import mongo_running

NOT_ALLOWED, TIME_LIMIT = 13, 50
"""Error codes of the server."""


@pytest.mark.parametrize(
    ("refused_collection", "code"),
    [(LOOKUPS, NOT_ALLOWED), (RANGES, NOT_ALLOWED), (RANGES, TIME_LIMIT)],
)
@pytest_twisted.ensureDeferred
async def test_one_refused_collection_keeps_no_index_of_others_away(
    refused_collection: str, code: int
) -> None:
    """A user of the database without rights on a new collection has all other indexes.

    Without them, used credentials would stay for ever. The log says what is missing.
    """
    created_indexes: set[str] = set()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        name, collection = next(iter(command.items()))
        if name in {"listIndexes", "createIndexes"} and collection == refused_collection:
            return {"ok": 0.0, "code": code, "errmsg": "not for you"}
        created_indexes.update(index["name"] for index in command.get("indexes", ()))
        return {"ismaster": True, "cursor": {"id": 0, "firstBatch": []}, "n": 0}

    with serving(answering(answer)) as host, capturedLogs() as events:
        async with mongo_running(f"mongodb://{host}/", "images", 5) as store:
            with suppress(Unavailable):
                await store._require_open().indexes.create()
    assert created_indexes == {
        name
        for collection, indexes in INDEXES.items()
        for name in indexes
        if collection != refused_collection
    }
    lines = [event for event in events if event.get("collection") == refused_collection]
    assert len(lines) == (code == NOT_ALLOWED)
