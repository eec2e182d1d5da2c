"""What each step writes, as plain documents: the same for every kind of store.

The members and their names are those of the original gateway, so that a site can go forth and back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shiftergw.errors import Superseded
from shiftergw.model import Failed, Progress, PullRequest, Ready, document_of
from shiftergw.states import State, WaitCause
from shiftergw.store.legacy_documents import read_number, read_time
from shiftergw.store.waits import waiting_message

_OF_THE_ORIGINAL = {
    "format": "squashfs",
    "arch": "amd64",
    "os": "linux",
    "remotetype": "dockerv2",
    "ostcount": "0",
    "replication": "1",
}
"""Members that the original writes into each new record; what is READY says what is true."""

MOVED_TAGS = "moved"
"""Member of a record that is to go: those of its tags that another image has got meanwhile.

It keeps its tags as they were, but would come back without these.
"""

UNFINISHED_STEPS = "finishing"
"""Member of a record that became READY while the rest of its `finish` is still to be done."""

EARLIER_ATTEMPTS = "earlier"
"""Member of a record whose removal was asked for: how many attempts there had been by then.

A removal that waits has none yet; those to come are counted on from these.
"""

INTERNAL_MEMBERS = frozenset({"_id", MOVED_TAGS, UNFINISHED_STEPS, EARLIER_ATTEMPTS})
"""Members of documents that no record has."""

CLOCK_TOLERANCE = 5.0
"""Seconds by which the clocks of two machines may differ."""

_WAITED: Mapping[WaitCause, str] = {
    "registry": "waited",
    "pull": "waited_for_pulls",
    "system": "waited_for_system",
}
"""The member that counts the waits for each cause."""

_PROGRESS = ("stage", "done", "total")
_POSTPONED_ONLY = ("not_before", "waits_for")
_IN_FLIGHT_ONLY = (
    "claim", "sealed", "by_admin", "runner", "deaths", "waited", "waited_for_pulls",
    "waited_for_system", "requester", *_POSTPONED_ONLY, *_PROGRESS,
)  # fmt: skip
_NOT_OF_IMAGES = ("with_login", *_IN_FLIGHT_ONLY)
_REMOVAL_ONLY = ("last_heartbeat", *_IN_FLIGHT_ONLY)
# By `attempt` a record of ours is told from another program's: all of them keep it.


@dataclass(frozen=True, slots=True)
class Change:
    """Members of a document to set, by their names there, and members to take away."""

    members: Mapping[str, Any]
    without: tuple[str, ...] = field(default=())

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changed document; members that nobody named stay as they are."""
        kept = {name: value for name, value in document.items() if name not in self.without}
        return {**kept, **self.members}


def new_key(now: float) -> str:
    """Return a fresh key of 24 hexadecimal digits, as MongoDB's ObjectId has.

    Four bytes of seconds, as there; then two of their fraction, so that keys sort by age.
    """
    ticks = int(now * 65536).to_bytes(6, "big")
    return (ticks + os.urandom(6)).hex()


def holder_of(text: str) -> tuple[str, int]:
    """Return the key of the record, and the attempt at it, that hold a lease."""
    key, _, number = text.rpartition("/")
    return key, int(number)


def follows(holder: str, other: str) -> bool:
    """Say whether a lease is the holder's own, or that of an earlier attempt at his record."""
    (key, number), (other_key, other_number) = holder_of(holder), holder_of(other)
    return key == other_key and number >= other_number


def is_over(document: Mapping[str, Any] | None, attempt: int) -> bool:
    """Say whether an attempt at what is now this document, or none, has come to its end.

    It begins nothing any more then: it is asked for its number before each file. One that it was in
    the middle of while its process stood still may yet get its name, but no new metadata.
    """
    if document is None:
        return True
    if is_requeued(document):
        return True
    works = document.get("claim") is not None or UNFINISHED_STEPS in document
    return not works or (read_number(document.get("attempt")) or 0) > attempt


def is_requeued(document: Mapping[str, Any]) -> bool:
    """Return whether the last attempt at work in flight has ended without a result."""
    begun = (read_number(document.get("attempt")) or 0) > 0
    return begun and document.get("claim") is not None and document.get("runner") is None


def check_owned(document: Mapping[str, Any] | None, attempt: int) -> dict[str, Any]:
    """Return the document if this attempt may change it; raise `Superseded` if not."""
    if document is None or document.get("claim") is None:
        raise Superseded("This work has ended.")
    if document.get("attempt") != attempt:
        raise Superseded(f"Attempt {attempt} was superseded by {document.get('attempt')}.")
    if is_requeued(document):
        raise Superseded(f"Attempt {attempt} has ended without a result.")
    return dict(document)


def claimed(request: PullRequest, now: float) -> dict[str, Any]:
    """Return the document of work that nobody has begun."""
    changes = {
        "system": request.system,
        "itype": request.itype,
        "tags": (),
        "pulltag": request.tag,
        "status": State.PENDING,
        "status_message": "",
        "user_acl": request.user_acl,
        "group_acl": request.group_acl,
        "private": None,
        "last_pull": now,
        "claim": request.claim,
        "kind": request.kind,
        "attempt": 0,
        "requested_by": request.requested_by,
        "request_id": request.request_id,
    }
    if request.requester:
        changes["requester"] = request.requester
    if request.by_admin:
        changes["by_admin"] = True
    if request.location is not None:
        changes["location"] = request.location
    if request.sealed is not None:
        changes |= {"sealed": request.sealed, "with_login": True}
    return _OF_THE_ORIGINAL | document_of(changes)


