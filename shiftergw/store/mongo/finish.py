"""The end of work in MongoDB, which for a pull takes several writes.

The process may die after any write. The order of the writes allows for that: readers find the tag
all the time, first on the old image and then on the new one, and the database says what is left to
do.

* As long as the record of the pull is in flight, its next attempt repeats all the writes. If the
  image has a record already, the record of the pull is removed by the last write.
* If the record of the pull becomes the record of the image, its member `finishing` says what the
  remaining writes need. `finish_interrupted` makes them if `finish` did not.

An attempt whose process was suspended between two writes may have been superseded. When it goes on,
it may give its tag to a record once more. It notices that at its end, and takes the tag away again
if the newer attempt has given it to another image. If the process dies just before that, readers
still find the newer image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftergw.errors import Superseded
from shiftergw.model.records import Expired, Failed, ImageRecord, Ready
from shiftergw.mongo.database import Database, Document
from shiftergw.states import IllegalStepError, State, check_step
from shiftergw.store import documents
from shiftergw.store.attempts import UNFINISHED_STEPS
from shiftergw.store.documents import MOVED_TAGS, Change
from shiftergw.store.legacy_documents import is_ready, read_tags, read_time
from shiftergw.store.mongo import images, leases, queries
from shiftergw.store.mongo.records import (
    IMAGES,
    OWNER,
    TRIES,
    change,
    document_at,
    key_of,
    owned_document,
    pin_filter,
    record_of,
    too_busy,
)

_ACCESS = ("private", "userACL", "groupACL", "last_pull")


async def finish(
    db: Database, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
) -> ImageRecord:
    """End the work and return the record that remains; see `ImageStore.finish`."""
    for _ in range(TRIES):
        document = await owned_document(db, key, attempt)
        if isinstance(outcome, Ready) and document["status"] != State.EXPIRING:
            check_step(State(document["status"]), State.READY)
            result = await _deliver(db, document, outcome, now)
        else:
            result = await change(db, document, OWNER, _last_change(document, outcome, now))
        if result is not None:
            return record_of(result)
    raise too_busy()


def _last_change(document: Document, outcome: Ready | Expired | Failed, now: float) -> Change:
    """Return the change that ends a removal, or a pull that has failed."""
    state = State(document["status"])
    match outcome:
        case Expired() if state is State.EXPIRING:
            end = documents.end_removal(now)
            return Change(end.members, (*end.without, MOVED_TAGS))
        case Failed() if state is State.EXPIRING:
            return documents.defer_removal(outcome, now)
        case Failed():
            check_step(state, State.FAILURE)
            return documents.fail(outcome, now)
        case Expired():
            raise IllegalStepError(f"no removal is {state}")
        case Ready():
            raise IllegalStepError("a removal does not end with an image")


async def _deliver(db: Database, pull: Document, outcome: Ready, now: float) -> Document | None:
    """End a pull: the one READY record of the image gets the tag, all other records lose it.

    Return None if another process has changed a document meanwhile. Then the caller may repeat all
    that was done.
    """
    system, itype, tag = pull["system"], pull["itype"], pull.get("pulltag")
    carriers = await _carriers(db, system, itype, tag)
    image = await _find_image(db, system, itype, outcome.id)
    remainder = {"tag": tag, "until": outcome.untagged_until, "directory": outcome.directory}
    if image is None:
        unfinished_steps = {UNFINISHED_STEPS: {**remainder, "since": now}}
        ready = _ready_change(pull, pull, [], tag, outcome, now)
        ready = Change({**ready.members, **unfinished_steps}, ready.without)
        image_document = await change(db, pull, OWNER, ready)
    else:
        tags = read_tags(image) if is_ready(image) else await images.remaining_tags(db, image)
        await owned_document(db, key_of(pull), pull["attempt"])
        pins = ("status", "tag", "claim", MOVED_TAGS)
        image_document = await change(
            db, image, pins, _ready_change(image, pull, tags, tag, outcome, now)
        )
    if image_document is None:
        return None
    last_pulls = {carrier["_id"]: carrier.get("last_pull") for carrier in carriers}
    image_document = await _finish_remainder(db, image_document, remainder, now, last_pulls)
    if image is None:
        return await _clear_unfinished(db, pull, image_document)
    removed_count, is_repeated = await db.delete(
        IMAGES, pin_filter(pull, "claim", "attempt", "runner")
    )
    if not (removed_count or is_repeated):
        await _withdraw_tag(db, image_document, tag, outcome.untagged_until, now)
        raise Superseded("This work was taken over while it ended.")
    return image_document


async def _find_image(db: Database, system: str, itype: str, image_id: str) -> Document | None:
    """Return the newest READY record of an image, or else the newest EXPIRING one."""
    records = await _records_of_image(db, system, itype, image_id)
    expiring = [record for record in records if record.get("status") == State.EXPIRING]
    candidates = [record for record in records if is_ready(record)] or expiring
    return max(
        candidates,
        key=lambda record: (read_time(record, "last_pull"), key_of(record)),
        default=None,
    )


async def _records_of_image(db: Database, system: str, itype: str, image_id: str) -> list[Document]:
    records = await db.find(queries.of_image([system], image_id))
    return [record for record in records if record.get("itype") == itype]


def _ready_change(
    document: Document,
    pull: Document,
    tags: list[str],
    tag: str | None,
    outcome: Ready,
    now: float,
) -> Change:
    """Return the change after which a document is the READY record of a delivered image."""
    ready = documents.become_ready(document, pull, outcome, now)
    recovery = Change({})
    if not is_ready(document) and document["status"] == State.EXPIRING:
        recovery = documents.cancel_removal("", ())
    tags = tags if tag is None or tag in tags else [*tags, tag]
    return Change(
        {**recovery.members, **ready.members, "tag": tags},
        (*recovery.without, *ready.without, MOVED_TAGS),
    )


async def _carriers(db: Database, system: str, itype: str, tag: str | None) -> list[Document]:
    """Return the READY records with a tag, newest first."""
    return [] if tag is None else await db.find(queries.with_tag(system, itype, tag))


async def _finish_remainder(
    db: Database,
    image_document: Document,
    remainder: Mapping[str, Any],
    now: float,
    last_pulls: Mapping[Any, Any],
) -> Document:
    """Make the writes that remain once an image's record is READY; return that record.

    The tag is removed from two kinds of other records: those that are unchanged since this attempt
    owned the claim (`last_pulls` has the times of their last pulls then, by key), and those whose
    last pull was not after `now`. EXPIRING records note that they have lost the tag. Twins are
    merged. The image itself becomes EXPIRING if an admin has blocked it during the delivery.
    """
    system, itype, tag = image_document["system"], image_document["itype"], remainder["tag"]
    if tag is not None:
        await images.note_moved_tag(db, system, itype, tag)
        for carrier in await _carriers(db, system, itype, tag):
            if carrier["_id"] == image_document["_id"] or _are_twins(image_document, carrier):
                continue
            key, last_pull = carrier["_id"], carrier.get("last_pull")
            is_unchanged = key in last_pulls and last_pulls[key] == last_pull
            if is_unchanged or read_time(carrier, "last_pull") <= now:
                await images.take_tag(db, carrier, tag, remainder["until"], now)
    image_document = await _merge_twins(db, image_document)
    if await leases.is_blocked(db, remainder["directory"], [image_document["id"]]):
        await images.expire(db, key_of(image_document))
        image_document = await document_at(db, key_of(image_document)) or image_document
    return image_document


def _are_twins(image_document: Document, record: Document) -> bool:
    """Return whether two pulls of one image that ended at once have made these two records."""
    is_ours = record.get("kind") is not None
    return (
        UNFINISHED_STEPS in image_document and is_ours and record.get("id") == image_document["id"]
    )


async def _merge_twins(db: Database, image_document: Document) -> Document:
    """Return the one record of an image that two pulls may have made READY at the same time.

    Every process keeps the oldest record. It gets the tags of its twins before they are removed.
    Documents of the original are never removed.
    """
    for _ in range(TRIES):
        records = await _records_of_image(
            db, image_document["system"], image_document["itype"], image_document["id"]
        )
        oldest, *rest = [record for record in records if is_ready(record)] or [image_document]
        twins = [record for record in rest if record.get("kind") is not None]
        if not twins or UNFINISHED_STEPS not in image_document:
            return image_document
        twin = twins[-1]
        tags = read_tags(oldest)
        tags += [tag for tag in read_tags(twin) if tag not in tags]
        newer = twin if read_time(twin, "last_pull") >= read_time(oldest, "last_pull") else oldest
        access = {name: newer[name] for name in _ACCESS if name in newer}
        union = await change(db, oldest, ("status", "tag"), Change({**access, "tag": tags}))
        if union is None:
            continue
        await db.delete(IMAGES, pin_filter(twin, "status", "tag"))
        if image_document["_id"] in {oldest["_id"], twin["_id"]}:
            image_document = {**union, UNFINISHED_STEPS: image_document[UNFINISHED_STEPS]}
    raise too_busy()


async def _clear_unfinished(db: Database, pull: Document, image_document: Document) -> Document:
    """Remove the member `finishing`, as no write remains; return the document without it."""
    clear = {"$unset": {UNFINISHED_STEPS: ""}}
    await db.update(IMAGES, {"_id": pull["_id"]}, clear, durable=False)
    return {name: value for name, value in image_document.items() if name != UNFINISHED_STEPS}


async def _withdraw_tag(
    db: Database, image_document: Document, tag: str | None, until: float, now: float
) -> None:
    """Take a tag from a record if a newer attempt has given it to another image."""
    carriers = await _carriers(db, image_document["system"], image_document["itype"], tag)
    if tag is not None and any(carrier["_id"] != image_document["_id"] for carrier in carriers):
        await images.take_tag(db, image_document, tag, until, now)


async def finish_interrupted(db: Database, before: float) -> None:
    """Make the remaining writes for records that became READY before a time."""
    for image_document in await db.find(queries.interrupted_finishes(before)):
        remainder = image_document[UNFINISHED_STEPS]
        tag = remainder["tag"]
        if is_ready(image_document) and (tag is None or tag in read_tags(image_document)):
            await _finish_remainder(
                db, image_document, remainder, read_time(image_document, "last_pull"), {}
            )
        await _clear_unfinished(db, image_document, image_document)
