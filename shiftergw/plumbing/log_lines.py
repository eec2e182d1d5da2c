"""Lines of the log as JSON objects: written by each process, and read by the one that relays them.

Every object has `time` (RFC 3339, UTC), `level`, `logger` and `message`; further members are the
fields of the event, such as `request` and `job`. A line is ASCII, so no text from outside can end
it, and it has at most `LINE_LIMIT` bytes.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shiftergw.errors import printable

LINE_LIMIT = 1 << 16
"""Bytes of a line; of a longer one, texts are shortened."""

Value = str | int | float | bool | None | dict[str, float]
"""The value of a member; an object has numbers, such as the seconds of stages."""

_LIMITS = ((8000, 2000), (2000, 100))
"""Characters of the message, and of another text: at first, and if the line is too long."""

_MOST_MEMBERS = 40
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_LEVELS = ("debug", "info", "warn", "error", "critical")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of another process: `members` has all members but the level and the message."""

    level: str
    message: str
    members: Mapping[str, Value]


def write_line(
    seconds: float, level: str, logger: str, message: str, fields: Mapping[str, object]
) -> str:
    """Return an event as one line without its end; `seconds` are since 1970.

    A field `time` or `logger` replaces that of the event, which another process has logged.
    """
    head = {"time": _time_text(seconds), "level": level, "logger": logger, "message": message}
    rest = {name: value for name, value in fields.items() if name not in {"level", "message"}}
    for message_limit, limit in _LIMITS:
        members = _members_of(head | rest, limit) | {"message": printable(message, message_limit)}
        line = json.dumps(members)
        if len(line) < LINE_LIMIT:
            return line
    return json.dumps(head | {"message": printable(message, _LIMITS[-1][0])})


def write_members(seconds: float, fields: Mapping[str, object]) -> str:
    """Return a line that has only `time` and these fields, for logs of one kind of event."""
    return json.dumps(_members_of({"time": _time_text(seconds)} | dict(fields), _LIMITS[0][1]))


def _time_text(seconds: float) -> str:
    time = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_line(line: bytes) -> LogLine | None:
    """Return the content of a line that `write_line` has made, or None for any other line.

    A child of a process writes to the same stream, so everything is checked.
    """
    if not line.startswith(b"{"):
        return None
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    level, message = document.pop("level", None), document.pop("message", None)
    if level not in _LEVELS or not isinstance(message, str):
        return None
    return LogLine(level, message, _members_of(document, _LIMITS[0][1]))


def _members_of(fields: Mapping[str, object], limit: int) -> dict[str, Value]:
    """Return fields as members, without those whose name or value has an unexpected form."""
    members: dict[str, Value] = {}
    for name, value in list(fields.items())[:_MOST_MEMBERS]:
        if not _NAME.fullmatch(name):
            continue
        if value is None or isinstance(value, bool | int | float):
            members[name] = _finite(value)
        elif isinstance(value, str):
            members[name] = printable(value, limit)
        elif isinstance(value, Mapping):
            members[name] = {
                printable(str(key), 40): number
                for key, number in list(value.items())[:_MOST_MEMBERS]
                if isinstance(number, int | float) and _finite(number) is not None
            }
    return members


def _finite(value: Any) -> Any:
    """Return a number, or None if other programs cannot read it from JSON."""
    is_readable = math.isfinite(value) if isinstance(value, float) else abs(value or 0) < 1 << 63
    return value if is_readable else None
