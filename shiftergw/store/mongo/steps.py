"""The steps of work in MongoDB, except its end: each is one write, pinned on what it has read.

A count, or a member of another document, cannot be a pin. The functions that depend on one say how
they stay correct.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field

from bson.objectid import ObjectId
from pymongo.errors import DuplicateKeyError

from shiftergw.errors import Superseded, TooMany, Unavailable
from shiftergw.model.postponement import PostponeLimits
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import PullRequest, QueueLimits
from shiftergw.mongo.database import Database, Document
from shiftergw.plumbing.backoff import Backoff
from shiftergw.states import (
    POLLING_STATES,
    IllegalStepError,
    State,
    WaitCause,
    check_restart,
    check_step,
)
from shiftergw.store import documents
from shiftergw.store.attempts import may_begin
from shiftergw.store.documents import Change
from shiftergw.store.fair_schedule import REMOVALS_UID
from shiftergw.store.legacy_documents import READY_WORDS
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import (
    IMAGES,
    OWNER,
    TRIES,
    change,
    document_at,
    id_of,
    owned_document,
    pin_filter,
    record_of,
    storable,
    too_busy,
    update_of,
)
from shiftergw.store.waits import check_postponed

QUEUE_CHECKS = 6
"""How often a full queue is checked: other claims may be about to be withdrawn."""

CHECK_BACKOFF = Backoff(0.04)
"""The longest pauses between two checks; the actual pauses are random."""


async def claim(
    db: Database, request: PullRequest, now: float, limits: QueueLimits | None
) -> tuple[ImageRecord, bool]:
    """Find or create the record in flight for this claim; the index of claims admits only one.

    The limits hold without a lock. A record counts from the moment it is written, and a caller that
    then counts one too many withdraws its own record. Of several callers at once the last one
    counts the records of all others, so the limit is never exceeded. They check again after random
    pauses; otherwise they could all refuse each other.
    """
    checks = 0
    for _ in range(TRIES):
        in_flight = await db.first(queries.in_flight(request.claim))
        if in_flight is not None:
            return record_of(in_flight), False
        refusal = None if limits is None else await _refusal(db, request.requested_by, limits, 0)
        if refusal is None:
            document = {"_id": ObjectId(documents.new_key(now))}
            document |= storable(documents.new_claim(request, now))
            if not await _insert(db, document):
                continue
            if limits is not None:
                refusal = await _refusal(db, request.requested_by, limits, 1)
            if refusal is None or not await _withdraw(db, document):
                await _forget_earlier(db, request, document["_id"])
                return record_of(document), True
        checks += 1
        if checks == QUEUE_CHECKS:
            raise refusal
        await CHECK_BACKOFF.pause(checks, db.clock, random.random())  # noqa: S311 - no secret
    raise too_busy()


async def _insert(db: Database, document: Document) -> bool:
    """Insert a claim; return False if another caller's claim was quicker."""
    try:
        await db.insert(IMAGES, [document])
    except DuplicateKeyError:
        # The claim in the database is our own if the command was sent twice.
        return await document_at(db, str(document["_id"])) is not None
    return True


async def _refusal(db: Database, uid: int, limits: QueueLimits, own_count: int) -> TooMany | None:
    """Return the error if there is no room for one pull more, else None.

    `own_count` is 1 if that pull is in the database already, else 0.
    """
    pulls_of_user = await db.count(IMAGES, queries.waiting(uid)) - own_count
    if pulls_of_user >= limits.waiting_per_user:
        return TooMany(
            f"You have {pulls_of_user} pulls waiting, and may have {limits.waiting_per_user}.",
            remedy="Wait until some of them are done, or ask the site's support to raise"
            " UserLimits.waiting.",
        )
    if await db.count(IMAGES, queries.waiting()) - own_count >= limits.waiting:
        return TooMany("The gateway's queue is full (QueueLimit).")
    return None


async def _withdraw(db: Database, document: Document) -> bool:
    """Remove a claim unless an attempt has begun; return whether it is removed."""
    removed_count, is_repeated = await db.delete(IMAGES, _without_attempt(document["_id"]))
    return removed_count > 0 or is_repeated


def _without_attempt(key: ObjectId) -> Document:
    """Return the filter for a claim that no attempt has begun."""
    return {"_id": key, **queries.waiting(), "attempt": {"$in": [0, None]}}


async def _forget_earlier(db: Database, request: PullRequest, claim: ObjectId) -> None:
    """Remove earlier FAILUREs of the claim's tag that the requester could see.

    Also remove work that an original gateway has begun and will never end. The claim itself stays:
    another gateway may have begun and ended it by now.
    """
    query = queries.pulls_of(request.system, request.itype, request.tag)
    for document in await db.find(query):
        if document["_id"] == claim:
            continue
        if document.get("claim") is None and _is_superseded(document, request.requested_by):
            await db.delete(IMAGES, pin_filter(document, "status", "claim"))


