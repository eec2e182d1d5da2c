"""The queries of the MongoDB store, and the indexes that serve them.

A function that returns a `Query` gives a whole command; one that returns a `Document` gives a
filter. The names of indexes start with `shiftergw_`, so that they differ from all others. Only the
index of `claim` is unique.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId

from shiftergw.mongo.database import Document, Query
from shiftergw.ports import CREDENTIAL_SECONDS
from shiftergw.states import State
from shiftergw.store.documents import after_prefix
from shiftergw.store.legacy_documents import READY_WORDS
from shiftergw.store.mongo.records import IMAGES
from shiftergw.store.ranges import MOST_FILES

LEASES = "shiftergw.leases"
BLOCKS = "shiftergw.blocks"
BREAKERS = "shiftergw.breakers"
TURNS = "shiftergw.turns"
STATE = "shiftergw.state"
CREDENTIALS = "shiftergw.credentials"
RANGES = "shiftergw.ranges"
THROUGHPUT = "shiftergw.throughput"
LOOKUPS = "metrics"

MIGRATION = "migration"
"""Key of a document in `STATE`: the mark of a migration into this database."""

INDEXES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    IMAGES: {
        "shiftergw_claim": {"key": {"claim": 1}, "unique": True, "sparse": True},
        "shiftergw_tag": {"key": {"system": 1, "itype": 1, "tag": 1, "status": 1, "last_pull": -1}},
        "shiftergw_id": {"key": {"id": 1, "system": 1, "status": 1}},
        "shiftergw_pulltag": {"key": {"system": 1, "itype": 1, "pulltag": 1, "status": 1}},
        "shiftergw_list": {"key": {"system": 1, "status": 1, "_id": 1}},
        "shiftergw_expiration": {"key": {"status": 1, "expiration": 1}},
        "shiftergw_due": {"key": {"status": 1, "pinned_by": 1, "expiration": 1}},
        "shiftergw_pinned": {"key": {"pinned_by": 1, "system": 1, "status": 1}, "sparse": True},
        "shiftergw_ended": {"key": {"status": 1, "last_pull": 1, "attempt": 1}},
        "shiftergw_pending": {"key": {"status": 1, "not_before": 1, "claim": 1}},
        "shiftergw_pending_of": {
            "key": {"status": 1, "requested_by": 1, "not_before": 1, "claim": 1}
        },
        "shiftergw_postponed": {"key": {"status": 1, "location": 1, "not_before": 1}},
        "shiftergw_attempt": {"key": {"attempt": 1}},
        "shiftergw_finishing": {"key": {"finishing.since": 1}, "sparse": True},
        "shiftergw_file": {"key": {"sha256": 1, "status": 1, "system": 1}},
    },
    LOOKUPS: {
        "shiftergw_system": {"key": {"system": 1, "_id": 1}},
        "shiftergw_time": {"key": {"time": 1}},
    },
    CREDENTIALS: {
        "shiftergw_used": {"key": {"at": 1}, "expireAfterSeconds": int(CREDENTIAL_SECONDS)},
    },
    BREAKERS: {
        "shiftergw_until": {"key": {"until": 1}},
    },
    RANGES: {
        "shiftergw_data": {"key": {"data": 1, "saved_at": -1}},
        "shiftergw_saved": {"key": {"saved_at": 1, "_id": 1}},
    },
}
"""For each collection, the options of `createIndexes` by the name of the index.

