"""Which work in MongoDB may begin now, and which has lost its worker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId

from shiftergw.model.records import ImageRecord
from shiftergw.mongo.database import Database, Document
from shiftergw.states import State
from shiftergw.store.fair_schedule import REMOVALS_UID, InFlight, fair_order, fair_schedule
from shiftergw.store.legacy_documents import read_time
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import key_of, records_of


async def waiting(
    db: Database,
    now: float,
    limit: int,
    running_per_user: int | None,
    offers: Collection[str],
    without: Collection[str],
    share: int | None,
    system_shares: Mapping[str, int] | None,
) -> Sequence[ImageRecord]:
    """Return the work that may begin, as `ImageStore.waiting` promises."""
    in_order = await _all_in_flight(db, now)
    keys = fair_schedule(in_order, limit, running_per_user, offers, without, share, system_shares)
    # An attempt may have begun after the first query.
    records = {record.key: record for record in await _with_keys(db, keys) if _waits(record)}
    return [records[key] for key in keys if key in records]


async def order(db: Database, now: float) -> Sequence[str]:
    """Return the keys of all work that waits, as `ImageStore.schedule` promises."""
    return fair_order(await _all_in_flight(db, now))


async def _all_in_flight(db: Database, now: float) -> list[InFlight]:
    """Return the work in flight that is not postponed beyond `now`, in the order of arrival."""
    documents = [
        document
        for document in await db.find(queries.all_in_flight())
        if read_time(document, "not_before") <= now
    ]
    uids = sorted({_uid_of(document) for document in documents})
    turns = await db.find(queries.last_turns(uids)) if uids else []
    times = {turn["_id"]: turn["served"] for turn in turns}
    return [_in_flight(document, times) for document in sorted(documents, key=key_of)]


async def stale(db: Database, before: float) -> Sequence[ImageRecord]:
    """Return work in flight that has begun and whose last heartbeat is earlier than `before`."""
    in_flight = records_of(await db.find(queries.all_in_flight()))
    keys = [record.key for record in in_flight if _is_stale(record, before)]
    records = [record for record in await _with_keys(db, keys) if _is_stale(record, before)]
    return sorted(records, key=lambda record: (record.last_heartbeat or 0, record.key))


async def _with_keys(db: Database, keys: Sequence[str]) -> Sequence[ImageRecord]:
    """Return the records with these keys that are in flight."""
    if not keys:
        return []
    query = queries.with_keys([ObjectId(key) for key in keys])
    return [record for record in records_of(await db.find(query)) if record.in_flight]


def _waits(record: ImageRecord) -> bool:
    return not record.attempt or _is_postponed(record.not_before, record.status)


def _is_postponed(not_before: Any, status: Any) -> bool:
    """Return whether work is postponed.

    Older versions of this program do not remove `not_before` when they begin the work.
    """
    return not_before is not None and status == State.PENDING


def _is_stale(record: ImageRecord, before: float) -> bool:
    return not _waits(record) and (record.last_heartbeat or 0) < before


def _in_flight(document: Document, times: Mapping[int, float]) -> InFlight:
    uid = _uid_of(document)
    is_postponed = _is_postponed(document.get("not_before"), document.get("status"))
    waits = not document.get("attempt") or is_postponed
    registry = None if uid == REMOVALS_UID else document.get("location")
    system = document.get("system") or ""
    return InFlight(key_of(document), waits, uid, system, registry, times.get(uid))


def _uid_of(document: Document) -> int:
    """Return the uid under which the work is scheduled."""
    is_removal = document.get("status") == State.EXPIRING
    return REMOVALS_UID if is_removal else document.get("requested_by") or 0
