"""The changes that each step makes to documents, which are the same for every kind of store.

The members and their names are those of the original gateway, so that a site can switch to this
gateway and back. A function that starts with `new_` returns a document; the others return the
`Change` of a step, which the store applies to the document that it has read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shiftergw.model.records import Failed, Progress, Ready, document_of
from shiftergw.model.requests import ANONYMOUS, PullRequest
from shiftergw.states import State, WaitCause
from shiftergw.store.attempts import UNFINISHED_STEPS
from shiftergw.store.legacy_documents import read_number, read_time
from shiftergw.store.waits import waiting_message

_ORIGINAL_DEFAULTS = {
    "format": "squashfs",
    "arch": "amd64",
    "os": "linux",
    "remotetype": "dockerv2",
    "ostcount": "0",
    "replication": "1",
}
"""Members that the original writes into each new record; `finish` replaces them by true values."""

MOVED_TAGS = "moved"
"""Member of an EXPIRING record: those of its tags that were pulled as another image since.

The record keeps its tags, but loses these if it becomes READY again.
"""

EARLIER_ATTEMPTS = "earlier"
"""Member of a record whose removal was requested: the number of attempts up to then.

A removal that waits has no attempt yet; its attempts continue this count.
"""

INTERNAL_MEMBERS = frozenset({"_id", MOVED_TAGS, UNFINISHED_STEPS, EARLIER_ATTEMPTS})
"""Members of documents that are not attributes of `ImageRecord`."""

_WAIT_COUNTERS: Mapping[WaitCause, str] = {
    "registry": "waited",
    "pull": "waited_for_pulls",
    "system": "waited_for_system",
}
"""The member that counts the seconds waited for each cause."""

_PROGRESS = ("stage", "done", "total", "rate", "time_left", "layers_in_flight")
_POSTPONED_ONLY = ("not_before", "waits_for")
_IN_FLIGHT_ONLY = (
    "claim", "sealed", "by_admin", "runner", "deaths", "waited", "waited_for_pulls",
    "waited_for_system", "requester", *_POSTPONED_ONLY, *_PROGRESS,
)  # fmt: skip
_NOT_OF_IMAGES = ("with_login", *_IN_FLIGHT_ONLY)
_REMOVAL_ONLY = ("last_heartbeat", *_IN_FLIGHT_ONLY)
# `attempt` is in none of these: it tells this program's records from another program's.


@dataclass(frozen=True, slots=True)
class Change:
    """Members of a document to set, by their names in the document, and members to remove."""

    members: Mapping[str, Any]
    without: tuple[str, ...] = field(default=())

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a changed copy of a document; members that the change does not name stay."""
        rest = {name: value for name, value in document.items() if name not in self.without}
        return {**rest, **self.members}


def new_key(now: float) -> str:
    """Return a new record key of 24 hexadecimal digits, like an ObjectId of MongoDB.

    Four bytes are seconds since 1970, as there. The next two are the fraction of the second, so
    that keys sort by age. The rest is random.
    """
    ticks = int(now * 65536).to_bytes(6, "big")
    return (ticks + os.urandom(6)).hex()


def after_prefix(prefix: str) -> str:
    """Return a text that sorts after all image ids with a prefix, and before all later ids."""
    return f"{prefix}g"  # the first letter that is no hexadecimal digit


