"""Texts for people and for the log: foreign text made printable, fields, amounts, durations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

FOREIGN_TEXT_LIMIT = 300
"""Characters of foreign text that an error repeats."""


def printable(text: str | bytes, limit: int = FOREIGN_TEXT_LIMIT) -> str:
    """Return foreign `text` as one printable line of at most `limit` characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if len(text) <= limit and text.isprintable():
        return text
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: 2 * limit])
    return line if len(line) <= limit else line[: limit - 1] + "…"


_PLAIN_VALUE = re.compile(r"[^\s\"=\\]+")
"""A value that needs no quotes in `key_values`."""


def key_values(fields: Mapping[str, object], limit: int = FOREIGN_TEXT_LIMIT) -> str:
    """Return fields as `key=value` pairs on one printable line, for programs that read the log.

    None and an empty value are `-`, a mapping is `key:value,key:value`. A value with a blank, a
    quotation mark, `=` or a backslash is quoted as in JSON; it has at most `limit` characters.
    """
    return " ".join(f"{name}={_value_text(value, limit)}" for name, value in fields.items())


def _value_text(value: object, limit: int) -> str:
    if isinstance(value, Mapping):
        value = ",".join(f"{key}:{item}" for key, item in value.items())
    text = "" if value is None else printable(str(value), limit)
    if not text or text == "-":
        return '"-"' if text else "-"
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def amount(count: int) -> str:
    """Return a number of bytes with its unit, such as `1.5 GB` (a GB is 10**9 bytes)."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if size < 999.95:  # noqa: PLR2004 - a larger number would be shown as 1000.0
            break
        size, unit = size / 1000, larger
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


_UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))


def duration(seconds: float) -> str:
    """Return a time span in its largest unit: `45 seconds`, `15 minutes`, `1.5 hours`."""
    for unit, size in _UNITS:
        number = round(seconds / size, 1)
        if number >= 1 or size == 1:
            return f"{number:g} {unit}{'' if number == 1 else 's'}"
    raise AssertionError("seconds are the last unit")


def short_duration(seconds: float) -> str:
    """Return a time span with two or three digits, as for an estimate: `15 s`, `3 min`, `2 h`."""
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{max(1, round(seconds))} s"
    if seconds < 7200:  # noqa: PLR2004 - two hours
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
