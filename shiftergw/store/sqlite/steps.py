"""The steps of work in SQLite: each runs inside one IMMEDIATE transaction.

So nothing changes between the reads and the writes of a step.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from shiftergw.errors import TooMany
from shiftergw.model.postponement import PostponeLimits
from shiftergw.model.records import Expired, Failed, ImageRecord, Ready
from shiftergw.model.requests import PullRequest, QueueLimits
from shiftergw.states import (
    POLLING_STATES,
    IllegalStepError,
    State,
    WaitCause,
    check_restart,
    check_step,
)
from shiftergw.store import attempts, documents
from shiftergw.store.documents import Change
from shiftergw.store.fair_schedule import REMOVALS_UID
from shiftergw.store.legacy_documents import read_tags
from shiftergw.store.sqlite import images, queries, rows
from shiftergw.store.waits import check_postponed


def claim(
    db: sqlite3.Connection, request: PullRequest, now: float, limits: QueueLimits | None
) -> tuple[ImageRecord, bool]:
    """Find or create the record in flight for this claim; see `ImageStore.claim`."""
    row = db.execute(queries.IN_FLIGHT, (request.claim,)).fetchone()
    if row is not None:
        return rows.record_of(row), False
    if limits is not None:
        _check_limits(db, request.requested_by, limits)
    place = (request.system, request.itype, request.tag)
    db.execute(queries.FORGET_EARLIER, (*place, request.requested_by))
    return rows.add(db, documents.new_key(now), documents.new_claim(request, now)), True


def _check_limits(db: sqlite3.Connection, uid: int, limits: QueueLimits) -> None:
    pulls_of_user: int = db.execute(queries.COUNT_WAITING_OF_USER, (uid,)).fetchone()[0]
    if pulls_of_user >= limits.waiting_per_user:
        raise TooMany(
            f"You have {pulls_of_user} pulls waiting, and may have {limits.waiting_per_user}.",
            remedy="Wait until some of them are done, or ask the site's support to raise"
            " UserLimits.waiting.",
        )
    if db.execute(queries.COUNT_WAITING).fetchone()[0] >= limits.waiting:
        raise TooMany("The gateway's queue is full (QueueLimit).")


def begin(
    db: sqlite3.Connection, key: str, runner: str, now: float, limit: float
) -> ImageRecord | None:
    """Start the next attempt, unless there is nothing to do; see `ImageStore.begin`."""
    document = rows.document_at(db, key)
    if document is None or document.get("claim") is None:
        return None
    if not attempts.may_begin(document, now, limit):
        return None
    state = State(document["status"])
    check_restart(state)
    uid = document.get("requested_by") or 0
    db.execute(queries.NOTE_TURN, (REMOVALS_UID if state is State.EXPIRING else uid, now))
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
    """End an attempt and postpone the work; see `ImageStore.postpone`."""
    document = _owned_document(db, key, attempt)
    check_step(State(document["status"]), State.PENDING)
    if limits is not None:
        query, member = queries.COUNT_POSTPONED, "location"
        if cause == "system":
            query, member = queries.COUNT_POSTPONED_FOR_SYSTEM, "system"
        values = document.get("requested_by"), document.get(member)
        postponed_count, user_count = db.execute(query, values).fetchone()
        check_postponed(postponed_count, user_count, limits, cause)
    change = documents.postpone(document, not_before, why, now, cause)
    return rows.change(db, key, document, change)


def advance(
    db: sqlite3.Connection, key: str, attempt: int, state: State, message: str, now: float
) -> None:
    """Step to another state; see `ImageStore.advance`."""
    document = _owned_document(db, key, attempt)
    old = State(document["status"])
    check_step(old, state)
    if State.PENDING in (old, state) or state not in POLLING_STATES:
        raise IllegalStepError(f"`advance` does not lead from {old} to {state}")
    rows.change(db, key, document, documents.advance(state, message, now))


def requeue(
    db: sqlite3.Connection, key: str, attempt: int, message: str, *, died: bool
) -> ImageRecord:
    """End an attempt without a result; see `ImageStore.requeue`."""
    document = _owned_document(db, key, attempt)
    return rows.change(db, key, document, documents.requeue(document, message, died=died))


def heartbeat(db: sqlite3.Connection, key: str, attempt: int, change: Change) -> None:
    """Write a heartbeat; see `ImageStore.heartbeat`."""
    rows.change(db, key, _owned_document(db, key, attempt), change)


def finish(
    db: sqlite3.Connection,
    key: str,
    attempt: int,
    outcome: Ready | Expired | Failed,
    now: float,
) -> ImageRecord:
    """End the work and return the record that remains; see `ImageStore.finish`."""
    document = _owned_document(db, key, attempt)
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
    """End a pull: the one READY record of the image gets the tag, all other records lose it."""
    system, itype, tag = document["system"], document["itype"], document.get("pulltag")
    # If the image has a record with other tags already, that record replaces the one of the pull.
    pull, image = document, images.find_image(db, system, itype, outcome.id)
    if image is not None:
        db.execute(queries.REMOVE, (key,))
        key, document = image
    tags = read_tags(document)
    if tag is not None and tag not in tags:
        tags.append(tag)
    ready = documents.become_ready(document, pull, outcome, now)
    record = rows.change(db, key, document, Change({**ready.members, "tag": tags}, ready.without))
    if tag is not None:
        images.take_tag(db, (system, itype, tag), key, outcome.untagged_until)
    if images.is_blocked(db, outcome.directory, [outcome.id]):
        # An admin has blocked the image during the delivery.
        return images.expire(db, key) or record
    return record


def abandon(db: sqlite3.Connection, key: str) -> None:
    """Remove a record that no attempt has begun."""
    db.execute(queries.ABANDON, (key,))


def _owned_document(db: sqlite3.Connection, key: str, attempt: int) -> dict[str, Any]:
    """Return the document if this attempt may change it; raise `Superseded` if not."""
    return attempts.check_owner(rows.document_at(db, key), attempt)
