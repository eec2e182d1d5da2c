"""What a gateway's answers must be, before anything is made of them.

Members of other names are not read, and null is as good as absent. Texts may hold anything: whoever
prints one makes it `printable`.
"""

from __future__ import annotations

from typing import Any

from shiftergw.names import MISSING, is_image_id
from shiftergw.states import State

_TEXTS = (
    *("status", "status_message", "id", "system", "itype", "type", "image", "user"),
    *("stage", "cause", "remedy", "request_id"),
)
_COUNTS = ("done", "total", "uid")
_TIMES = ("last_pull", "time", "heard")
_LARGEST = 2**63 - 1
_LATEST = 253_402_214_400
"""The last day of the year 9999, in seconds since 1970."""


class NotUnderstood(Exception):
    """An answer is none of a gateway's."""


def document(answer: Any) -> dict[str, Any]:
    """Return an answer that is an object; raise `NotUnderstood` for another."""
    if not isinstance(answer, dict):
        raise NotUnderstood
    return answer


def looked_up(answer: Any) -> str:
    """Return the id of an image that was looked up; raise `NotUnderstood` if there is none."""
    image_id = document(answer).get("id")
    if not is_image_id(image_id):
        raise NotUnderstood
    return str(image_id)


def pulled(answer: Any) -> dict[str, Any]:
    """Return the record that answers a pull; it has a status and, once it is READY, an id."""
    record = _row(answer)
    if not isinstance(record.get("status"), str):
        raise NotUnderstood
    if record["status"] == State.READY.value and not is_image_id(record.get("id")):
        raise NotUnderstood
    return record


def listed(answer: Any) -> list[dict[str, Any]]:
    """Return the rows of a list of images or of the queue."""
    return rows(document(answer).get("list"))


def rows(answer: Any) -> list[dict[str, Any]]:
    """Return rows whose members have the right types; raise `NotUnderstood` for others."""
    if not isinstance(answer, list):
        raise NotUnderstood
    return [_row(row) for row in answer]


def _row(answer: Any) -> dict[str, Any]:
    row = {name: value for name, value in document(answer).items() if value is not None}
    right = (
        all(isinstance(row.get(name, ""), str) for name in _TEXTS)
        and all(_is_count(row.get(name, 0)) for name in _COUNTS)
        and all(row.get(name) == MISSING or _is_time(row.get(name, 0)) for name in _TIMES)
        and _is_tag(row.get("tag", []))
    )
    if not right:
        raise NotUnderstood
    return row


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST  # True is none


def _is_time(value: object) -> bool:
    return type(value) in {int, float} and 0 <= value <= _LATEST  # type: ignore[operator]  # a number


def _is_tag(value: object) -> bool:
    """Say whether it is a tag, as look-ups have it, or the tags of an image."""
    return all(isinstance(tag, str) for tag in (value if isinstance(value, list) else [value]))
