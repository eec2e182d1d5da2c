"""Ranges of delivered files in MongoDB: one document for each file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from bson.binary import Binary
from pymongo.errors import DuplicateKeyError

from shiftergw.model.packed_data import PackedData
from shiftergw.mongo.database import Database, Document
from shiftergw.ports import DeltaBase
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import RANGES
from shiftergw.store.ranges import FileFacts, decode_base, usable_files


def ranges_document(
    sha256: str, sizes: Mapping[str, int], content: bytes, saved_at: float
) -> Document:
    """Return the document of a file."""
    return {
        "_id": sha256,
        "saved_at": saved_at,
        "data": list(sizes),
        "sizes": list(sizes.values()),
        "content": Binary(content),
    }


async def save(db: Database, sha256: str, data: PackedData, now: float) -> None:
    """Write the ranges of a file in place of earlier ones."""
    document = ranges_document(sha256, data.sizes(), data.encode(), now)
    key = {"_id": document.pop("_id")}
    with suppress(DuplicateKeyError):  # another worker has delivered the same file just now
        await db.update(RANGES, key, {"$set": document}, upsert=True, durable=False)


async def find(
    db: Database,
    systems: Collection[str],
    data_sizes: Mapping[str, int],
    excluded_id: str,
    limit: int,
) -> list[DeltaBase]:
    """Return the images that may have most of the data; see `RangeStore.find_bases`."""
    common_sizes = {
        document["_id"]: _common_size(document, data_sizes)
        for document in await db.find(queries.files_with_data(data_sizes))
    }
    images = await db.find(queries.ready_with_file(systems, list(common_sizes)))
    images.sort(key=lambda image: (-common_sizes[image["sha256"]], *_age_and_id(image)))
    names = ("id", "sha256", "size", "modified")
    files = [FileFacts(*(image.get(name) for name in names)) for image in images]
    bases: list[DeltaBase] = []
    for file in usable_files(files):
        if len(bases) == limit:
            break
        if file.image_id == excluded_id:
            continue
        document = await db.first(queries.ranges_of(file.sha256))
        base = None if document is None else decode_base(file, document["content"])
        if base is not None:
            bases.append(base)
    return bases


def _age_and_id(image: Document) -> tuple[float, str]:
    """Return the sort key of records whose files have equally much data: newest first."""
    time = image.get("last_pull")
    return -time if isinstance(time, int | float) else 0.0, str(image.get("id"))


def _common_size(document: Document, data_sizes: Mapping[str, int]) -> int:
    pairs = zip(document["data"], document["sizes"], strict=False)
    return sum(min(size, data_sizes.get(data, 0)) for data, size in pairs)


async def forget(db: Database, before: float) -> int:
    """Remove old ranges whose file no image has; return how many."""
    count = 0
    async for documents in db.batches(queries.ranges_before(before)):
        keys = {document["_id"] for document in documents}
        images = await db.find(queries.images_of_files(list(keys)))
        keys -= {image["sha256"] for image in images}
        if keys:
            old_ranges = {"_id": {"$in": sorted(keys)}, "saved_at": {"$lt": before}}
            count += (await db.delete(RANGES, old_ranges, multi=True, durable=False))[0]
    return count
