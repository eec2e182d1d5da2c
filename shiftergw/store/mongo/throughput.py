"""The throughput of the last days in MongoDB, a document for each period."""

from __future__ import annotations

from dataclasses import asdict

from pymongo.errors import DuplicateKeyError

from shiftergw.model.throughput import KEEP_SECONDS, Throughput, period_of
from shiftergw.mongo.database import Database
from shiftergw.store.legacy_documents import read_number
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import THROUGHPUT

_COUNTS = ("pulls", "failures", "image_bytes", "layer_bytes")


async def add(db: Database, work: Throughput) -> None:
    """Add work to its period, and remove old periods."""
    period = {"_id": period_of(work.since)}
    counts = asdict(work)
    increases = {"$inc": {name: counts[name] for name in _COUNTS}}
    try:
        await db.update(THROUGHPUT, period, increases, upsert=True, durable=False)
    except DuplicateKeyError:  # another worker has begun the period just now
        await db.update(THROUGHPUT, period, increases, durable=False)
    old_periods = {"_id": {"$lt": work.since - KEEP_SECONDS}}
    await db.delete(THROUGHPUT, old_periods, multi=True, durable=False)


async def list_since(db: Database, since: float) -> list[Throughput]:
    """Return the periods that began at or after a time."""
    documents = await db.find(queries.throughput_since(since))
    return [
        Throughput(float(document["_id"]), *(_count(document.get(name)) for name in _COUNTS))
        for document in documents
    ]


def _count(value: object) -> int:
    return int(read_number(value) or 0)
