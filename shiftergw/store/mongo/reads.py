"""Look-ups and lists of records in MongoDB, read without a change of anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

from shiftergw.model.records import ImageRecord
from shiftergw.mongo.database import Database, Query
from shiftergw.states import State
from shiftergw.store.legacy_documents import READY_WORDS
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import record_of, records_of

LARGEST_PAGE = 32
"""Records on one page of a list: the driver reads whole answers, and records may be large."""

_by_key = attrgetter("key")


async def _records(db: Database, query: Query) -> Sequence[ImageRecord]:
    return records_of(await db.find(query))


async def find(db: Database, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
    """Return the newest READY record of a tag; the first of `tags` that has one counts."""
    for tag in tags:
        query = queries.with_tag(system, itype, tag)
        newest = await db.first(query)
        if newest is None:
            continue
        record = record_of(newest)
        if record.is_ready:
            return record
        # The newest document is unusable, but an older one may be usable.
        for candidate in await _records(db, query):
            if candidate.is_ready:
                return candidate
    return None


async def find_id(
    db: Database, systems: Collection[str], image_id: str, *, expiring: bool
) -> Sequence[ImageRecord]:
    """Return the READY records of an image, and then the EXPIRING ones if `expiring` is set."""
    records = await _records(db, queries.of_image(systems, image_id))
    states = [State.READY, State.EXPIRING] if expiring else [State.READY]
    return [record for state in states for record in records if record.status is state]


async def find_prefix(
    db: Database, systems: Collection[str], prefix: str, limit: int
) -> Sequence[ImageRecord]:
    """Return the READY records whose ids begin with a prefix, in the order of their ids."""
    records = await _records(db, queries.with_prefix(systems, prefix, limit))
    return [record for record in records if record.is_ready]


async def find_work(db: Database, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
    """Return the record in flight and the FAILUREs of a tag, newest first."""
    in_flight = await _records(db, queries.in_flight(f"{system}/{itype}/{tag}"))
    return [*in_flight, *await _records(db, queries.failures_of(system, itype, tag))]


async def list_ready(
    db: Database, system: str, after: str, limit: int | None
) -> Sequence[ImageRecord]:
    """Return a system's READY records after a key, in the order of their keys.

    With `limit`, return one page of at most `LARGEST_PAGE` records; only the page after the last
    one is empty. Documents that are READY but unusable are left out.
    """
    if limit is not None:
        limit = min(limit, LARGEST_PAGE)
    while True:
        records = [
            record
            for word in READY_WORDS
            for record in await _records(db, queries.ready_on(word, system, after, limit or 0))
        ]
        page = sorted(records, key=_by_key)[:limit]
        usable = [record for record in page if record.is_ready]
        if usable or not page:
            return usable
        after = page[-1].key


async def reports(db: Database, system: str, limit: int) -> Sequence[Mapping[str, Any]]:
    """Return the reports of the newest READY records of a system, newest first."""
    documents = await db.find(queries.newest_reports(system, limit))
    values = [document.get("report") for document in documents]
    return [report for report in values if isinstance(report, Mapping)]


async def list_queue(db: Database, system: str, after: str) -> Sequence[ImageRecord]:
    """Return a system's records in flight or failed in the order of their keys.

    There is no limit, because no index has the work of a system by its key.
    """
    in_flight = await _records(db, queries.in_flight_on(system))
    failures = await _records(db, queries.failures_on(system))
    # A record that fails between the two queries is in both answers.
    records = {record.key: record for record in (*in_flight, *failures) if record.key > after}
    return sorted(records.values(), key=_by_key)


async def count_work(db: Database) -> Mapping[tuple[str, str], int]:
    """Return the number of records in flight by system and state."""
    documents = await db.find(queries.all_in_flight())
    return Counter((str(record.get("system")), str(record.get("status"))) for record in documents)


async def list_expired(
    db: Database, now: float, systems: Collection[str] | None, limit: int | None
) -> Sequence[ImageRecord]:
    """Return READY records whose expiration has passed, the earliest first."""
    records = [
        record
        for word in READY_WORDS
        for record in await _records(db, queries.past_expiration(word, now, systems, limit or 0))
    ]
    return sorted(records, key=lambda record: (record.expiration or 0, record.key))[:limit]