def _is_superseded(document: Document, uid: int) -> bool:
    """Return whether a new pull of this user replaces a record that is not in flight."""
    status = document.get("status")
    if not isinstance(status, str) or status in {*READY_WORDS, State.EXPIRING, State.EXPIRED}:
        return False
    is_private = status == State.FAILURE and document.get("own_failure")
    return not is_private or document.get("requested_by") == uid


@dataclass
class UnconfirmedBegins:
    """The tries of this process to begin a record that the server has not confirmed, by time."""

    key: str = ""
    times: set[float] = field(default_factory=set)

    def add(self, key: str, now: float) -> None:
        """Note a try; forget those of another record."""
        if key != self.key:
            self.key, self.times = key, set()
        self.times.add(now)

    def include(self, document: Document, runner: str) -> bool:
        """Return whether one of these tries has begun the attempt in a document."""
        is_same_record = document.get("runner") == runner and str(document["_id"]) == self.key
        return is_same_record and document.get("last_heartbeat") in self.times


async def begin(
    db: Database,
    unconfirmed_begins: UnconfirmedBegins,
    key: str,
    runner: str,
    now: float,
    limit: float,
) -> ImageRecord | None:
    """Start the next attempt, unless there is nothing to do; see `ImageStore.begin`.

    A write may raise `Unavailable` although the primary server has made it, if most members of the
    replica set did not confirm it in time. The next call then continues the attempt of that write.
    Otherwise the attempt would seem to live, and later to have died: as long as the replica set is
    not healthy, each call would cost the record one attempt.
    """
    for _ in range(TRIES):
        document = await document_at(db, key)
        if document is None or document.get("claim") is None:
            return None
        state = State(document["status"])
        attempt = documents.begin_attempt(document, runner, now)
        if not may_begin(document, now, limit):
            if not unconfirmed_begins.include(document, runner):
                return None
            attempt = Change({"last_heartbeat": now})
        check_restart(state)
        pins = ("claim", "attempt", "last_heartbeat", "not_before", "status", "runner")
        try:
            new_document = await change(db, document, pins, attempt)
        except Unavailable:
            unconfirmed_begins.add(key, now)
            raise
        if new_document is not None:
            unconfirmed_begins.times.clear()
            uid = REMOVALS_UID if state is State.EXPIRING else document.get("requested_by") or 0
            await _note_turn(db, uid, now)
            return record_of(new_document)
    raise too_busy()


async def _note_turn(db: Database, uid: int, now: float) -> None:
    """Note when a user's work was begun; a failure does not harm the work itself."""
    with suppress(Unavailable, DuplicateKeyError):
        turn = {"$set": {"served": now}}
        await db.update(queries.TURNS, {"_id": uid}, turn, upsert=True, durable=False)


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
    """End an attempt and postpone the work; see `ImageStore.postpone`.

    The postponed pulls are counted first, so a few callers at once may exceed the limits.
    """
    for _ in range(TRIES):
        document = await owned_document(db, key, attempt)
        check_step(State(document["status"]), State.PENDING)
        if limits is not None:
            if cause == "system":
                all_pulls = await db.find(queries.all_postponed())
                pulls = [pull for pull in all_pulls if pull["system"] == document["system"]]
            else:
                pulls = await db.find(queries.postponed_for(document.get("location")))
            users = [pull.get("requested_by") for pull in pulls]
            check_postponed(len(pulls), users.count(document.get("requested_by")), limits, cause)
        postponement = documents.postpone(document, not_before, why, now, cause)
        new_document = await change(db, document, OWNER, postponement)
        if new_document is not None:
            return record_of(new_document)
    raise too_busy()


async def advance(
    db: Database, key: str, attempt: int, state: State, message: str, now: float
) -> None:
    """Step to another state; see `ImageStore.advance`."""
    for _ in range(TRIES):
        document = await owned_document(db, key, attempt)
        old = State(document["status"])
        check_step(old, state)
        if State.PENDING in (old, state) or state not in POLLING_STATES:
            raise IllegalStepError(f"`advance` does not lead from {old} to {state}")
        changes = documents.advance(state, message, now)
        if await change(db, document, OWNER, changes) is not None:
            return
    raise too_busy()


async def requeue(db: Database, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
    """End an attempt without a result; see `ImageStore.requeue`."""
    for _ in range(TRIES):
        document = await owned_document(db, key, attempt)
        changes = documents.requeue(document, message, died=died)
        new_document = await change(db, document, OWNER, changes)
        if new_document is not None:
            return record_of(new_document)
    raise too_busy()


async def heartbeat(db: Database, key: str, attempt: int, beat: Change) -> None:
    """Write a heartbeat; read the document only if the write matched none."""
    object_id = id_of(key)
    if object_id is None:
        raise Superseded("This work has ended.")
    record = {"_id": object_id, "claim": {"$gt": ""}, "attempt": attempt, "runner": {"$ne": None}}
    for _ in range(TRIES):
        if await db.update(IMAGES, record, update_of(beat), durable=False):
            return
        await owned_document(db, key, attempt)
    raise too_busy()


async def abandon(db: Database, key: str) -> None:
    """Remove a record that no attempt has begun."""
    object_id = id_of(key)
    if object_id is not None:
        await db.delete(IMAGES, _without_attempt(object_id))
