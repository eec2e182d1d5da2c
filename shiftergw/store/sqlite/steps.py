"""The steps of work as SQLite does them: each runs inside one IMMEDIATE transaction.

So nothing changes between what a step reads and what it writes.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from shiftergw.errors import TooMany
from shiftergw.model import (
    Expired,
    Failed,
    ImageRecord,
    PostponeLimits,
    PullRequest,
    QueueLimits,
    Ready,
)
from shiftergw.states import (
    POLLED,
    IllegalStepError,
    State,
    WaitCause,
    check_restart,
    check_step,
)
from shiftergw.store import attempts, documents, legacy_documents
from shiftergw.store.documents import Change
from shiftergw.store.fair_schedule import REMOVALS_UID
from shiftergw.store.sqlite import images, queries, rows
from shiftergw.store.waits import check_postponed


def claim(
    db: sqlite3.Connection, request: PullRequest, now: float, limits: QueueLimits | None
) -> tuple[ImageRecord, bool]:
    """Find or make the record in flight for this claim."""
    row = db.execute(queries.IN_FLIGHT, (request.claim,)).fetchone()
    if row is not None:
        return rows.record_of(row), False
    if limits is not None:
        _check_limits(db, request.requested_by, limits)
    place = (request.system, request.itype, request.tag)
    db.execute(queries.FORGET_EARLIER, (*place, request.requested_by))
    return rows.add(db, documents.new_key(now), documents.new_claim(request, now)), True


def _check_limits(db: sqlite3.Connection, uid: int, limits: QueueLimits) -> None:
    own: int = db.execute(queries.COUNT_WAITING_OF_USER, (uid,)).fetchone()[0]
    if own >= limits.waiting_per_user:
        raise TooMany(
            f"You have {own} pulls waiting, and may have {limits.waiting_per_user}.",
            remedy="Wait until some of them are done, or ask the site's support to raise"
            " UserLimits.waiting.",
        )
    if db.execute(queries.COUNT_WAITING).fetchone()[0] >= limits.waiting:
        raise TooMany("The gateway's queue is full (QueueLimit).")


def begin(
    db: sqlite3.Connection, key: str, runner: str, now: float, limit: float
) -> ImageRecord | None:
    """Start the next attempt, unless there is nothing to do."""
    document = rows.document_at(db, key)
    if document is None or document.get("claim") is None:
        return None
    if not attempts.may_begin(document, now, limit):
        return None
    state = State(document["status"])
    check_restart(state)
    uid = document.get("requested_by") or 0
    db.execute(queries.SERVE, (REMOVALS_UID if state is State.EXPIRING else uid, now))
    return rows.change(db, key, document, documents.begin_attempt(document, runner, now))


def postpone(
    db: sqlite3.Connection,
    key: str,
    attempt: int,
    not_before: float,
    why: str,
    now: float,
    limits: PostponeLimits | None,
    cause: WaitCause,
) -> ImageRecord:
    """End an attempt and have the work wait until a time."""
    document = _owned(db, key, attempt)
    check_step(State(document["status"]), State.PENDING)
    if limits is not None:
        query, place = queries.COUNT_POSTPONED, "location"
        if cause == "system":
            query, place = queries.COUNT_POSTPONED_FOR_SYSTEM, "system"
        values = document.get("requested_by"), document.get(place)
        together, own = db.execute(query, values).fetchone()
        check_postponed(together, own, limits, cause)
    change = documents.postpone(document, not_before, why, now, cause)
    return rows.change(db, key, document, change)


def advance(
    db: sqlite3.Connection, key: str, attempt: int, state: State, message: str, now: float
) -> None:
    """Step to another state of work."""
    document = _owned(db, key, attempt)
    old = State(document["status"])
    check_step(old, state)
    if State.PENDING in (old, state) or state not in POLLED:
        raise IllegalStepError(f"`advance` does not lead from {old} to {state}")
    rows.change(db, key, document, documents.advance(state, message, now))


def requeue(
    db: sqlite3.Connection, key: str, attempt: int, message: str, *, died: bool
) -> ImageRecord:
    """End an attempt without a result."""
    document = _owned(db, key, attempt)
    return rows.change(db, key, document, documents.requeue(document, message, died=died))


def heartbeat(db: sqlite3.Connection, key: str, attempt: int, change: Change) -> None:
    """Write a sign of life."""
    rows.change(db, key, _owned(db, key, attempt), change)


def finish(
    db: sqlite3.Connection,
    key: str,
    attempt: int,
    outcome: Ready | Expired | Failed,
    now: float,
) -> ImageRecord:
    """End the work; return the record that remains."""
    document = _owned(db, key, attempt)
    old = State(document["status"])
    if old is State.EXPIRING:
        return _end_removal(db, key, document, outcome, now)
    match outcome:
        case Ready():
            check_step(old, State.READY)
            return _deliver(db, key, document, outcome, now)
        case Failed():
            check_step(old, State.FAILURE)
            return rows.change(db, key, document, documents.fail(outcome, now))
        case Expired():
            raise IllegalStepError(f"no removal is {old}")


def _end_removal(
    db: sqlite3.Connection,
    key: str,
    document: dict[str, Any],
    outcome: Ready | Expired | Failed,
    now: float,
) -> ImageRecord:
    match outcome:
        case Expired():
            return rows.change(db, key, document, documents.end_removal(now))
        case Failed():
            return rows.change(db, key, document, documents.defer_removal(outcome, now))
        case Ready():
            raise IllegalStepError("a removal does not end with an image")


def _deliver(
    db: sqlite3.Connection, key: str, document: dict[str, Any], outcome: Ready, now: float
) -> ImageRecord:
    """End a pull: the one READY record of the image gets its tag, nobody else has it."""
    system, itype, tag = document["system"], document["itype"], document.get("pulltag")
    # The image may be there already, under other tags: then that record takes this one's place.
    held = images.held(db, system, itype, outcome.id)
    if held is not None:
        db.execute(queries.REMOVE, (key,))
        key, document = held
    tags = legacy_documents.read_tags(document)
    if tag is not None and tag not in tags:
        tags.append(tag)
    ready = documents.become_ready(outcome, now)
    record = rows.change(db, key, document, Change({**ready.members, "tag": tags}, ready.without))
    if tag is not None:
        images.take_tag(db, (system, itype, tag), key, outcome.untagged_until)
    if images.blocked(db, outcome.directory, [outcome.id]):
        # An admin took it down while it was delivered.
        return images.expire(db, key, None) or record
    return record


def abandon(db: sqlite3.Connection, key: str) -> None:
    """Remove a record that no attempt has begun."""
    db.execute(queries.ABANDON, (key,))


def _owned(db: sqlite3.Connection, key: str, attempt: int) -> dict[str, Any]:
    """Return the document if it is in flight and this attempt's; raise `Superseded` if not."""
    return attempts.check_owner(rows.document_at(db, key), attempt)
