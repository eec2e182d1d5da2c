"""The steps of work as MongoDB does them, up to its end: each is one write, pinned on what it read.

What is counted, or is another document, cannot be pinned; how that is met stands where it is done.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field

from bson.objectid import ObjectId
from pymongo.errors import DuplicateKeyError

from shiftergw.errors import Superseded, TooMany, Unavailable
from shiftergw.model import ImageRecord, PostponeLimits, PullRequest, QueueLimits
from shiftergw.mongo.database import Database, Document
from shiftergw.plumbing.backoff import Backoff
from shiftergw.states import POLLED, IllegalStepError, State, WaitCause, check_restart, check_step
from shiftergw.store import attempts, documents
from shiftergw.store.documents import Change
from shiftergw.store.fair_schedule import REMOVALS_UID
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import (
    IMAGES,
    OWN,
    READY,
    TRIES,
    change,
    document_at,
    id_of,
    owned,
    pinned,
    record_of,
    storable,
    too_busy,
    update_of,
)
from shiftergw.store.waits import check_postponed

LOOKS = 6
"""How often a queue that is full is looked at: others may be about to take theirs back."""

LOOK_BACKOFF = Backoff(0.04)
"""The longest pauses between two of these queries; the actual pauses are random."""


async def claim(
    db: Database, request: PullRequest, now: float, limits: QueueLimits | None
) -> tuple[ImageRecord, bool]:
    """Find or make the record in flight for this claim: the index of claims lets one of all in.

    Limits hold without a lock: a record counts from the moment that it is written, and whoever
    finds that it is one too many takes his own back. So of several at once the last one sees all
    the others, and the limit is never passed; they look again after pauses that differ, lest they
    refuse each other.
    """
    look = 0
    for _ in range(TRIES):
        found = await db.first(queries.in_flight(request.claim))
        if found is not None:
            return record_of(found), False
        refusal = None if limits is None else await _refusal(db, request.requested_by, limits, 0)
        if refusal is None:
            document = {"_id": ObjectId(documents.new_key(now))}
            document |= storable(documents.new_claim(request, now))
            if not await _is_added(db, document):
                continue
            if limits is not None:
                refusal = await _refusal(db, request.requested_by, limits, 1)
            if refusal is None or not await _is_taken_back(db, document):
                await _forget_earlier(db, request, document["_id"])
                return record_of(document), True
        look += 1
        if look == LOOKS:
            raise refusal
        await LOOK_BACKOFF.pause(look, db.clock, random.random())  # noqa: S311 - no secret
    raise too_busy()


async def _is_added(db: Database, document: Document) -> bool:
    """Add a claim; say whether it is ours, and not another's of the same moment."""
    try:
        await db.insert(IMAGES, [document])
    except DuplicateKeyError:
        # Our own, if it was sent twice.
        return await document_at(db, str(document["_id"])) is not None
    return True


async def _refusal(db: Database, uid: int, limits: QueueLimits, ours: int) -> TooMany | None:
    """Return why there is no room for one pull more; `ours` of those that wait is that pull."""
    own = await db.count(IMAGES, queries.waiting(uid)) - ours
    if own >= limits.waiting_per_user:
        return TooMany(
            f"You have {own} pulls waiting, and may have {limits.waiting_per_user}.",
            remedy="Wait until some of them are done, or ask the site's support to raise"
            " UserLimits.waiting.",
        )
    if await db.count(IMAGES, queries.waiting()) - ours >= limits.waiting:
        return TooMany("The gateway's queue is full (QueueLimit).")
    return None


async def _is_taken_back(db: Database, document: Document) -> bool:
    """Remove a claim that is one too many, unless somebody has begun it."""
    removed, again = await db.delete(IMAGES, _not_begun(document["_id"]))
    return removed > 0 or again


def _not_begun(number: ObjectId) -> Document:
    """Find a claim that no attempt has begun."""
    return {"_id": number, **queries.waiting(), "attempt": {"$in": [0, None]}}


async def _forget_earlier(db: Database, request: PullRequest, claim: ObjectId) -> None:
    """Remove what the requester could see of earlier ends of this tag than that of his claim.

    And what an original gateway had begun, and will never end. The claim itself stays: another
    gateway may have begun and ended it by now.
    """
    place = (request.system, request.itype, request.tag)
    for document in await db.find(queries.pulls_of(*place)):
        if document["_id"] == claim:
            continue
        if document.get("claim") is None and _is_answered(document, request.requested_by):
            await db.delete(IMAGES, pinned(document, "status", "claim"))


def _is_answered(document: Document, uid: int) -> bool:
    status = document.get("status")
    if not isinstance(status, str) or status in {*READY, State.EXPIRING, State.EXPIRED}:
        return False
    own = status == State.FAILURE and document.get("own_failure")
    return not own or document.get("requested_by") == uid