def begun(document: Mapping[str, Any], runner: str, now: float) -> Change:
    """Return the change that starts the next attempt; a removal stays what it is."""
    expiring = document["status"] == State.EXPIRING
    state = State.EXPIRING if expiring else State.PULLING
    changes = {
        "status": state,
        "status_message": str(state),
        "attempt": _attempts(document) + 1,
        "runner": runner,
        "last_heartbeat": now,
    }
    if document.get("attempt") and document.get("runner") is not None and not expiring:
        changes["deaths"] = _deaths(document) + 1  # the worker of the attempt before has vanished
    return Change(document_of(changes), (*_PROGRESS, *_POSTPONED_ONLY))


def requeued(document: Mapping[str, Any], message: str, *, died: bool) -> Change:
    """Return the change that ends an attempt without a result; see `ImageStore.requeue`."""
    if document["status"] == State.EXPIRING:
        # A death leaves the heartbeat, as `put_off` does, so that the next try comes only later.
        beat = () if died else ("last_heartbeat",)
        return Change({}, ("runner", *beat, *_PROGRESS))
    changes: dict[str, Any] = {"status": State.PENDING, "status_message": message}
    if died:
        changes["deaths"] = _deaths(document) + 1
    return Change(document_of(changes), ("runner", "last_heartbeat", *_PROGRESS))


def _deaths(document: Mapping[str, Any]) -> int:
    return int(read_number(document.get("deaths")) or 0)


def _attempts(document: Mapping[str, Any]) -> int:
    return int(max(read_number(document.get(name)) or 0 for name in ("attempt", EARLIER_ATTEMPTS)))


def may_begin(document: Mapping[str, Any], now: float, limit: float) -> bool:
    """Return whether the next attempt may begin: nobody works on it, and its time has come."""
    if read_time(document, "not_before") > now + CLOCK_TOLERANCE:
        return False
    beat = document.get("last_heartbeat")
    return not document.get("attempt") or beat is None or now - beat >= limit


def postponed(
    document: Mapping[str, Any], not_before: float, why: str, now: float, cause: WaitCause
) -> Change:
    """Return the change that ends an attempt and has the work wait until a time."""
    name = _WAITED[cause]
    changes = {
        "status": State.PENDING,
        "status_message": waiting_message(not_before, why, now),
        "not_before": not_before,
        "waits_for": why,
        name: read_time(document, name) + max(0.0, not_before - now),
    }
    return Change(document_of(changes), ("runner", "last_heartbeat", *_PROGRESS))


def advanced(state: State, message: str, now: float) -> Change:
    """Return the change of a step to `state`."""
    return Change(
        document_of({"status": state, "status_message": message, "last_heartbeat": now}), _PROGRESS
    )


def alive(progress: Progress, now: float, message: str | None) -> Change:
    """Return the change of a heartbeat."""
    changes = {
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
        "last_heartbeat": now,
    }
    return Change(changes if message is None else changes | {"status_message": message})


def ready(outcome: Ready, now: float) -> Change:
    """Return what `outcome` says of the READY record, whichever it is; tags come on top."""
    changes = {**outcome.changes, "id": outcome.id, "status": State.READY, "last_pull": now}
    return Change(document_of(changes), _NOT_OF_IMAGES)


def failed(outcome: Failed, now: float) -> Change:
    """Return the change that ends work in FAILURE."""
    changes = {
        "status": State.FAILURE,
        "status_message": outcome.cause,
        "stage": outcome.stage,
        "cause": outcome.cause,
        "remedy": outcome.remedy,
        "retryable": outcome.retryable,
        "own_failure": outcome.own,
        "last_pull": now,
    }
    return Change(document_of(changes), _IN_FLIGHT_ONLY)


def expiring(document: Mapping[str, Any], key: str) -> Change:
    """Return the change that makes the removal of an image's files work to do."""
    changes = {
        "status": State.EXPIRING,
        "status_message": "EXPIRING",
        # No reference begins like this.
        "claim": f"{document['system']}/{document.get('itype')}/@{key}",
        "kind": "expire",
        "attempt": 0,
    }
    earlier = _attempts(document)
    kept = {EARLIER_ATTEMPTS: earlier} if earlier else {}
    return Change({**document_of(changes), **kept}, ("last_heartbeat",))


def expired(now: float) -> Change:
    """Return the change that ends a removal; tags and id stay, as in the original."""
    changes = {"status": State.EXPIRED, "status_message": "EXPIRED", "last_pull": now}
    return Change(document_of(changes), _IN_FLIGHT_ONLY)


def put_off(outcome: Failed, now: float) -> Change:
    """Return the change that has a removal tried again once its heartbeat is old."""
    changes = {"status_message": outcome.cause, "last_heartbeat": now}
    return Change(changes, ("runner", *_PROGRESS))


def taken_back(message: str, tags: Sequence[str]) -> Change:
    """Return the change that ends a removal with the files still there."""
    changes = {
        "status": State.READY,
        "status_message": message,
        "kind": "pull",
        "tags": tuple(tags),
    }
    return Change(document_of(changes), _REMOVAL_ONLY)


def untagged(document: Mapping[str, Any], tags: Sequence[str], until: float) -> Change:
    """Return the change that leaves these tags; without any, the files stay `until` at least."""
    if tags or until <= read_time(document, "expiration"):
        return Change({"tag": list(tags)})
    return Change({"tag": list(tags), "expiration": until})


def readable_by(private: bool, user_acl: Sequence[int], group_acl: Sequence[int]) -> Change:
    """Return the change that sets who may read an image."""
    changes = {"private": private, "user_acl": tuple(user_acl), "group_acl": tuple(group_acl)}
    return Change(document_of(changes))