They are created in this order: those that the gateway can do without come last.
"""

_IS_READY = {"$in": list(READY_WORDS)}
_ANY_CLAIM = {"$gt": ""}
"""Matches a record that has a `claim`, by its index."""

_LOWEST_KEY = ObjectId("0" * 24)


def in_flight(claim: str) -> Query:
    """Return the query for the record in flight with a claim."""
    return Query(IMAGES, {"claim": claim}, limit=1)


def with_tag(system: str, itype: str, tag: str) -> Query:
    """Return the query for the READY records with a tag, newest first."""
    records = {"system": system, "itype": itype, "tag": tag, "status": _IS_READY}
    return Query(IMAGES, records, {"last_pull": -1, "_id": -1})


def of_image(systems: Collection[str], image_id: str) -> Query:
    """Return the query for all records of an image, in the order of their keys; there are few."""
    records = {"id": image_id, "system": {"$in": list(systems)}}
    return Query(IMAGES, records, {"_id": 1})


def with_prefix(systems: Collection[str], prefix: str, limit: int) -> Query:
    """Return the query for READY records whose ids begin with a prefix, in their order."""
    records = {
        "id": {"$gte": prefix, "$lt": after_prefix(prefix)},
        "system": {"$in": list(systems)},
        "status": _IS_READY,
    }
    return Query(IMAGES, records, {"id": 1, "_id": 1}, limit)


def with_files(systems: Collection[str], image_id: str) -> Document:
    """Return the filter for the records of an image whose files exist."""
    words = [*READY_WORDS, str(State.EXPIRING)]
    return {"id": image_id, "system": {"$in": list(systems)}, "status": {"$in": words}}


def expiring_with_tag(system: str, itype: str, tag: str) -> Document:
    """Return the filter for the EXPIRING records with a tag."""
    status = str(State.EXPIRING)
    return {"system": system, "itype": itype, "tag": tag, "status": status}


def failures_of(system: str, itype: str, tag: str) -> Query:
    """Return the query for the FAILUREs of a tag, newest first."""
    records = _pulled_as(system, itype, tag) | {"status": str(State.FAILURE)}
    return Query(IMAGES, records, {"last_pull": -1, "_id": -1})


def pulls_of(system: str, itype: str, tag: str) -> Query:
    """Return the query for the state and the result of all pulls of a tag."""
    members = ("status", "claim", "own_failure", "requested_by")
    return Query(IMAGES, _pulled_as(system, itype, tag), members=members)


def _pulled_as(system: str, itype: str, tag: str) -> Document:
    return {"system": system, "itype": itype, "pulltag": tag}


def ready_on(word: str, system: str, after: str, limit: int) -> Query:
    """Return the query for READY records of a system after a key, in the order of their keys.

    `word` is one of `READY_WORDS`.
    """
    start = {"$gt": ObjectId(after)} if after else {"$gte": _LOWEST_KEY}
    records = {"system": system, "status": word, "_id": start}
    return Query(IMAGES, records, {"_id": 1}, limit)


def newest_reports(system: str, limit: int) -> Query:
    """Return the query for the reports of the newest READY records of a system."""
    records = {"system": system, "status": str(State.READY)}
    return Query(IMAGES, records, {"_id": -1}, limit, members=("report",))


def in_flight_on(system: str) -> Query:
    """Return the query for the work in flight of a system, whose claims start with `system/`."""
    after = chr(ord("/") + 1)
    return Query(IMAGES, {"claim": {"$gte": f"{system}/", "$lt": f"{system}{after}"}})


def failures_on(system: str) -> Query:
    """Return the query for the FAILUREs of a system."""
    return Query(IMAGES, {"system": system, "status": str(State.FAILURE)})


def all_in_flight() -> Query:
    """Return the query for all work in flight, with the members that scheduling needs."""
    members = (
        "status", "attempt", "not_before", "last_heartbeat", "requested_by", "system", "location",
    )  # fmt: skip
    return Query(IMAGES, {"claim": _ANY_CLAIM}, members=members)


def last_turns(uids: Sequence[int]) -> Query:
    """Return the query for the times at which the work of users was last begun."""
    return Query(TURNS, {"_id": {"$in": list(uids)}})


def with_keys(numbers: Sequence[ObjectId]) -> Query:
    """Return the query for records by their keys."""
    return Query(IMAGES, {"_id": {"$in": list(numbers)}})


def waiting(uid: int | None = None) -> Document:
    """Return the filter for pulls that wait and are not postponed, of one user or of all."""
    records: Document = {"status": str(State.PENDING), "not_before": None, "claim": _ANY_CLAIM}
    return records if uid is None else records | {"requested_by": uid}


def postponed_for(location: str | None) -> Query:
    """Return the query for the users of postponed pulls of a registry."""
    records = {"status": str(State.PENDING), "location": location, "not_before": {"$gt": 0}}
    return Query(IMAGES, records, members=("requested_by",))


def all_postponed() -> Query:
    """Return the query for the users and systems of all postponed pulls."""
    records = {"status": str(State.PENDING), "not_before": {"$gt": 0}}
    return Query(IMAGES, records, members=("requested_by", "system"))


def breaker(key: str) -> Query:
    """Return the query for a circuit breaker."""
    return Query(BREAKERS, {"_id": key}, limit=1)


def open_breakers(now: float, limit: int) -> Query:
    """Return the query for the breakers whose time has not come, by key."""
    return Query(BREAKERS, {"until": {"$gt": now}}, sort={"_id": 1}, limit=limit)


def throughput_since(since: float) -> Query:
    """Return the query for the periods that began at or after a time."""
    return Query(THROUGHPUT, {"_id": {"$gte": since}}, sort={"_id": 1})


def interrupted_finishes(before: float) -> Query:
    """Return the query for READY records whose `finish` was interrupted before a time."""
    return Query(IMAGES, {"finishing.since": {"$lt": before}})


def past_expiration(
    word: str, now: float, systems: Collection[str] | None = None, limit: int = 0
) -> Query:
    """Return the query for records with a status whose expiration has passed, the earliest first.

    The index finds the records of all systems; few of them, if any, are of a system that is not in
    `systems`.
    """
    records: Document = {"status": word, "expiration": {"$lte": now}, "pinned_by": None}
    if systems is not None:
        records["system"] = {"$in": list(systems)}
    return Query(IMAGES, records, {"expiration": 1, "_id": 1}, limit)


def pins_of(system: str, uid: int) -> Query:
    """Return the query for the READY records of a system that a user has pinned."""
    records = {"system": system, "status": _IS_READY, "pinned_by": uid}
    return Query(IMAGES, records, members=("_id",))


def without_future_expiration(word: str, now: float) -> list[Document]:
    """Return the filters for records with a status: expired before `now`; without expiration."""
    return [{"status": word, "expiration": date} for date in ({"$lt": now}, None)]


def foreign_record() -> Query:
    """Return the query for one record that another program has written."""
    return Query(IMAGES, {"attempt": None}, limit=1, members=("_id",))


def state_document(key: str) -> Query:
    """Return the query for a document about the database itself."""
    return Query(STATE, {"_id": key}, limit=1)


def ended_before(time: float) -> list[Document]:
    """Return the filters for failures and removals that ended before a time, or have no time."""
    words = [str(State.FAILURE), str(State.EXPIRED)]
    ages: list[Any] = [{"$lt": time}, None]
    return [{"status": word, "last_pull": age} for word in words for age in ages]


def own_ended_before(time: float) -> list[Document]:
    """Return the filters of `ended_before`, limited to work that this program has begun."""
    return [{**records, "attempt": {"$gt": 0}} for records in ended_before(time)]


def blocks_of(directory: str, image_ids: Collection[str]) -> Query:
    """Return the query for a block of one of the images in an image directory."""
    keys = [file_key(directory, image_id) for image_id in image_ids]
    return Query(BLOCKS, {"_id": {"$in": keys}}, limit=1)


def blocks_with_prefix(prefix: str) -> Query:
    """Return the query for blocks whose ids begin with a prefix, in any directory; there are few.

    A key begins with the image id.
    """
    keys = {"$gte": prefix, "$lt": after_prefix(prefix)}
    return Query(BLOCKS, {"_id": keys}, {"_id": 1})


def use_of(digest: bytes) -> Query:
    """Return the query for the first use of a credential."""
    return Query(CREDENTIALS, {"_id": digest}, limit=1)


def files_with_data(digests: Collection[str]) -> Query:
    """Return the query for the files with data of one of these packs, the last ones first."""
    files = {"data": {"$in": list(digests)}}
    return Query(RANGES, files, {"saved_at": -1}, MOST_FILES, members=("data", "sizes"))


def ready_with_file(systems: Collection[str], files: Collection[str]) -> Query:
    """Return the query for READY records of systems, by the digests of their files."""
    records = {"sha256": {"$in": list(files)}, "status": _IS_READY}
    members = ("id", "sha256", "size", "modified", "last_pull")
    return Query(IMAGES, records | {"system": {"$in": list(systems)}}, members=members)


def ranges_of(sha256: str) -> Query:
    """Return the query for the ranges of a file."""
    return Query(RANGES, {"_id": sha256}, limit=1)


def ranges_before(time: float) -> Query:
    """Return the query for the files whose ranges were saved before a time."""
    return Query(RANGES, {"saved_at": {"$lt": time}}, members=("_id",))


def images_of_files(files: Collection[str]) -> Query:
    """Return the query for the records whose files exist, by the digests of their files."""
    words = [*READY_WORDS, str(State.EXPIRING)]
    records = {"sha256": {"$in": list(files)}, "status": {"$in": words}}
    return Query(IMAGES, records, members=("sha256",))


def file_key(directory: str, image_id: str) -> str:
    """Return the key of the lease and the block of an image's files; no image id has a space."""
    return f"{image_id} {directory}"


def last_lookups(system: str, limit: int) -> Query:
    """Return the query for the last look-up rows of a system, newest first."""
    return Query(LOOKUPS, {"system": system}, {"_id": -1}, limit)
