"""The table of the queue: pulls that wait, work or have failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shiftergw.cli.image_table import columns, user_name
from shiftergw.cli.progress_state import plain_line, state_of
from shiftergw.errors import printable, short_duration
from shiftergw.model.names import is_count, is_time

_HEADER = ("IMAGE", "STATE", "AGE", "USER", "PROGRESS")

_UNKNOWN = "-"
"""What a cell has if the gateway does not say it."""

_STATES = {
    "INIT": "waiting",
    "PENDING": "waiting",
    "PULLING": "pulling",
    "EXAMINATION": "examining",
    "CONVERSION": "converting",
    "TRANSFER": "delivering",
    "EXPIRING": "removing",
    "FAILURE": "failed",
}
"""A word for each state."""

_TEXT_LIMIT = 1000


def queue_table(rows: Iterable[Mapping[str, Any]], now: float) -> str:
    """Return a header, and one line for each pull; `now` is in seconds since 1970."""
    return columns([_HEADER, *(_cells(row, now) for row in rows)], right_aligned={2})


def _cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    status, itype = str(row.get("status")), row.get("type", "docker")
    image = str(row.get("image")) if itype == "docker" else f"{itype}:{row.get('image')}"
    since = row.get("since")
    return (
        printable(image, _TEXT_LIMIT),
        printable(_STATES.get(status, status.lower())),
        short_duration(max(0, now - since)) if is_time(since) else _UNKNOWN,
        _user(row),
        printable(_note(row), _TEXT_LIMIT),
    )


def _user(row: Mapping[str, Any]) -> str:
    """Return whose pull it is; gateways tell that of the caller's own pulls, and admins of all."""
    owner = row.get("owner")
    if "user" in row:
        return printable(str(row["user"]))
    return user_name(owner) if is_count(owner) else _UNKNOWN


def _note(row: Mapping[str, Any]) -> str:
    """Return why a pull has failed, or how far it is, or what it waits for."""
    if "cause" in row:
        return str(row["cause"])
    return plain_line(state_of(row))
