"""Which work MongoDB holds that may begin now, and which has fallen silent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId

from shiftergw.model import ImageRecord
from shiftergw.mongo.database import Database, Document
from shiftergw.states import State
from shiftergw.store.fair_schedule import REMOVALS_UID, InFlight, fair_schedule
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
    """Return what may begin, as `ImageStore.waiting`."""
    flights = [flight for flight in await db.find(queries.flights()) if _is_due(flight, now)]
    uids = sorted({_uid(flight) for flight in flights})
    turns = await db.find(queries.served(uids)) if uids else []
    times = {turn["_id"]: turn["served"] for turn in turns}
    in_order = [_flight(flight, times) for flight in sorted(flights, key=key_of)]
    keys = fair_schedule(in_order, limit, running_per_user, offers, without, share, system_shares)
    # What was begun since we looked waits no more.
    records = {record.key: record for record in await _with_keys(db, keys) if _waits(record)}
    return [records[key] for key in keys if key in records]


async def stale(db: Database, before: float) -> Sequence[ImageRecord]:
    """Return begun work that has given no sign of life since then."""
    flights = records_of(await db.find(queries.flights()))
    quiet = [flight.key for flight in flights if _is_quiet(flight, before)]
    records = [record for record in await _with_keys(db, quiet) if _is_quiet(record, before)]
    return sorted(records, key=lambda record: (record.last_heartbeat or 0, record.key))


async def _with_keys(db: Database, keys: Sequence[str]) -> Sequence[ImageRecord]:
    """Return the records in flight among these."""
    if not keys:
        return []
    query = queries.with_keys([ObjectId(key) for key in keys])
    return [record for record in records_of(await db.find(query)) if record.in_flight]


def _waits(record: ImageRecord) -> bool:
    return not record.attempt or _is_postponed(record.not_before, record.status)


def _is_postponed(not_before: Any, status: Any) -> bool:
    """Return whether work waits for a time.

    Versions that know no postponed work leave `not_before` as it is when they begin the work.
    """
    return not_before is not None and status == State.PENDING


def _is_quiet(record: ImageRecord, before: float) -> bool:
    return not _waits(record) and (record.last_heartbeat or 0) < before


def _is_due(document: Document, now: float) -> bool:
    """Return whether work is not postponed beyond a time."""
    return read_time(document, "not_before") <= now


def _flight(document: Document, served: Mapping[int, float]) -> InFlight:
    uid = _uid(document)
    postponed = _is_postponed(document.get("not_before"), document.get("status"))
    waits = not document.get("attempt") or postponed
    registry = None if uid == REMOVALS_UID else document.get("location")
    system = document.get("system") or ""
    return InFlight(key_of(document), waits, uid, system, registry, served.get(uid))


def _uid(document: Document) -> int:
    """Return whose turn it is with this work; removals are nobody's."""
    going = document.get("status") == State.EXPIRING
    return REMOVALS_UID if going else document.get("requested_by") or 0
