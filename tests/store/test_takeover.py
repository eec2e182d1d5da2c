"""The gateway takes over a database of the original as it is, and can give it back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from bson.decimal128 import Decimal128
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.model.records import Expired, ImageRecord, Progress, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest, Session
from shiftergw.states import State
from shiftergw.store.mongo.store import MongoStore
from shiftergw.store.survey import Category
from shiftergw.web import render
from tests import mongod
from tests.matrices import LONG
from tests.store.original import (
    DISORDERS,
    GROUP,
    IN_ORDER,
    NOW,
    OWNER,
    ROUND,
    SAME_ID,
    SAME_TAG,
    SYSTEMS,
    Disorder,
    document,
    image_id,
    records,
    rows,
)
from tests.store.original_reader import OriginalReader
from tests.store.places import mongo_running
from tests.store.pulls import LIMIT, begin_pull, complete_pull, failure

COUNT = 10_000 if LONG else 1_000
LISTED = {Category.LISTED, Category.UNTAGGED}
NEW_ID = "f" * 64
USER = Session("alpha", "me", OWNER, "users", 2100, frozenset({2100}))
MEMBER = replace(USER, uid=2002, gid=GROUP, groups=frozenset({GROUP}))
STRANGER = replace(USER, uid=2003)


@pytest.fixture(scope="module")
def taken_over(mongodb: str) -> Iterator[tuple[str, Any, str]]:
    """Return a database with many records: its name, pymongo's object, and its documents before.

    Our gateway has started on it once. Tests may only read it.
    """
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many([content for _, content in records(COUNT)])
        db["metrics"].insert_many(rows(50))
        before = str(mongod.all_documents(db))

        async def start() -> None:
            async with mongo_running(mongodb, name, 60) as store:
                pull = PullRequest("alpha", "docker", ImageReference.parse("new:1"), OWNER)
                await store.abandon((await store.claim(pull, NOW))[0].key)

        pytest_twisted.blockon(Deferred.fromCoroutine(start()))
        yield name, db, before


@pytest.fixture
def store(mongodb: str, taken_over: tuple[str, Any, str]) -> Iterator[MongoStore]:
    """Return a running store on these records."""
    running = MongoStore(reactor, mongodb, taken_over[0])
    running.startService()
    yield running
    pytest_twisted.blockon(running.stopService())


@pytest.fixture
def small_database(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return a database with one record of each kind: its name, and pymongo's object."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many([content for _, content in records(len(ROUND))])
        yield name, db


def request_of(kind: Disorder, n: int) -> PullRequest:
    """Return a request for the tag of record `n`."""
    content = document(n, kind)
    reference = ImageReference.parse(content["pulltag"])
    return PullRequest(content["system"], content.get("itype", "docker"), reference, OWNER)


def numbers_of(*categories: Category) -> list[tuple[int, Disorder]]:
    """Return number and kind of each of the first hundred records in one of these categories."""
    return [(n, kind) for n, kind in enumerate(ROUND, 1) if kind.category in categories]


@pytest_twisted.ensureDeferred
async def test_a_start_rewrites_no_document(
    store: MongoStore, taken_over: tuple[str, Any, str]
) -> None:
    """After the start and many queries every document is unchanged; only indexes are new."""
    _, db, before = taken_over
    for system in SYSTEMS:
        await store.queue(system)
        await store.lookups(system, 10)
    assert await store.stale(NOW, LIMIT) == await store.waiting(NOW + 99, 10) == []
    after = mongod.all_documents(db)
    for name in ("breakers", "credentials", "ranges"):  # made with their indexes
        assert after.pop(f"shiftergw.{name}") == []
    assert str(after) == before
    indexes = db["images"].index_information()
    assert {name for name in indexes if not name.startswith("shiftergw_")} == {"_id_"}
    unique = [name for name, form in indexes.items() if form.get("unique")]
    assert unique == ["shiftergw_claim"]


@pytest_twisted.ensureDeferred
async def test_the_list_has_the_images_of_its_categories(store: MongoStore) -> None:
    """Each system lists them and no others, and each can be shown to a client."""
    expected = Counter(
        content["system"] for kind, content in records(COUNT) if kind.category in LISTED
    )
    for system in SYSTEMS:
        images = await store.list(system)
        assert len(images) == expected[system]
        answers = json.loads(render.listing(map(render.record, images)).body)["list"]
        for answer in answers:
            assert len(answer["id"]) == 64
            assert (answer["system"], answer["status"]) == (system, "READY")
            assert all(isinstance(tag, str) for tag in answer["tag"])
            assert isinstance(answer["last_pull"], float) or answer["last_pull"] == "MISSING"
            assert None not in answer.values()


@pytest_twisted.ensureDeferred
async def test_a_page_of_unusable_records_is_not_the_last(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """The list continues after a page of unusable records."""
    async with mongo_running(mongodb, small_database[0]) as store:
        for system in SYSTEMS:
            for limit in (1, 3):
                images: list[ImageRecord] = []
                while page := await store.list(system, images[-1].key if images else "", limit):
                    assert len(page) <= limit
                    images += page
                assert images == await store.list(system)


@pytest_twisted.ensureDeferred
async def test_every_listed_image_is_found(store: MongoStore) -> None:
    """Each of its tags finds it, whether they are text, a list, or beside invalid values."""
    for n, kind in numbers_of(Category.LISTED, Category.KEYLESS):
        content = document(n, kind)
        tags = content["tag"] if isinstance(content["tag"], list) else [content["tag"]]
        for tag in tags:
            if isinstance(tag, str) and "itype" in content:
                record = await store.find(content["system"], content["itype"], [tag])
                assert record is not None, kind.name
                assert tag in record.tags
                if kind not in {SAME_TAG, SAME_ID} and ROUND[n % len(ROUND)] is not SAME_TAG:
                    assert (record.key, record.id) == (str(content["_id"]), content["id"]), (
                        kind.name
                    )


@pytest_twisted.ensureDeferred
async def test_other_records_are_not_found(store: MongoStore) -> None:
    """Other records are found neither by tag nor by id, and no pull waits for them."""
    for n, kind in numbers_of(*{*Category} - LISTED - {Category.KEYLESS}):
        content = document(n, kind)
        if not isinstance(content.get("system"), str) or kind.category is Category.FOREIGN_SYSTEM:
            continue
        assert await store.find(content["system"], "docker", [f"lib/app:{n}"]) is None, kind.name
        assert await store.find_id([content["system"]], image_id(n)) == [], kind.name
        work = await store.find_work(content["system"], "docker", f"lib/app:{n}")
        assert [record.status for record in work] == [State.FAILURE] * (
            kind.category is Category.FAILURES
        )


@pytest_twisted.ensureDeferred
async def test_a_tag_on_two_records_means_the_newer_one(store: MongoStore) -> None:
    """The record that was pulled last is found."""
    n = ROUND.index(SAME_TAG) + 1
    content = document(n, SAME_TAG)
    record = await store.find(content["system"], "docker", content["tag"])
    assert record is not None
    assert record.key == str(content["_id"])


READERS = {
    "private by its ACL alone": (True, False, False),
    "private with readers": (True, True, False),
    "readers as doubles": (True, False, False),
    "readers as decimals": (True, False, False),
    "readers as text": (False, False, False),
    "readers in a text": (False, False, False),
    "a number as readers": (False, False, False),
}
"""Whether its owner, a member of its group and a stranger may read it; all may read the others."""


@pytest_twisted.ensureDeferred
async def test_the_old_rules_of_access_hold(store: MongoStore) -> None:
    """If the list of readers is unreadable, no user may read the image."""
    for n, kind in numbers_of(*LISTED):
        content = document(n, kind)
        (record, *_) = await store.find_id([content["system"]], content["id"])
        may = tuple(record.may_be_read_by(user) for user in (USER, MEMBER, STRANGER))
        assert may == READERS.get(kind.name, (True, True, True)), kind.name


@pytest_twisted.ensureDeferred
async def test_lookup_rows_of_the_original_come_first(store: MongoStore) -> None:
    """Rows of this program follow those of the original."""
    assert await store.lookups("alpha", 3) == [r for r in rows(50) if r["system"] == "alpha"][-3:]


@pytest_twisted.ensureDeferred
async def test_odd_lookup_rows_become_text(mongodb: str) -> None:
    """A value that JSON cannot hold is returned as text."""
    with mongod.database(mongodb) as (name, db):
        odd = {"time": float("nan"), "user": None, "id": document(1, IN_ORDER)["_id"]}
        db["metrics"].insert_one(rows(1)[0] | odd | {"uid": Decimal128("2001")})
        async with mongo_running(mongodb, name) as store:
            lookups = await store.lookups("alpha", 3)
    (row,) = json.loads(render.rows(lookups).body)
    assert (row["id"], row["uid"], row["time"]) == (f"{1:024x}", OWNER, "nan")


@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_a_repeated_pull_leaves_an_orderly_record(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """The record is orderly, whatever its category before.

    Unknown members survive, and the original would find the image and could read its record.
    """
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, kind in numbers_of(Category.LISTED, Category.UNTAGGED, Category.KEYLESS):
            content = document(n, kind)
            if kind.name == "no type":  # nobody can ask for it
                continue
            request = request_of(kind, n)
            original = db["images"].find_one({"_id": content["_id"]})
            access = {"private": False, "user_acl": (), "group_acl": ()}
            done = await complete_pull(
                store, request, content["id"], NOW, expiration=NOW + 5, **access
            )
            assert (done.status, done.id, done.last_pull) == (State.READY, content["id"], NOW)
            assert request.tag in done.tags
            if kind is not SAME_TAG and ROUND[n % len(ROUND)] is not SAME_ID:
                assert done.key == str(content["_id"]), kind.name
                after = db["images"].find_one({"_id": content["_id"]})
                for member in {"site_note", "blob", "arch"} & content.keys():
                    assert after[member] == original[member]
            _check_order(db, done.key, request)


def _check_order(db: Any, key: str, request: PullRequest) -> None:
    """Check that the original finds the image and can read its record."""
    reader = OriginalReader(db["images"], NOW + 1)
    place = request.system, request.itype, request.tag
    carriers = db["images"].count_documents(
        {"system": place[0], "itype": place[1], "tag": place[2], "status": "READY"}
    )
    assert carriers == 1
    record = reader.ready(*place)
    assert record is not None
    assert str(record["_id"]) == key
    assert reader.pending_record(*place) is None
    assert not reader.would_pull(*place, [], [])
    assert reader.may_read(record, OWNER, [])


@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_a_moved_tag_leaves_all_old_records(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """A moved tag is removed from every record that had it."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, kind in numbers_of(Category.LISTED, Category.NO_ID):
            if kind.name == "no type":  # nobody can ask for it
                continue
            request = request_of(kind, n)
            before = db["images"].find_one({"_id": document(n, kind)["_id"]})
            new = f"e{n:063x}"
            access = {"private": False, "user_acl": (), "group_acl": ()}
            done = await complete_pull(store, request, new, NOW, **access)
            assert done.id == new
            after = db["images"].find_one({"_id": before["_id"]})
            tags = after["tag"] if isinstance(after["tag"], list) else [after["tag"]]
            assert request.tag not in tags, kind.name
            assert after.get("id") == before.get("id")
            assert done.key != str(before["_id"])
            _check_order(db, done.key, request)


