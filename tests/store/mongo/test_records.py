"""Records that no document can hold have their own error; the server does not count as away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import NotStorable
from shiftergw.model.records import Progress, Ready
from shiftergw.states import State
from tests import mongod
from tests.mongo.puppets import answering, serving
from tests.store.places import mongo_running
from tests.store.pulls import ID, NOW, begin_pull, failure, request

NamedDatabase = tuple[str, Any]
MEGABYTE = 1 << 20


@pytest.fixture
def empty_database(mongodb: str) -> Iterator[NamedDatabase]:
    """Return the name of an empty database and pymongo's object for it."""
    with mongod.database(mongodb) as name_and_database:
        yield name_and_database


@pytest.mark.parametrize(
    "changes",
    [
        {"env": ("x" * (17 * MEGABYTE),)},
        {"env": ("x",) * (3 * MEGABYTE // 2)},
        {"size": 2**63},
        {"report": {"entries": -(2**70)}},
        {"report": {"seconds": object()}},
    ],
    ids=["one long text", "many short texts", "a large number", "a small number", "no value"],
)
@pytest_twisted.ensureDeferred
async def test_a_record_too_large_for_a_document_is_refused(
    mongodb: str, empty_database: NamedDatabase, changes: dict[str, Any]
) -> None:
    """Too many bytes, or a number of more than 64 bits; the pull can then end in FAILURE.

    Nothing is written, and other work continues.
    """
    async with mongo_running(mongodb, empty_database[0]) as store:
        second_pull = await begin_pull(store, request("y:1"))
        record = await begin_pull(store, request("x:1"))
        with pytest.raises(NotStorable):
            await store.finish(record.key, 1, Ready(ID, changes), NOW)
        assert await store.get(record.key) == record
        await store.heartbeat(second_pull.key, 1, Progress("x", 1, 2), NOW)
        result = await store.finish(record.key, 1, failure(), NOW)
        assert result.status is State.FAILURE


@pytest.mark.parametrize("code", [10334, 17419, 17420, 17280, 52, 57, 121])
@pytest_twisted.ensureDeferred
async def test_refusals_of_all_server_versions_are_known(code: int) -> None:
    """Each error code for an invalid document raises `NotStorable`."""

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if "update" in command:
            return {"n": 0, "writeErrors": [{"index": 0, "code": code, "errmsg": "not this one"}]}
        return {"ismaster": True}

    with serving(answering(answer)) as host:
        async with mongo_running(f"mongodb://{host}/", "images") as store:
            with pytest.raises(NotStorable) as caught:
                await store.set_access(["alpha"], ID, True, (), ())
    assert "not this one" in caught.value.detail
    assert "not this one" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_invalid_names_of_labels_are_replaced(
    mongodb: str, empty_database: NamedDatabase
) -> None:
    """Labels may contain characters that MongoDB does not allow in a name."""
    labels = {"a.b": "1", "$set": "2", "nul\0": "3", "": "4", "\ud800": "\udfff", "x": "nul\0"}
    async with mongo_running(mongodb, empty_database[0]) as store:
        record = await begin_pull(store, request("x:1"))
        await store.advance(record.key, 1, State.TRANSFER, "\ud800 \0 $where", NOW)
        await store.heartbeat(record.key, 1, Progress("\ud800", 1, 2), NOW, "\udfff")
        ready = await store.finish(record.key, 1, Ready(ID, {"labels": labels}), NOW)
        assert ready.labels == {
            "a.b": "1", "\uff04set": "2", "nul\ufffd": "3", "": "4", "\ufffd": "\ufffd",
            "x": "nul\0",
        }  # fmt: skip
        assert await store.find("alpha", "docker", ["nul\0", "$x", "x:1"]) == ready
        await store.record_lookup({"system": "alpha", "time": NOW, "tag": 2**70})
        await store.lookups("alpha", 1)
        await store.record_lookup({"system": "alpha", "time": NOW, "tag": "y"})
        assert [row["tag"] for row in await store.lookups("alpha", 9)] == ["y"]
