"""Render records and errors as the JSON that existing clients read.

Existing clients are strict: a record has all of its 13 members and none of them is null,
`last_pull` has a decimal point, and the top level is an object. All JSON is ASCII on one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from shiftergw.errors import GatewayError, UploadConflict
from shiftergw.model.layer_progress import parse_layers
from shiftergw.model.names import MISSING, is_count, is_time
from shiftergw.model.progress_text import has_bytes, progress_text
from shiftergw.model.records import ImageRecord, WorkerMachine
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.states import State
from shiftergw.web.spool import Spool

if TYPE_CHECKING:
    from shiftergw.web.event_connection import EventConnection

JSON = b"application/json"
"""The content type; clients compare it byte by byte, so it has no charset."""

RETRY_AFTER = 5.0
"""Seconds in `Retry-After` of a temporary refusal whose error names no time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer: status, complete body, and the headers that only some answers have.

    A body that is too long for memory is in `spool`, and one without an end is a `stream`; the
    sender closes either. `word`, `image_id` and `quiet` are for the logs: a quiet answer repeats
    the last one to the same user.
    """

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    spool: Spool | None = None
    stream: EventConnection | None = None
    quiet: bool = False
    word: str = ""
    image_id: str = ""


def answer(document: Mapping[str, Any], status: int = 200, **headers: str) -> Answer:
    """Return a JSON object as an answer."""
    return Answer(status, to_json(document), headers=headers)


def rows(documents: Sequence[Mapping[str, Any]]) -> Answer:
    """Return rows as a bare array, the form in which the original gateway sends metrics."""
    return Answer(HTTPStatus.OK, to_json(list(documents)))


def to_json(document: object) -> bytes:
    """Return a document as one line of ASCII."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


def text(line: str, status: int = 200) -> Answer:
    """Return one line of plain text as an answer."""
    return Answer(status, line.encode("ascii"), b"text/plain")