def new_claim(request: PullRequest, now: float) -> dict[str, Any]:
    """Return the document of a pull that waits for its first attempt."""
    attributes: dict[str, Any] = {
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
    if request.requested_by != ANONYMOUS:
        attributes["only_user"] = request.requested_by
    if request.requester:
        attributes["requester"] = request.requester
    if request.by_admin:
        attributes["by_admin"] = True
    if request.location is not None:
        attributes["location"] = request.location
    if request.upload is not None:
        attributes["upload"] = request.upload
    if request.sealed is not None:
        attributes |= {"sealed": request.sealed, "with_login": True}
    return _ORIGINAL_DEFAULTS | document_of(attributes)


def begin_attempt(document: Mapping[str, Any], runner: str, now: float) -> Change:
    """Return the change that starts the next attempt; a removal stays EXPIRING."""
    is_removal = document["status"] == State.EXPIRING
    state = State.EXPIRING if is_removal else State.PULLING
    attributes = {
        "status": state,
        "status_message": str(state),
        "attempt": _attempts(document) + 1,
        "runner": runner,
        "last_heartbeat": now,
    }
    if document.get("attempt") and document.get("runner") is not None and not is_removal:
        # The worker of the attempt before has vanished.
        attributes["deaths"] = _deaths(document) + 1
    return Change(document_of(attributes), (*_PROGRESS, *_POSTPONED_ONLY))


def requeue(document: Mapping[str, Any], message: str, *, died: bool) -> Change:
    """Return the change that ends an attempt without a result; see `ImageStore.requeue`."""
    if document["status"] == State.EXPIRING:
        # After a death the heartbeat stays, as in `defer_removal`, so that the next attempt waits.
        heartbeat = () if died else ("last_heartbeat",)
        return Change({}, ("runner", *heartbeat, *_PROGRESS))
    attributes: dict[str, Any] = {"status": State.PENDING, "status_message": message}
    if died:
        attributes["deaths"] = _deaths(document) + 1
    return Change(document_of(attributes), ("runner", "last_heartbeat", *_PROGRESS))


def _deaths(document: Mapping[str, Any]) -> int:
    return int(read_number(document.get("deaths")) or 0)


def _attempts(document: Mapping[str, Any]) -> int:
    return int(max(read_number(document.get(name)) or 0 for name in ("attempt", EARLIER_ATTEMPTS)))


def postpone(
    document: Mapping[str, Any], not_before: float, why: str, now: float, cause: WaitCause
) -> Change:
    """Return the change that ends an attempt and makes the work wait until `not_before`."""
    counter = _WAIT_COUNTERS[cause]
    attributes = {
        "status": State.PENDING,
        "status_message": waiting_message(not_before, why, now),
        "not_before": not_before,
        "waits_for": why,
        counter: read_time(document, counter) + max(0.0, not_before - now),
    }
    return Change(document_of(attributes), ("runner", "last_heartbeat", *_PROGRESS))


def advance(state: State, message: str, now: float) -> Change:
    """Return the change that moves work to `state`."""
    attributes = {"status": state, "status_message": message, "last_heartbeat": now}
    return Change(document_of(attributes), _PROGRESS)


def heartbeat(progress: Progress, now: float, message: str | None) -> Change:
    """Return the change of a heartbeat; without a `message` the user's message stays."""
    details = {
        "rate": progress.rate,
        "time_left": progress.time_left,
        "layers_in_flight": [list(layer) for layer in progress.layers] or None,
    }
    members = {
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
        "last_heartbeat": now,
        **{name: value for name, value in details.items() if value is not None},
    }
    if message is not None:
        members["status_message"] = message
    return Change(members, tuple(name for name in details if name not in members))


def become_ready(
    document: Mapping[str, Any], pull: Mapping[str, Any], outcome: Ready, now: float
) -> Change:
    """Return the change that makes a record the READY one of an image; the caller adds the tag.

    `document` is that of the image, or of the `pull` itself. An image that several users have
    pulled has no only user any more.
    """
    attributes = {**outcome.changes, "id": outcome.id, "status": State.READY, "last_pull": now}
    has_only_user = document.get("only_user") == pull.get("only_user")
    without = _NOT_OF_IMAGES if has_only_user else (*_NOT_OF_IMAGES, "only_user")
    return Change(document_of(attributes), without)


def fail(outcome: Failed, now: float) -> Change:
    """Return the change that ends work in FAILURE."""
    attributes = {
        "status": State.FAILURE,
        "status_message": outcome.cause,
        "stage": outcome.stage,
        "cause": outcome.cause,
        "remedy": outcome.remedy,
        "retryable": outcome.retryable,
        "own_failure": outcome.own,
        "last_pull": now,
    }
    return Change(document_of(attributes), _IN_FLIGHT_ONLY)


def request_removal(document: Mapping[str, Any], key: str) -> Change:
    """Return the change that makes a READY record EXPIRING, so that a worker removes its files."""
    attributes = {
        "status": State.EXPIRING,
        "status_message": "EXPIRING",
        # No reference starts with an @, so no pull has this claim.
        "claim": f"{document['system']}/{document.get('itype')}/@{key}",
        "kind": "expire",
        "attempt": 0,
    }
    attempts = _attempts(document)
    attempt_count = {EARLIER_ATTEMPTS: attempts} if attempts else {}
    return Change({**document_of(attributes), **attempt_count}, ("last_heartbeat", "pinned_by"))


def end_removal(now: float) -> Change:
    """Return the change that ends a removal in EXPIRED; tags and id stay, as in the original."""
    attributes = {"status": State.EXPIRED, "status_message": "EXPIRED", "last_pull": now}
    return Change(document_of(attributes), _IN_FLIGHT_ONLY)


def defer_removal(outcome: Failed, now: float) -> Change:
    """Return the change after a failed removal: it is repeated once its heartbeat is old."""
    members = {"status_message": outcome.cause, "last_heartbeat": now}
    return Change(members, ("runner", *_PROGRESS))


def cancel_removal(message: str, tags: Sequence[str]) -> Change:
    """Return the change that makes an EXPIRING record READY again, with these tags."""
    attributes = {
        "status": State.READY,
        "status_message": message,
        "kind": "pull",
        "tags": tuple(tags),
    }
    return Change(document_of(attributes), _REMOVAL_ONLY)


def replace_tags(document: Mapping[str, Any], tags: Sequence[str], until: float) -> Change:
    """Return the change that sets the tags of a READY record.

    Without any tag, the image does not expire before `until`.
    """
    if tags or until <= read_time(document, "expiration"):
        return Change({"tag": list(tags)})
    return Change({"tag": list(tags), "expiration": until})


def set_access(private: bool, user_acl: Sequence[int], group_acl: Sequence[int]) -> Change:
    """Return the change that sets who may read an image."""
    attributes = {"private": private, "user_acl": tuple(user_acl), "group_acl": tuple(group_acl)}
    return Change(document_of(attributes))
