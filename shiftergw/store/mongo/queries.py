"""What the MongoDB store asks, and the index of each question.

The names of indexes are ours, so that they meet nobody's. Only `claim` is unique.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId

from shiftergw.mongo.database import Document, Query
from shiftergw.ports import CREDENTIAL_SECONDS
from shiftergw.states import State
from shiftergw.store.mongo.records import IMAGES, READY

LEASES = "shiftergw.leases"
BLOCKS = "shiftergw.blocks"
BREAKERS = "shiftergw.breakers"
TURNS = "shiftergw.turns"
STATE = "shiftergw.state"
CREDENTIALS = "shiftergw.credentials"
LOOKUPS = "metrics"

MIGRATION = "migration"
"""The key in `STATE` of what is known of a migration into this database."""

INDEXES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    IMAGES: {
        "shiftergw_claim": {"key": {"claim": 1}, "unique": True, "sparse": True},
        "shiftergw_tag": {"key": {"system": 1, "itype": 1, "tag": 1, "status": 1, "last_pull": -1}},
        "shiftergw_id": {"key": {"id": 1, "system": 1, "status": 1}},
        "shiftergw_pulltag": {"key": {"system": 1, "itype": 1, "pulltag": 1, "status": 1}},
        "shiftergw_list": {"key": {"system": 1, "status": 1, "_id": 1}},
        "shiftergw_expiration": {"key": {"status": 1, "expiration": 1}},
        "shiftergw_ended": {"key": {"status": 1, "last_pull": 1, "attempt": 1}},
        "shiftergw_pending": {"key": {"status": 1, "not_before": 1, "claim": 1}},
        "shiftergw_pending_of": {
            "key": {"status": 1, "requested_by": 1, "not_before": 1, "claim": 1}
        },
        "shiftergw_postponed": {"key": {"status": 1, "location": 1, "not_before": 1}},
        "shiftergw_attempt": {"key": {"attempt": 1}},
        "shiftergw_finishing": {"key": {"finishing.since": 1}, "sparse": True},
    },
    LOOKUPS: {
        "shiftergw_system": {"key": {"system": 1, "_id": 1}},
        "shiftergw_time": {"key": {"time": 1}},
    },
    CREDENTIALS: {
        "shiftergw_used": {"key": {"at": 1}, "expireAfterSeconds": int(CREDENTIAL_SECONDS)},
    },
}
"""Of each collection: name → what `createIndexes` is told of it."""

_IS_READY = {"$in": list(READY)}
_FLIES = {"$gt": ""}
"""Of a `claim`: there is one."""

_FIRST = ObjectId("0" * 24)


def in_flight(claim: str) -> Query:
    """Ask for the record in flight of a claim."""
    return Query(IMAGES, {"claim": claim}, limit=1)


def with_tag(system: str, itype: str, tag: str) -> Query:
    """Ask for the READY records that carry a tag, newest first."""
    wanted = {"system": system, "itype": itype, "tag": tag, "status": _IS_READY}
    return Query(IMAGES, wanted, {"last_pull": -1, "_id": -1})


def of_image(systems: Collection[str], image_id: str) -> Query:
    """Ask for all records of an image, in the order of their keys: there are few."""
    wanted = {"id": image_id, "system": {"$in": list(systems)}}
    return Query(IMAGES, wanted, {"_id": 1})


def of_files(systems: Collection[str], image_id: str) -> Document:
    """Find the records of an image whose files are there."""
    words = [*READY, str(State.EXPIRING)]
    return {"id": image_id, "system": {"$in": list(systems)}, "status": {"$in": words}}


def losing(system: str, itype: str, tag: str) -> Document:
    """Find the records that are to go, and carry a tag that another image gets."""
    status = str(State.EXPIRING)
    return {"system": system, "itype": itype, "tag": tag, "status": status}


def failures_of(system: str, itype: str, tag: str) -> Query:
    """Ask for the FAILUREs of a tag, newest first."""
    wanted = _pulled_as(system, itype, tag) | {"status": str(State.FAILURE)}
    return Query(IMAGES, wanted, {"last_pull": -1, "_id": -1})


def pulls_of(system: str, itype: str, tag: str) -> Query:
    """Ask for what became, or becomes, of the pulls of a tag."""
    members = ("status", "claim", "own_failure", "requested_by")
    return Query(IMAGES, _pulled_as(system, itype, tag), members=members)


def _pulled_as(system: str, itype: str, tag: str) -> Document:
    return {"system": system, "itype": itype, "pulltag": tag}


def ready_on(word: str, system: str, after: str, limit: int) -> Query:
    """Ask for READY records of a system in the order of their keys, those after a key."""
    start = {"$gt": ObjectId(after)} if after else {"$gte": _FIRST}
    wanted = {"system": system, "status": word, "_id": start}
    return Query(IMAGES, wanted, {"_id": 1}, limit)


def flying_on(system: str) -> Query:
    """Ask for the work in flight of a system: its name and a slash begin each claim."""
    after = chr(ord("/") + 1)
    return Query(IMAGES, {"claim": {"$gte": f"{system}/", "$lt": f"{system}{after}"}})


def failed_on(system: str) -> Query:
    """Ask for the FAILUREs of a system."""
    return Query(IMAGES, {"system": system, "status": str(State.FAILURE)})


def flights() -> Query:
    """Ask for what decides whose turn it is, and what lives, of all work in flight."""
    members = (
        "status", "attempt", "not_before", "last_heartbeat", "requested_by", "system", "location",
    )  # fmt: skip
    return Query(IMAGES, {"claim": _FLIES}, members=members)


def served(uids: Sequence[int]) -> Query:
    """Ask when the work of users was last begun."""
    return Query(TURNS, {"_id": {"$in": list(uids)}})


def with_keys(numbers: Sequence[ObjectId]) -> Query:
    """Ask for documents by their ObjectIds."""
    return Query(IMAGES, {"_id": {"$in": list(numbers)}})


def waiting(uid: int | None = None) -> Document:
    """Find the pulls that wait and are not postponed, of one user or of all."""
    wanted: Document = {"status": str(State.PENDING), "not_before": None, "claim": _FLIES}
    return wanted if uid is None else wanted | {"requested_by": uid}


def postponed(location: str | None) -> Query:
    """Ask whose pulls of a registry are postponed."""
    wanted = {"status": str(State.PENDING), "location": location, "not_before": {"$gt": 0}}
    return Query(IMAGES, wanted, members=("requested_by",))


def all_postponed() -> Query:
    """Ask for whose pulls, and for which systems, are postponed."""
    wanted = {"status": str(State.PENDING), "not_before": {"$gt": 0}}
    return Query(IMAGES, wanted, members=("requested_by", "system"))


def breaker(key: str) -> Query:
    """Ask for a breaker."""
    return Query(BREAKERS, {"_id": key}, limit=1)


def unfinished(before: float) -> Query:
    """Ask for READY records whose `finish` broke off earlier."""
    return Query(IMAGES, {"finishing.since": {"$lt": before}})


def expired(word: str, now: float, systems: Collection[str] | None = None, limit: int = 0) -> Query:
    """Ask for records with this status whose expiration has passed, of some systems or of all.

    The index leads to those that are due; there are few others among them, if any.
    """
    wanted: Document = {"status": word, "expiration": {"$lte": now}}
    if systems is not None:
        wanted["system"] = {"$in": list(systems)}
    return Query(IMAGES, wanted, {"expiration": 1, "_id": 1}, limit)


def undated(word: str, now: float) -> list[Document]:
    """Find records with this status whose expiration is earlier; and those that have none."""
    return [{"status": word, "expiration": date} for date in ({"$lt": now}, None)]


def by_others() -> Query:
    """Ask for a record that another program has written."""
    return Query(IMAGES, {"attempt": None}, limit=1, members=("_id",))


def fact(name: str) -> Query:
    """Ask for what is kept of the database itself."""
    return Query(STATE, {"_id": name}, limit=1)


def ended_before(time: float) -> list[Document]:
    """Find failures and removals that ended earlier, or do not say when."""
    words = [str(State.FAILURE), str(State.EXPIRED)]
    ages: list[Any] = [{"$lt": time}, None]
    return [{"status": word, "last_pull": age} for word in words for age in ages]


def own_ended_before(time: float) -> list[Document]:
    """Find those of them that an attempt of ours has ended."""
    return [{**wanted, "attempt": {"$gt": 0}} for wanted in ended_before(time)]


def blocks_of(directory: str, image_ids: Collection[str]) -> Query:
    """Ask for the blocks of images in an image directory."""
    return Query(BLOCKS, {"_id": {"$in": [place(directory, one) for one in image_ids]}}, limit=1)


def used(digest: bytes) -> Query:
    """Ask for the use of a credential."""
    return Query(CREDENTIALS, {"_id": digest}, limit=1)


def place(directory: str, image_id: str) -> str:
    """Return the key of leases and blocks: no image id has a space in it."""
    return f"{image_id} {directory}"


def rows_of(system: str, limit: int) -> Query:
    """Ask for the last rows of look-up metrics of a system, newest first."""
    return Query(LOOKUPS, {"system": system}, {"_id": -1}, limit)
