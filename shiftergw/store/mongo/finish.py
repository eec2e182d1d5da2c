"""The end of work in MongoDB, which for a pull takes several writes.

They stand in an order in which each may be the last: readers find the tag all the time, the old
image before and the new one after, and what is left to do is known to somebody.

* As long as the record of the pull is in flight, its next attempt does all of it again. It goes
  last where the image has a record already.
* Where the pull's own record becomes the image's, it says so in `finishing`, with what the rest
  needs. `mend` does that rest when it was not done in time.

An attempt that was overtaken while its process stood still between two writes may give its tag to a
record once more. It notices at the end, and takes it back where the newer one has given it to
another; were its process to die just then, readers would still find the newer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftergw.errors import Superseded
from shiftergw.model import Expired, Failed, ImageRecord, Ready
from shiftergw.mongo.database import Database, Document
from shiftergw.states import IllegalStepError, State, check_step
from shiftergw.store import documents, legacy_documents
from shiftergw.store.attempts import UNFINISHED_STEPS
from shiftergw.store.documents import MOVED_TAGS, Change
from shiftergw.store.legacy_documents import read_time
from shiftergw.store.mongo import images, places, queries
from shiftergw.store.mongo.records import (
    IMAGES,
    OWN,
    TRIES,
    change,
    document_at,
    is_ready,
    key_of,
    owned,
    pinned,
    record_of,
    too_busy,
)

_ACCESS = ("private", "userACL", "groupACL", "last_pull")


async def finish(
    db: Database, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
) -> ImageRecord:
    """End the work; return the record that remains."""
    for _ in range(TRIES):
        document = await owned(db, key, attempt)
        if isinstance(outcome, Ready) and document["status"] != State.EXPIRING:
            check_step(State(document["status"]), State.READY)
            ended = await _deliver(db, document, outcome, now)
        else:
            ended = await change(db, document, OWN, _end(document, outcome, now))
        if ended is not None:
            return record_of(ended)
    raise too_busy()


def _end(document: Document, outcome: Ready | Expired | Failed, now: float) -> Change:
    """Return the change with which a removal, or a pull that failed, ends."""
    old = State(document["status"])
    match outcome:
        case Expired() if old is State.EXPIRING:
            gone = documents.end_removal(now)
            return Change(gone.members, (*gone.without, MOVED_TAGS))
        case Failed() if old is State.EXPIRING:
            return documents.defer_removal(outcome, now)
        case Failed():
            check_step(old, State.FAILURE)
            return documents.fail(outcome, now)
        case Expired():
            raise IllegalStepError(f"no removal is {old}")
        case Ready():
            raise IllegalStepError("a removal does not end with an image")


async def _deliver(db: Database, pull: Document, outcome: Ready, now: float) -> Document | None:
    """End a pull: the one READY record of the image gets its tag, nobody else has it.

    None if something changed meanwhile: nothing was done then that must not be done again.
    """
    place = pull["system"], pull["itype"], pull.get("pulltag")
    before = await _carriers(db, place)
    held = await _held(db, *place[:2], outcome.id)
    rest = {"tag": place[2], "until": outcome.untagged_until, "directory": outcome.directory}
    if held is None:
        own = {UNFINISHED_STEPS: {**rest, "since": now}}
        home = await change(db, pull, OWN, _ready(pull, [], place[2], outcome, now, own))
    else:
        tags = await _tags_of(db, held)
        await owned(db, key_of(pull), pull["attempt"])
        pins = ("status", "tag", "claim", MOVED_TAGS)
        home = await change(db, held, pins, _ready(held, tags, place[2], outcome, now, {}))
    if home is None:
        return None
    known = {carrier["_id"]: carrier.get("last_pull") for carrier in before}
    home = await _settle(db, home, rest, now, known)
    if held is None:
        return await _settled(db, pull, home)
    removed, again = await db.delete(IMAGES, pinned(pull, "claim", "attempt", "runner"))
    if not (removed or again):
        await _withdraw(db, place, home, outcome.untagged_until, now)
        raise Superseded("This work was taken over while it ended.")
    return home


async def _held(db: Database, system: str, itype: str, image_id: str) -> Document | None:
    """Return the READY record of an image, or else the one whose files are to go."""
    found = await _of_image(db, system, itype, image_id)
    going = [one for one in found if one.get("status") == State.EXPIRING]
    candidates = [one for one in found if is_ready(one)] or going
    return max(candidates, key=lambda one: (read_time(one, "last_pull"), key_of(one)), default=None)


async def _of_image(db: Database, system: str, itype: str, image_id: str) -> list[Document]:
    found = await db.find(queries.of_image([system], image_id))
    return [one for one in found if one.get("itype") == itype]


async def _tags_of(db: Database, held: Document) -> list[str]:
    if is_ready(held):
        return legacy_documents.read_tags(held)
    return await images.tags_left(db, held)


def _ready(
    document: Document,
    tags: list[str],
    tag: str | None,
    outcome: Ready,
    now: float,
    more: Mapping[str, Any],
) -> Change:
    """Return the change after which a document is the READY record of a delivered image."""
    ready = documents.become_ready(outcome, now)
    back = Change({})
    if not is_ready(document) and document["status"] == State.EXPIRING:
        back = documents.cancel_removal("", ())
    tags = tags if tag is None or tag in tags else [*tags, tag]
    return Change(
        {**back.members, **ready.members, "tag": tags, **more},
        (*back.without, *ready.without, MOVED_TAGS),
    )


async def _carriers(db: Database, place: tuple[str, str, str | None]) -> list[Document]:
    system, itype, tag = place
    return [] if tag is None else await db.find(queries.with_tag(system, itype, tag))


async def _settle(
    db: Database,
    home: Document,
    rest: Mapping[str, Any],
    now: float,
    known: Mapping[Any, Any],
) -> Document:
    """Do what is left once an image's record is READY; return the record as it is then.

    Others lose the tag: those that are `known` to have had it while the claim was ours (key → last
    pull), and those that were not pulled later. What is to go learns that it lost it. Twins are
    made one, and an image that an admin took down while it was delivered goes.
    """
    place = home["system"], home["itype"], rest["tag"]
    if rest["tag"] is not None:
        await images.keep_away(db, *place)
        for carrier in await _carriers(db, place):
            number, pulled = carrier["_id"], carrier.get("last_pull")
            if number == home["_id"] or _are_twins(home, carrier):
                continue
            if (number in known and known[number] == pulled) or images.pulled_by(carrier, now):
                await images.take_tag(db, carrier, rest["tag"], rest["until"], now)
    home = await _united(db, home)
    if await places.is_blocked(db, rest["directory"], [home["id"]]):
        await images.expire(db, key_of(home), None)
        home = await document_at(db, key_of(home)) or home
    return home


def _are_twins(home: Document, other: Document) -> bool:
    """Say whether two pulls of one image, which ended at the same time, have made these."""
    return (
        UNFINISHED_STEPS in home and other.get("kind") is not None and other.get("id") == home["id"]
    )


async def _united(db: Database, home: Document) -> Document:
    """Return the one record of an image that two pulls may have made READY at the same time.

    The oldest stays, whoever looks; the others' tags become its own before they go. Documents of
    the original are never removed.
    """
    for _ in range(TRIES):
        found = await _of_image(db, home["system"], home["itype"], home["id"])
        oldest, *others = [one for one in found if is_ready(one)] or [home]
        twins = [one for one in others if one.get("kind") is not None]
        if not twins or UNFINISHED_STEPS not in home:
            return home
        twin = twins[-1]
        tags = legacy_documents.read_tags(oldest)
        tags += [tag for tag in legacy_documents.read_tags(twin) if tag not in tags]
        newer = twin if read_time(twin, "last_pull") >= read_time(oldest, "last_pull") else oldest
        access = {name: newer[name] for name in _ACCESS if name in newer}
        merged = await change(db, oldest, ("status", "tag"), Change({**access, "tag": tags}))
        if merged is None:
            continue
        await db.delete(IMAGES, pinned(twin, "status", "tag"))
        if home["_id"] in {oldest["_id"], twin["_id"]}:
            home = {**merged, UNFINISHED_STEPS: home[UNFINISHED_STEPS]}
    raise too_busy()


async def _settled(db: Database, pull: Document, home: Document) -> Document:
    """Note that nothing is left to do of the end of a pull."""
    number = {"_id": pull["_id"]}
    await db.update(IMAGES, number, {"$unset": {UNFINISHED_STEPS: ""}}, durable=False)
    return {name: value for name, value in home.items() if name != UNFINISHED_STEPS}


async def _withdraw(
    db: Database, place: tuple[str, str, str | None], home: Document, until: float, now: float
) -> None:
    """Take a tag back that a newer attempt has given to another image."""
    newer = [one for one in await _carriers(db, place) if one["_id"] != home["_id"]]
    if newer and place[2] is not None:
        await images.take_tag(db, home, place[2], until, now)


async def mend(db: Database, before: float) -> None:
    """Do the rest of what became READY before this time, and whose process died then."""
    for home in await db.find(queries.unfinished(before)):
        rest = home[UNFINISHED_STEPS]
        if is_ready(home) and (
            rest["tag"] is None or rest["tag"] in legacy_documents.read_tags(home)
        ):
            await _settle(db, home, rest, read_time(home, "last_pull"), {})
        await _settled(db, home, home)
