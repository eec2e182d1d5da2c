"""Parse the answers of gateways, before any other code uses them.

Unknown members are ignored, and null counts as absent. Texts may hold anything, so the code that
prints one passes it through `printable`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from shiftergw.model.names import MISSING, is_count, is_image_id, is_time
from shiftergw.states import State

_TEXTS = (
    *("status", "status_message", "id", "system", "itype", "type", "image", "user"),
    *("stage", "activity", "waits_for", "cause", "remedy", "request_id", "location", "host"),
)
_COUNTS = ("done", "total", "rate", "queue_place", "queue_length", "size", "owner")
_TIMES = ("last_pull", "expiration", "time", "heard", "time_left", "waits_until", "since")
_ANONYMOUS = -1
"""The uid of a look-up without a credential, in `metrics`."""

_CHUNK = 16 << 20
"""Bytes of the longest chunk of an upload, if the gateway does not say."""

_KEY = re.compile("[A-Za-z0-9_-]{1,100}")
_PAGE_PATH = re.compile(r"[a-z]+/[a-z]+\?[a-z]+=[A-Za-z0-9_-]{1,2000}")


class InvalidAnswer(Exception):
    """An answer does not have the form of a gateway's."""


def is_key(value: object) -> TypeGuard[str]:
    """Return whether a value is the id of an upload or an explanation, which is put into a URL."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def parse_object(answer: Any) -> dict[str, Any]:
    """Return an answer that is an object; raise `InvalidAnswer` otherwise."""
    if not isinstance(answer, dict):
        raise InvalidAnswer
    return answer


def parse_page_path(answer: Any) -> str:
    """Return the path below a gateway that opens its page once; raise `InvalidAnswer`."""
    path = parse_object(answer).get("path")
    if not isinstance(path, str) or _PAGE_PATH.fullmatch(path) is None:
        raise InvalidAnswer
    return path


def parse_upload_limit(answer: Any) -> int | None:
    """Return the bytes of the largest upload that a gateway takes; None if it does not say."""
    limit = parse_object(answer).get("limit")
    return limit if type(limit) is int and limit > 0 else None


def parse_image_id(answer: Any) -> str:
    """Return the image id in the answer to a look-up; raise `InvalidAnswer` if it has none."""
    image_id = parse_object(answer).get("id")
    if not is_image_id(image_id):
        raise InvalidAnswer
    return str(image_id)


def parse_record(answer: Any) -> dict[str, Any]:
    """Return the record in the answer to a pull.

    Raises `InvalidAnswer` for a record without a status, or a READY one without an image id.
    """
    record = _row(answer)
    if not isinstance(record.get("status"), str):
        raise InvalidAnswer
    if record["status"] == State.READY.value and not is_image_id(record.get("id")):
        raise InvalidAnswer
    return record


def parse_list(answer: Any) -> list[dict[str, Any]]:
    """Return the rows in a list of images, of pulls, or of machines; raise `InvalidAnswer`."""
    return parse_rows(parse_object(answer).get("list"))


def parse_registries(answer: Any) -> list[dict[str, Any]]:
    """Return the registries of a gateway, each with its `location` and `host`.

    Raises `InvalidAnswer` for a row without them.
    """
    registries = parse_list(answer)
    if not all("location" in registry and "host" in registry for registry in registries):
        raise InvalidAnswer
    return registries


def parse_explanation(answer: Any) -> dict[str, Any]:
    """Return the state of an explanation, with its `id` and `status`; raise `InvalidAnswer`."""
    state = parse_object(answer)
    if not isinstance(state.get("status"), str) or not is_key(state.get("id")):
        raise InvalidAnswer
    return state


@dataclass(frozen=True, slots=True)
class UploadState:
    """What a gateway says of an upload: its id, the bytes it has, and the longest chunk."""

    key: str
    offset: int
    chunk: int


def parse_upload(answer: Any) -> UploadState:
    """Return the state of an upload; raise `InvalidAnswer` if a member is missing or wrong."""
    members = parse_object(answer)
    key, offset, chunk = members.get("upload"), members.get("offset"), members.get("chunk", _CHUNK)
    if not (is_key(key) and is_count(offset) and is_count(chunk) and chunk):
        raise InvalidAnswer
    return UploadState(key, offset, chunk)


def parse_declaration(answer: Any) -> UploadState | dict[str, Any]:
    """Return the state of a declared upload, or the record of the READY image that needs none.

    Raises `InvalidAnswer` for any other answer.
    """
    if parse_object(answer).get("status") == State.READY.value:
        return parse_record(answer)
    return parse_upload(answer)


def parse_uploads(answer: Any) -> list[dict[str, Any]]:
    """Return the uploads in a list; raise `InvalidAnswer` if a member is missing or wrong."""
    uploads = parse_list(answer)
    if not all(_is_upload(upload) for upload in uploads):
        raise InvalidAnswer
    return uploads


def parse_rows(answer: Any) -> list[dict[str, Any]]:
    """Return rows whose members have the right types; raise `InvalidAnswer` otherwise."""
    if not isinstance(answer, list):
        raise InvalidAnswer
    return [_row(row) for row in answer]


def _row(answer: Any) -> dict[str, Any]:
    row = {name: value for name, value in parse_object(answer).items() if value is not None}
    is_valid = (
        all(isinstance(row.get(name, ""), str) for name in _TEXTS)
        and all(is_count(row.get(name, 0)) for name in _COUNTS)
        and (is_count(row.get("uid", 0)) or row["uid"] == _ANONYMOUS)
        and all(row.get(name) == MISSING or is_time(row.get(name, 0)) for name in _TIMES)
        and _is_tag(row.get("tag", []))
    )
    if not is_valid:
        raise InvalidAnswer
    return row


def _is_upload(row: dict[str, Any]) -> bool:
    key, images = row.get("upload"), row.get("images", [])
    return (
        is_key(key)
        and all(isinstance(row.get(name, ""), str) for name in ("filename", "kind"))
        and all(is_count(row.get(name)) for name in ("size", "offset"))
        and is_time(row.get("expires"))
        and isinstance(images, list)
        and all(isinstance(image, str) for image in images)
    )


def _is_tag(value: object) -> bool:
    """Return whether a value is a tag, as in look-ups, or the list of tags of an image."""
    return all(isinstance(tag, str) for tag in (value if isinstance(value, list) else [value]))
