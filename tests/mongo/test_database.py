"""The commands that reach a MongoDB server, and which of several servers is believed."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from bson.objectid import ObjectId
from pymongo.errors import AutoReconnect
from twisted.internet import reactor

from shiftergw.errors import Unavailable
from shiftergw.model.records import Expired, Progress
from shiftergw.model.requests import QueueLimits
from shiftergw.mongo.address import MongoAddress
from shiftergw.mongo.connector import PrimaryConnector
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.states import State
from tests.mongo.puppets import answering, serving
from tests.mongod import Mongod
from tests.patience import patient
from tests.store.places import mongo_running
from tests.store.pulls import ID, LIMIT, NOW, all_of, begin_pull, complete_pull, failure, request
from tests.store.wire import Wire


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Return a server that is a replica set with one member."""
    with Mongod(tmp_path_factory.mktemp("member"), "--sync-on-commit") as running:
        yield running


COLLECTIONS = {"images", "shiftergw.blocks", "shiftergw.leases", "shiftergw.credentials"}
QUICK = {"shiftergw.turns", "metrics"}


@pytest.mark.parametrize(
    ("options", "durable", "majority"),
    [
        ("", {"w": "majority", "j": True}, {"w": "majority", "j": False}),
        ("?w=1&journal=false", {"w": "majority", "j": False}, {"w": "majority", "j": False}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_important_writes_survive_a_new_primary(
    member: Mongod, options: str, durable: dict[str, Any], majority: dict[str, Any]
) -> None:
    """Claims, steps, leases and blocks are durable, whatever `w` is.

    Used credentials survive a change of the primary as well. Only data that may be lost is written
    without a confirmation of most members.
    """
    concerns: dict[tuple[str, str], list[Any]] = defaultdict(list)

    def note_concern(_: int, command: dict[str, Any]) -> None:
        name, collection = next(iter(command.items()))
        concern = command["writeConcern"]
        if "wtimeout" in concern:
            assert 0 < concern.pop("wtimeout") < 5000
        assert collection in {*COLLECTIONS, *QUICK}
        concerns[collection, name].append(concern)

    with Wire(member.port, before_write=note_concern) as wire:
        async with mongo_running(wire.uri + options, f"safe{len(options)}") as store:
            ready = await complete_pull(store, request("x:1"))
            await complete_pull(store, request("x:1"), "b" * 64)
            failing = await begin_pull(store, request("y:1"))
            await store.advance(failing.key, 1, State.TRANSFER, "", NOW)
            await store.lease("/images", ID, f"{failing.key}/1", NOW, 10)
            await store.lease("/images", ID, f"{failing.key}/2", NOW, 10)
            await store.finish(failing.key, 1, failure(), NOW)
            await store.block("/images", ID, 0, NOW)
            await store.allow("/images", ID)
            await store.set_access(["alpha"], ID, True, (), ())
            assert await store.expire(ready.key) is not None
            await store.begin(ready.key, "n", NOW, LIMIT)
            await store.finish(ready.key, 2, Expired(), NOW)
            await store.abandon((await store.claim(request("z:1"), NOW, QueueLimits(9, 9)))[0].key)
            assert await store.use(b"1" * 32, NOW)
            await store.note_used([b"2" * 32], NOW)
            durables = {
                where: [*values] for where, values in concerns.items() if where[0] in COLLECTIONS
            }
            concerns.clear()
            record = await begin_pull(store, request("q:1"))
            concerns.clear()
            await store.heartbeat(record.key, 1, Progress(), NOW)
            assert concerns.pop(("images", "update")) == [{"w": 1}]
    image_updates = durables["images", "update"]
    assert image_updates.count({"w": 1}) == 2  # two notes that no steps remain
    durables["images", "update"] = [concern for concern in image_updates if concern != {"w": 1}]
    assert durables.pop(("shiftergw.credentials", "insert")) == [majority, durable]
    assert {where for where, _ in durables} == COLLECTIONS - {"shiftergw.credentials"}
    assert {name for _, name in durables} == {"insert", "update", "findAndModify", "delete"}
    assert all(concern == durable for values in durables.values() for concern in values)


def primary(**members: Any) -> Any:
    """Return a function that answers as a primary, and finds no documents."""

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        if name == "isMaster":
            return {"ismaster": True, "setName": "rs0", "hosts": ["a", "b", "c"]} | members
        return {"cursor": {"id": 0, "firstBatch": []}, "n": 1}

    return answering(answer)


@pytest.mark.parametrize(("w", "enough"), [(2, False), (3, True), ("most", True)])
@pytest_twisted.ensureDeferred
async def test_a_write_concern_below_the_majority_is_refused(w: object, enough: bool) -> None:
    """With two of five members a lease could be lost."""
    with serving(primary(passives=["d"], arbiters=["e"])) as host:
        async with mongo_running(f"mongodb://{host}/?w={w}", "images") as store:
            if enough:
                assert await store.lease("/images", ID, "k/1", NOW, 10)
                return
            with pytest.raises(Unavailable) as caught:
                await store.lease("/images", ID, "k/1", NOW, 10)
            assert "w=2 of MongoDBURI is not most of its 5 members" in caught.value.detail


class Member:
    """A member of a set whose description can change, and which may hold answers back."""

    def __init__(self, term: int) -> None:
        """Begin as the primary that was elected in this term."""
        self.description: dict[str, Any] = {
            "ismaster": True,
            "electionId": ObjectId(f"{term:024x}"),
        }
        self.answers = threading.Event()

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer a greeting at once."""
        if "isMaster" in command:
            return {"setName": "rs0", **self.description}
        self.answers.wait(patient(30))
        return {"n": 1}

    def step_down(self) -> None:
        """Stop being the primary."""
        self.description["ismaster"] = False


@pytest_twisted.ensureDeferred
async def test_a_former_primary_is_not_used() -> None:
    """A member that was cut off may not know that another was elected.

    Commands go to the new primary as soon as it is found, and never again to the old one.
    """
    old, new = Member(1), Member(2)
    with serving(answering(old.answer)) as first, serving(answering(new.answer)) as second:
        servers = PrimaryConnector(reactor, MongoAddress.parse(f"mongodb://{first},{second}"))
        links = ConnectionPool(servers.open, reactor, 5)
        link = await links.take()
        waiting = link.command("images", {"ping": 1})
        old.step_down()
        assert await links.take() is link
        with pytest.raises(AutoReconnect, match="another server is the primary"):
            await waiting
        assert (await links.take()).is_open
        new.step_down()
        old.description["ismaster"] = True
        with pytest.raises(Unavailable) as caught:
            await servers.open()
        assert f"{first}: another was elected since" in caught.value.detail
        await links.close()
        old.answers.set()


@pytest_twisted.ensureDeferred
async def test_no_command_waits_behind_an_index() -> None:
    """A server works on one command of a connection at a time, and an index may take an hour."""
    is_created = threading.Event()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if "createIndexes" in command:
            is_created.wait(patient(30))
        return {"ismaster": True, "cursor": {"id": 0, "firstBatch": []}, "n": 0}

    with serving(answering(answer)) as host:
        async with mongo_running(f"mongodb://{host}/", "images", 1) as store:
            for _ in range(20):
                await all_of(store.find_id(["alpha"], ID) for _ in range(20))
            assert not is_created.is_set()
            is_created.set()
            assert await store.lease("/images", ID, "k/1", NOW, 10)