def events(stream: EventConnection) -> Answer:
    """Return server-sent events as an answer; no cache or proxy may keep them back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Answer(HTTPStatus.OK, b"", b"text/event-stream", headers, stream=stream)


def refusal(error: GatewayError, place: str = "", **headers: str) -> Answer:
    """Return an error as the client sees it; `place` is the requested path."""
    reason = HTTPStatus(error.http_status).phrase
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'munge realm="shiftergw"'  # RFC 9110 section 15.5.2
    wait = retry_after(error)
    if wait is not None:
        headers["Retry-After"] = wait
    document: dict[str, Any] = {
        "status": error.http_status,
        "error": str(error),
        "message": f"{reason}: {place}" if place else reason,
        "code": error.code,
    }
    if isinstance(error, UploadConflict):
        document["offset"] = error.offset
    return answer(document, error.http_status, **headers)


def retry_after(error: GatewayError) -> str | None:
    """Return the value of `Retry-After` in whole seconds, or None if a retry does not help."""
    seconds = error.retry_after
    if seconds is None and error.http_status in {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }:
        seconds = RETRY_AFTER
    return None if seconds is None else str(max(1, math.ceil(seconds)))


def record(image: ImageRecord, *, labels: bool = False) -> dict[str, Any]:
    """Return the 13 members of a record; without `labels` as if the image had none.

    An image that was accepted by its system's policy has one more, `policy`.
    """
    verdict = PolicyVerdict.from_document(image.verdict)
    policy = {} if verdict is None else {"policy": verdict.to_answer()}
    members = _without_null(
        {
            "id": image.id,
            "system": image.system,
            "itype": image.itype,
            "tag": list(image.tags),
            "status": image.status.value,
            "userACL": image.user_acl,
            "groupACL": image.group_acl,
            "ENV": image.env,
            "ENTRY": image.entry,
            "WORKDIR": image.workdir or None,
            "LABELS": image.labels if labels else None,
            "last_pull": float(image.last_pull) if is_time(image.last_pull) else None,
            "status_message": image.notice or progress_text(image) or image.status_message,
        }
    )
    return members | policy


def image_row(image: ImageRecord, *, labels: bool = False) -> dict[str, Any]:
    """Return one row of the list of images: the record, with its file, its owner and its time."""
    members = {
        "size": image.size if is_count(image.size) else None,
        "private": image.is_private,
        "owner": image.requested_by if is_count(image.requested_by) else None,
        "expiration": float(image.expiration) if is_time(image.expiration) else None,
        "pinned": True if image.pinned_by is not None else None,
    }
    known_members = {name: value for name, value in members.items() if value is not None}
    return record(image, labels=labels) | known_members


def name_row(image: ImageRecord) -> dict[str, Any]:
    """Return one row of the list of names: how an image can be named."""
    return {"id": image.id, "itype": image.itype, "tag": list(image.tags)}


def pull_answer(image: ImageRecord, *, labels: bool = False) -> dict[str, Any]:
    """Return the answer to a pull: the record, with its progress or the reason of its failure."""
    return {**record(image, labels=labels), **_work(image)}


def queue_row(image: ImageRecord) -> dict[str, Any]:
    """Return one row of the queue."""
    row = {"status": image.status.value, "image": image.pulltag, "type": image.itype}
    message = progress_text(image)
    messages = {"status_message": message} if message else {}
    # The time of a removal is not known: the record has that of the last pull.
    has_time = is_time(image.last_pull) and image.status is not State.EXPIRING
    times = {"since": float(image.last_pull or 0)} if has_time else {}
    return {**_without_null(row), **messages, **times, **_work(image)}


def requester(image: ImageRecord) -> dict[str, Any]:
    """Return the members of a row about the user of a pull, for those who may see them."""
    names = {"user": image.requester} if image.requester else {}
    return {"owner": image.requested_by, **names} if is_count(image.requested_by) else {}


def event_row(image: ImageRecord) -> dict[str, Any]:
    """Return the data of an event about work in flight, or a failure: its row of the queue.

    All users who see the work get the same row, so it lacks the id of the requester's request.
    """
    row = {"key": image.key, **queue_row(image)}
    row.pop("request_id", None)
    return row


def end_row(work: ImageRecord, image: ImageRecord) -> dict[str, Any]:
    """Return the data of the event that a pull has ended with a READY `image`."""
    row = {"key": work.key, "type": work.itype, "status": image.status.value, "id": image.id}
    notice = {"notice": image.notice} if image.notice else {}
    return {**row, "image": work.pulltag, **notice}


def machine_row(machine: WorkerMachine, jobs: Sequence[str]) -> dict[str, Any]:
    """Return one row of the list of workers: a machine, and the images of its jobs."""
    return {
        "name": machine.name,
        "version": machine.version,
        "systems": machine.systems,
        "slots": machine.slots,
        "jobs": list(jobs),
        "leaving": machine.leaving,
        "heard": machine.heard,
    }


def listing(rows: Iterable[dict[str, Any]]) -> Answer:
    """Return rows in an object, as clients expect a list."""
    return answer({"list": list(rows)})


def _without_null(members: dict[str, Any]) -> dict[str, Any]:
    return {name: MISSING if value is None else value for name, value in members.items()}


def _work(image: ImageRecord) -> dict[str, Any]:
    """Return the members about work in progress, its failure, or its result."""
    members: dict[str, Any] = {
        "stage": image.stage or None,
        "cause": image.cause,
        "remedy": image.remedy,
        "retryable": image.retryable,
        "request_id": image.request_id,
        "notice": image.notice or None,
        "waits_for": image.waits_for,
        "waits_until": float(image.not_before) if is_time(image.not_before) else None,
        "queue_place": image.queue_place,
        "queue_length": image.queue_length,
    }
    if image.stage:
        counts = {"done": image.done, "total": image.total, "rate": image.rate}
        members |= {name: count for name, count in counts.items() if is_count(count)}
    if has_bytes(image) or image.queue_place is not None:
        # The message without numbers: it changes with the stage only.
        members["activity"] = image.status_message or ""
    if has_bytes(image):
        members["time_left"] = image.time_left if is_time(image.time_left) else None
        layers = [layer._asdict() for layer in parse_layers(image.layers_in_flight)]
        members["layers_in_flight"] = layers or None
    return {name: value for name, value in members.items() if value is not None}