@pytest_twisted.ensureDeferred
async def test_work_after_a_crash_is_pulled_again(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """The new pull begins at once, and the old record is removed."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, kind in numbers_of(Category.ABANDONED, Category.FAILURES):
            request = request_of(kind, n)
            claim, is_new = await store.claim(request, NOW)
            assert is_new, kind.name
            assert db["images"].find_one({"_id": document(n, kind)["_id"]}) is None
            (waiting,) = await store.waiting(NOW + 99, 5)
            assert waiting.key == claim.key
            attempt = await store.begin(claim.key, "node:1", NOW, LIMIT)
            assert attempt is not None
            done = await store.finish(attempt.key, 1, Ready(image_id(n)), NOW)
            assert done.key == claim.key
        stays = [
            document(n, kind)["_id"] for n, kind in numbers_of(Category.UNNAMED, Category.EXPIRED)
        ]
        assert db["images"].count_documents({"_id": {"$in": stays}}) == len(stays)


@pytest_twisted.ensureDeferred
async def test_documents_that_are_no_records_do_no_harm(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """A pull of their tags succeeds, and they stay as they are."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, kind in numbers_of(Category.NOT_A_RECORD):
            if kind.name in {"no status", "a list as status"}:
                content = db["images"].find_one({"_id": document(n, kind)["_id"]})
                done = await complete_pull(store, request_of(kind, n), image_id(n), NOW)
                assert done.key != f"{n:024x}"
                after = db["images"].find_one({"_id": content["_id"]})
                assert {**after, "tag": None} == {**content, "tag": None}
                assert await store.find(done.system, "docker", done.tags) == done


@pytest_twisted.ensureDeferred
async def test_a_pull_of_an_image_with_several_records(mongodb: str) -> None:
    """A pull ends in one of the records, whatever faults they have."""
    dates: list[Any] = ["yesterday", None, float("nan")]
    with mongod.database(mongodb) as (name, db):
        same = {"id": image_id(1), "system": "alpha", "tag": ["lib/app:1"]}
        keys: list[dict[str, Any]] = [{}, {"_id": "by hand"}, {"_id": 5}, {"last_pull": 12.5}]
        odd: list[dict[str, Any]] = [*({"last_pull": date} for date in dates), *keys]
        documents = [document(n, IN_ORDER) | same | content for n, content in enumerate(odd)]
        db["images"].insert_many(documents)
        async with mongo_running(mongodb, name) as store:
            reference = ImageReference.parse("lib/app:1")
            pull_of = PullRequest("alpha", "docker", reference, OWNER)
            done = await complete_pull(store, pull_of, image_id(1), NOW)
            assert done.key == "5"
            assert await store.find("alpha", "docker", ["lib/app:1"]) == done
            assert len(await store.find_id(["alpha"], image_id(1))) == len(documents)
        assert db["images"].count_documents({"tag": "lib/app:1"}) == 1


@pytest_twisted.ensureDeferred
async def test_abandoned_removals_are_cancelled_by_a_pull(
    mongodb: str, small_database: tuple[str, Any]
) -> None:
    """The image is READY again under its old record."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, kind in numbers_of(Category.REMOVALS, Category.EXPIRED):
            access = {"private": False, "user_acl": (), "group_acl": ()}
            done = await complete_pull(store, request_of(kind, n), image_id(n), NOW, **access)
            assert done.tags == (f"lib/app:{n}",)
            assert (done.key == f"{n:024x}") is (kind.category is Category.REMOVALS)
            record = OriginalReader(db["images"], NOW).ready(done.system, "docker", done.tags[0])
            assert record is not None


@pytest_twisted.ensureDeferred
async def test_only_due_images_expire(mongodb: str, small_database: tuple[str, Any]) -> None:
    """READY records with a past date are due, and can be removed."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        due = {content.key: content for content in await store.list_expired(NOW)}
        by_kind = {kind.name: f"{n:024x}" for n, kind in enumerate(ROUND, 1)}
        expected = {"expired long ago", "a system that is gone", "no system"}
        expected |= {"a decimal that has passed", "an end before all time"}
        assert due.keys() == {by_kind[content] for content in expected}
        removal = await store.expire(by_kind["expired long ago"], NOW)
        assert removal is not None
        attempt = await store.begin(removal.key, "node:1", NOW, LIMIT)
        assert attempt is not None
        await store.finish(removal.key, attempt.attempt, Expired(), NOW)
        place = removal.system, "docker", removal.tags[0]
        assert await store.find(*place[:2], [place[2]]) is None
        assert OriginalReader(db["images"], NOW).would_pull(*place, [], [])
        assert await store.expire(by_kind["a decimal that has passed"], NOW) is not None
        for word in ("a date as expiration", "text as expiration"):
            assert await store.expire(by_kind[word], NOW) is None
        for n, kind in numbers_of(*LISTED):
            if kind.name not in {"expired long ago", "a decimal that has passed"}:
                assert await store.expire(f"{n:024x}") is not None, kind.name


@pytest_twisted.ensureDeferred
async def test_a_lookup_dates_an_image(mongodb: str, small_database: tuple[str, Any]) -> None:
    """A missing or invalid expiration becomes a number."""
    name, db = small_database
    async with mongo_running(mongodb, name) as store:
        for n, _ in numbers_of(*LISTED):
            await store.renew(f"{n:024x}", NOW + 99_999)
    for n, _ in numbers_of(*LISTED):
        record = db["images"].find_one({"_id": document(n, IN_ORDER)["_id"]})
        assert record["expiration"] == NOW + 99_999


@pytest_twisted.ensureDeferred
async def test_the_original_can_continue(mongodb: str) -> None:
    """The original continues from every state of this program's records as from its own."""
    with mongod.database(mongodb) as (name, db):
        await _leave_every_state(mongodb, name)
        _go_on(db["images"])


async def _leave_every_state(uri: str, name: str) -> None:
    place = "alpha", "docker"

    def pull_of(tag: str) -> PullRequest:
        return PullRequest(*place, ImageReference.parse(tag), OWNER, user_acl=(OWNER,))

    async with mongo_running(uri, name) as store:
        await store.claim(pull_of("waiting:1"), NOW)
        running = await begin_pull(store, pull_of("running:1"), NOW)
        await store.advance(running.key, 1, State.TRANSFER, "Transferring image", NOW)
        await store.heartbeat(running.key, 1, Progress("TRANSFER", 5, 10), NOW)
        postponed_pull = await begin_pull(store, pull_of("postponed:1"), NOW)
        await store.postpone(postponed_pull.key, 1, NOW + 9000, "ghcr.io (rate limit)", NOW)
        await store.trip_breaker("limit ghcr.io anonymous node1", NOW + 9000, "x", NOW)
        failed_pull = await begin_pull(store, pull_of("failed:1"), NOW)
        await store.finish(failed_pull.key, 1, failure(), NOW)
        access = {"private": True, "user_acl": (OWNER,), "group_acl": ()}
        ready = await complete_pull(
            store, pull_of("ready:1"), NEW_ID, NOW, expiration=NOW + 1, **access
        )
        second = await complete_pull(
            store, pull_of("ready:2"), NEW_ID, NOW, expiration=NOW + 1, **access
        )
        assert second.key == ready.key
        expired_image = await complete_pull(store, pull_of("going:1"), "d" * 64, NOW, **access)
        await store.expire(expired_image.key)
        third = await complete_pull(store, pull_of("gone:1"), "c" * 64, NOW, **access)
        await store.expire(third.key)
        last = await store.begin(third.key, "node:1", NOW, LIMIT)
        assert last is not None
        await store.finish(third.key, last.attempt, Expired(), NOW)


def _go_on(images: Any) -> None:
    place, reader = ("alpha", "docker"), OriginalReader(images, NOW + 5)
    documents = list(images.find())
    assert len(documents) == 7
    assert {str(content["_id"]): reader.offences(content) for content in documents} == {
        str(content["_id"]): [] for content in documents
    }
    would = {tag: reader.would_pull(*place, tag, [OWNER], [])
             for tag in ("waiting:1", "running:1", "postponed:1", "failed:1", "ready:1", "ready:2",
                         "gone:1")
             }  # fmt: skip
    assert would == dict.fromkeys(would, False) | {"gone:1": True}
    reader_later = OriginalReader(images, NOW + 4000)
    idle = {"waiting:1", "postponed:1"}
    assert all(
        reader_later.would_pull(*place, tag, [OWNER], []) for tag in would if tag not in idle
    )
    record = reader_later.ready(*place, "ready:2")
    assert record is not None
    assert reader_later.may_read(record, OWNER, [])
    assert not reader_later.may_read(record, 7, [7])
    assert NEW_ID in reader_later.due("alpha")


def test_the_reader_of_the_original_finds_offences() -> None:
    """The original could not read everything, and its model in the tests says so."""
    reader = OriginalReader(None, NOW)
    assert reader.offences(document(1, IN_ORDER)) == []
    odd = {kind.name: reader.offences(document(1, kind)) for kind in DISORDERS}
    assert odd["tag as text"] == ["tag"]
    assert odd["no last_pull"] == ["last_pull"]
    assert odd["an older version's word"] == ["status"]
    assert odd["null ACLs"] == ["userACL", "groupACL"]
