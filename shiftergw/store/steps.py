"""The steps of work as SQLite does them: each runs inside one IMMEDIATE transaction.

So nothing changes between what a step reads and what it writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from shiftergw.errors import Superseded
from shiftergw.model import Failed, ImageRecord, PullRequest, Ready
from shiftergw.states import (
    POLLED,
    IllegalStepError,
    State,
    check_restart,
    check_step,
)
from shiftergw.store import documents
from shiftergw.store.documents import Change

Row = tuple[str, str]
"""Key and document."""

# What the requester could see of earlier ends of this tag, and what an original gateway had begun
# and will never end. (`claim IS NULL AND status <> 'READY'` names the index.)
EARLIER = """
    DELETE FROM images
    WHERE system = ? AND itype = ? AND pulltag = ? AND claim IS NULL AND status <> 'READY'
    AND status NOT IN ('EXPIRING', 'EXPIRED')
    AND (status <> 'FAILURE' OR own_failure IS NOT 1 OR requested_by IS ?)
"""

READY_OF_ID = """
    SELECT key, document FROM images WHERE system = ? AND id = ? AND status = 'READY' AND itype = ?
    ORDER BY last_pull DESC, key DESC LIMIT 1
"""


def record_of(row: Row) -> ImageRecord:
    """Return the record of a row."""
    key, text = row
    document: dict[str, Any] = json.loads(text)
    document["_id"] = key
    return ImageRecord.from_document(document)


def records_of(rows: Iterable[Row]) -> list[ImageRecord]:
    """Return the records of rows."""
    return [record_of(row) for row in rows]


def claim(db: sqlite3.Connection, request: PullRequest, now: float) -> tuple[ImageRecord, bool]:
    """Find or make the record in flight for this claim."""
    row = db.execute(
        "SELECT key, document FROM images WHERE claim = ?", (request.claim,)
    ).fetchone()
    if row is not None:
        return record_of(row), False
    db.execute(EARLIER, (request.system, request.itype, request.tag, request.requested_by))
    key, document = documents.new_key(now), documents.claimed(request, now)
    db.execute("INSERT INTO images (key, document) VALUES (?, ?)", (key, _text(document)))
    return ImageRecord.from_document(document | {"_id": key}), True


def begin(
    db: sqlite3.Connection, key: str, runner: str, now: float, limit: float
) -> ImageRecord | None:
    """Start the next attempt, unless there is nothing to do."""
    document = _document(db, key)
    if document is None or document.get("claim") is None:
        return None
    attempt, beat = document.get("attempt") or 0, document.get("last_heartbeat")
    if attempt and beat is not None and now - beat < limit:
        return None
    check_restart(State(document["status"]))
    db.execute(
        "INSERT OR REPLACE INTO turns (uid, served) VALUES (?, ?)",
        (document.get("requested_by") or 0, now),
    )
    return _change(db, key, document, documents.begun(attempt + 1, runner, now))


def advance(
    db: sqlite3.Connection, key: str, attempt: int, state: State, message: str, now: float
) -> None:
    """Step to another state of work."""
    document = _owned(db, key, attempt)
    old = State(document["status"])
    check_step(old, state)
    if old is State.PENDING or state not in POLLED:
        raise IllegalStepError(f"`begin` and `finish` lead from {old} to {state}, not `advance`")
    _change(db, key, document, documents.advanced(state, message, now))


def heartbeat(db: sqlite3.Connection, key: str, attempt: int, change: Change) -> None:
    """Write a sign of life."""
    _change(db, key, _owned(db, key, attempt), change)


def finish(
    db: sqlite3.Connection, key: str, attempt: int, outcome: Ready | Failed, now: float
) -> ImageRecord:
    """End the work; return the record that remains."""
    document = _owned(db, key, attempt)
    old = State(document["status"])
    if isinstance(outcome, Failed):
        check_step(old, State.FAILURE)
        return _change(db, key, document, documents.failed(outcome, now))
    check_step(old, State.READY)
    system, itype, tag = document["system"], document["itype"], document.get("pulltag")
    # The image may be there already, under other tags: then that record takes this one's place.
    row = db.execute(READY_OF_ID, (system, outcome.id, itype)).fetchone()
    if row is not None:
        db.execute("DELETE FROM images WHERE key = ?", (key,))
        key, document = row[0], json.loads(row[1])
    tags = documents.tags_of(document)
    if tag is not None and tag not in tags:
        tags.append(tag)
    change = documents.ready(outcome, now)
    record = _change(db, key, document, Change({**change.members, "tag": tags}, change.without))
    if tag is not None:
        _take_tag(db, (system, itype, tag), key)
    return record


def _take_tag(db: sqlite3.Connection, place: tuple[str, str, str], new_owner: str) -> None:
    """Take a tag from all READY records of its system and type but one."""
    others = db.execute(
        "SELECT images.key, document FROM tags JOIN images USING (key)"
        " WHERE tags.system = ? AND tags.itype = ? AND tags.tag = ? AND tags.key <> ?",
        (*place, new_owner),
    ).fetchall()
    for key, text in others:
        document = json.loads(text)
        left = [tag for tag in documents.tags_of(document) if tag != place[2]]
        _change(db, key, document, Change({"tag": left}))


def abandon(db: sqlite3.Connection, key: str) -> None:
    """Remove a record that no attempt has begun."""
    db.execute(
        "DELETE FROM images WHERE key = ? AND claim IS NOT NULL AND status = 'PENDING'"
        " AND ifnull(attempt, 0) = 0",
        (key,),
    )


def renew(db: sqlite3.Connection, key: str, expiration: float) -> None:
    """Put off the expiration of a READY record."""
    row = db.execute(
        "SELECT document FROM images WHERE key = ? AND status = 'READY'"
        " AND (expiration IS NULL OR expiration < ?)",
        (key, expiration),
    ).fetchone()
    if row is not None:
        _change(db, key, json.loads(row[0]), Change({"expiration": expiration}))


def _document(db: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    row = db.execute("SELECT document FROM images WHERE key = ?", (key,)).fetchone()
    return None if row is None else json.loads(row[0])


def _owned(db: sqlite3.Connection, key: str, attempt: int) -> dict[str, Any]:
    """Return the document if it is in flight and this attempt's; raise `Superseded` if not."""
    document = _document(db, key)
    if document is None or document.get("claim") is None:
        raise Superseded("This work has ended.")
    if document.get("attempt") != attempt:
        raise Superseded(f"Attempt {attempt} was superseded by {document.get('attempt')}.")
    return document


def _change(
    db: sqlite3.Connection, key: str, document: Mapping[str, Any], change: Change
) -> ImageRecord:
    changed = change.apply(document)
    db.execute("UPDATE images SET document = ? WHERE key = ?", (_text(changed), key))
    return ImageRecord.from_document(changed | {"_id": key})


def _text(document: Mapping[str, Any]) -> str:
    # Plain ASCII: a lone surrogate of a foreign name must not reach SQLite's UTF-8.
    return json.dumps(document, separators=(",", ":"), allow_nan=False)