@dataclass
class Beginning:
    """What a process has tried to begin, one record after the other, and when, without a yes."""

    key: str = ""
    times: set[float] = field(default_factory=set)

    def note(self, key: str, now: float) -> None:
        """Note a try."""
        if key != self.key:
            self.key, self.times = key, set()
        self.times.add(now)

    def is_left(self, document: Document, runner: str) -> bool:
        """Say whether a document is as a try has left it, whose answer was no yes."""
        ours = document.get("runner") == runner and str(document["_id"]) == self.key
        return ours and document.get("last_heartbeat") in self.times


async def begin(
    db: Database, tried: Beginning, key: str, runner: str, now: float, limit: float
) -> ImageRecord | None:
    """Start the next attempt, unless there is nothing to do.

    A try may have been made and be `Unavailable` all the same: most members of the set did not hear
    of it in time. Then that attempt is gone on with. Others would take it for one that lives, and
    later for one that has died; as long as the set is ill, each try would cost the record one.
    """
    for _ in range(TRIES):
        document = await document_at(db, key)
        if document is None or document.get("claim") is None:
            return None
        state = State(document["status"])
        started = documents.begin_attempt(document, runner, now)
        if not attempts.may_begin(document, now, limit):
            if not tried.is_left(document, runner):
                return None
            started = Change({"last_heartbeat": now})
        check_restart(state)
        pins = ("claim", "attempt", "last_heartbeat", "not_before", "status", "runner")
        try:
            begun = await change(db, document, pins, started)
        except Unavailable:
            tried.note(key, now)
            raise
        if begun is not None:
            tried.times.clear()
            uid = REMOVALS_UID if state is State.EXPIRING else document.get("requested_by") or 0
            await _serve(db, uid, now)
            return record_of(begun)
    raise too_busy()


async def _serve(db: Database, uid: int, now: float) -> None:
    """Note when a user's work was begun; the work itself does not depend on it."""
    with suppress(Unavailable, DuplicateKeyError):
        served = {"$set": {"served": now}}
        await db.update(queries.TURNS, {"_id": uid}, served, upsert=True, durable=False)


async def postpone(
    db: Database,
    key: str,
    attempt: int,
    not_before: float,
    why: str,
    now: float,
    limits: PostponeLimits | None,
    cause: WaitCause,
) -> ImageRecord:
    """End an attempt and have the work wait until a time.

    The limits are counted first: of several at once a few may get past them.
    """
    for _ in range(TRIES):
        document = await owned(db, key, attempt)
        check_step(State(document["status"]), State.PENDING)
        if limits is not None:
            if cause == "system":
                everywhere = await db.find(queries.all_postponed())
                pulls = [pull for pull in everywhere if pull["system"] == document["system"]]
            else:
                pulls = await db.find(queries.postponed(document.get("location")))
            users = [pull.get("requested_by") for pull in pulls]
            check_postponed(len(pulls), users.count(document.get("requested_by")), limits, cause)
        changes = documents.postpone(document, not_before, why, now, cause)
        postponed = await change(db, document, OWN, changes)
        if postponed is not None:
            return record_of(postponed)
    raise too_busy()


async def advance(
    db: Database, key: str, attempt: int, state: State, message: str, now: float
) -> None:
    """Step to another state of work."""
    for _ in range(TRIES):
        document = await owned(db, key, attempt)
        old = State(document["status"])
        check_step(old, state)
        if State.PENDING in (old, state) or state not in POLLED:
            raise IllegalStepError(f"`advance` does not lead from {old} to {state}")
        changes = documents.advance(state, message, now)
        if await change(db, document, OWN, changes) is not None:
            return
    raise too_busy()


async def requeue(db: Database, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
    """End an attempt without a result."""
    for _ in range(TRIES):
        document = await owned(db, key, attempt)
        changes = documents.requeue(document, message, died=died)
        ended = await change(db, document, OWN, changes)
        if ended is not None:
            return record_of(ended)
    raise too_busy()


async def heartbeat(db: Database, key: str, attempt: int, beat: Change) -> None:
    """Write a sign of life, in one write; only if nothing took it, look why."""
    for _ in range(TRIES):
        number = id_of(key)
        if number is None:
            raise Superseded("This work has ended.")
        own = {"_id": number, "claim": {"$gt": ""}, "attempt": attempt, "runner": {"$ne": None}}
        if await db.update(IMAGES, own, update_of(beat), durable=False):
            return
        await owned(db, key, attempt)
    raise too_busy()


async def abandon(db: Database, key: str) -> None:
    """Remove a record that no attempt has begun."""
    number = id_of(key)
    if number is not None:
        await db.delete(IMAGES, _not_begun(number))
