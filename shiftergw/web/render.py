"""What goes out: records and errors as the JSON that the existing clients read.

Those clients demand much (contract of the HTTP interface, sections 1 and 6): a record has all of
its 13 members and none of them is null, `last_pull` has a decimal point, the top level is an
object. Everything here is on one line and in ASCII.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from shiftergw.errors import GatewayError
from shiftergw.model import ImageRecord, WorkerMachine
from shiftergw.web.spool import Spool

JSON = b"application/json"
"""Compared byte by byte by the clients: no charset may follow."""

MISSING = "MISSING"
"""What stands for a member that the record lacks."""

RETRY_AFTER = 5.0
"""Seconds told with a refusal that passes, unless the error knows better."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer: status, whole body, and the headers that are not the same for all.

    A body that is too long to be kept stands in `spool`, which whoever sends it closes. For
    the log are `word`, and `quiet`: the requester was told the same before.
    """

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    spool: Spool | None = None
    quiet: bool = False
    word: str = ""


def answer(document: Mapping[str, Any], status: int = 200, **headers: str) -> Answer:
    """Return a JSON object as an answer."""
    return Answer(status, to_json(document), headers=headers)


def rows(documents: Sequence[Mapping[str, Any]]) -> Answer:
    """Return rows as a bare array: metrics alone have this form, as they always had."""
    return Answer(HTTPStatus.OK, to_json(list(documents)))


def to_json(document: object) -> bytes:
    """Return a document as one line of ASCII."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


def text(line: str, status: int = 200) -> Answer:
    """Return one line of plain text as an answer."""
    return Answer(status, line.encode("ascii"), b"text/plain")


def refusal(error: GatewayError, place: str = "", **headers: str) -> Answer:
    """Return an error as its requester sees it; `place` is the path asked for."""
    reason = HTTPStatus(error.http_status).phrase
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'munge realm="shiftergw"'  # RFC 9110 section 15.5.2
    wait = retry_after(error)
    if wait is not None:
        headers["Retry-After"] = wait
    document = {
        "status": error.http_status,
        "error": str(error),
        "message": f"{reason}: {place}" if place else reason,
        "code": error.code,
    }
    return answer(document, error.http_status, **headers)


def retry_after(error: GatewayError) -> str | None:
    """Return after how many whole seconds to ask again, if asking again may help."""
    seconds = error.retry_after
    if seconds is None and error.http_status in {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }:
        seconds = RETRY_AFTER
    return None if seconds is None else str(max(1, math.ceil(seconds)))


def record(image: ImageRecord, *, labels: bool = False) -> dict[str, Any]:
    """Return the 13 members of a record, that of the `labels` as if there were none if not."""
    return _without_null(
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
            "last_pull": None if image.last_pull is None else float(image.last_pull),
            "status_message": image.notice or image.status_message,
        }
    )


def pulled(image: ImageRecord, *, labels: bool = False) -> dict[str, Any]:
    """Return the answer to a pull: the record, how far the work is, or why it failed."""
    return {**record(image, labels=labels), **_work(image)}


def queued(image: ImageRecord) -> dict[str, Any]:
    """Return one row of the queue."""
    row = {"status": image.status.value, "image": image.pulltag}
    said = {"status_message": image.status_message} if image.status_message else {}
    return {**_without_null(row), **said, **_work(image)}


def machine(one: WorkerMachine, jobs: Sequence[str]) -> dict[str, Any]:
    """Return one row of the workers: a machine, and the images that it has in work."""
    return {
        "name": one.name,
        "version": one.version,
        "systems": one.systems,
        "slots": one.slots,
        "jobs": list(jobs),
        "leaving": one.leaving,
        "heard": one.heard,
    }


def listing(rows: Iterable[dict[str, Any]]) -> Answer:
    """Return rows as the object that the clients expect around a list."""
    return answer({"list": list(rows)})


def _without_null(members: dict[str, Any]) -> dict[str, Any]:
    return {name: MISSING if value is None else value for name, value in members.items()}


def _work(image: ImageRecord) -> dict[str, Any]:
    """Return the members about work in progress, its failure, or its result."""
    members: dict[str, Any] = {
        "stage": image.stage,
        "cause": image.cause,
        "remedy": image.remedy,
        "retryable": image.retryable,
        "request_id": image.request_id,
        "notice": image.notice or None,
    }
    if image.stage is not None:
        members |= {"done": image.done, "total": image.total}
    return {name: value for name, value in members.items() if value is not None}
