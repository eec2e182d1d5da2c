"""The table of images: its rows, the filters and orders of `images`, and the words in its cells."""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from shiftergw.cli.exits import Misuse
from shiftergw.cli.image_names import repository_of
from shiftergw.errors import amount, duration, printable
from shiftergw.model.names import MISSING, is_count, is_time

_HEADER = ("NAME", "ID", "SIZE", "PULLED", "EXPIRES", "OWNER", "ACCESS")
_SHORT_ID = 12
"""Digits of an id in the table, as other tools show them."""

_UNKNOWN = "-"
"""What a cell has if the gateway does not say it."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class ImageRow(NamedTuple):
    """A tag of an image, with the record that has it. None stands for what is not known.

    Times are in seconds since 1970. `owner` is the name of a user, or a uid without a name.
    """

    record: Mapping[str, Any]
    name: str
    image_id: str
    itype: str
    size: int | None
    pull_time: float | None
    expiration: float | None
    owner: str | None
    is_private: bool


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[ImageRow]:
    """Return a row for each tag of each record; a custom image has its type before its name."""
    rows = []
    for record in records:
        tags = record.get("tag")
        itype = str(record.get("itype", "docker"))
        rows += [
            _row(record, tag if itype == "docker" else f"{itype}:{tag}", itype)
            for tag in (tags if isinstance(tags, list) else [tags or ""])
        ]
    return rows


def _row(record: Mapping[str, Any], name: str, itype: str) -> ImageRow:
    size, pull_time = record.get("size"), record.get("last_pull")
    expiration, owner = record.get("expiration"), record.get("owner")
    # Gateways that do not say it send the readers of private images.
    is_private = record.get("private", bool(record.get("userACL") or record.get("groupACL")))
    return ImageRow(
        record,
        printable(name, 1000),
        printable(str(record.get("id", MISSING))),
        itype,
        size if is_count(size) else None,
        pull_time if is_time(pull_time) else None,
        expiration if is_time(expiration) else None,
        user_name(owner) if is_count(owner) else None,
        is_private is True,
    )


@cache
def user_name(uid: int) -> str:
    """Return the name of a user, or the uid if this machine does not know the user."""
    with suppress(KeyError, OverflowError):
        return printable(pwd.getpwuid(uid).pw_name)
    return str(uid)


def matches(row: ImageRow, pattern: str) -> bool:
    """Return whether a pattern, as of a shell, fits a name, with or without its tag and type."""
    names = {row.name, row.name.removeprefix(f"{row.itype}:")}
    names |= {repository_of(name) for name in names}
    return any(fnmatchcase(name, pattern) for name in names)


Filter = Callable[[ImageRow], bool]


def filter_of(text: str, now: float) -> Filter:
    """Return the filter that KEY=VALUE describes; raise `Misuse` if there is none.

    A row of which the gateway does not say the size or the time fits no filter about it.
    """
    key, _, value = text.partition("=")
    if key == "access" and value in {"private", "public"}:
        return lambda row: row.is_private == (value == "private")
    if key == "owner" and value:
        return lambda row: row.owner is not None and row.owner in {value, _name_of(value)}
    if key == "type" and value in {"docker", "custom"}:
        return lambda row: row.itype == value
    if key in {"larger", "smaller"}:
        size = _number_of(value, _UNITS)
        if size is not None:
            return _size_filter(size, is_larger=key == "larger")
    if key in {"older", "newer"}:
        seconds = _number_of(value, _SPANS)
        if seconds is not None:
            return _age_filter(now - seconds, is_older=key == "older")
    raise Misuse(
        f"{printable(text, 120)!r} is not a filter: write access=private, access=public,"
        " owner=USER, type=docker, type=custom, larger=SIZE or smaller=SIZE (500MB, 1.5GB),"
        " older=TIME or newer=TIME (12h, 30d)."
    )


def _name_of(text: str) -> str:
    """Return the name of the user with a uid; any other text stays as it is."""
    return user_name(int(text)) if re.fullmatch("[0-9]{1,10}", text) else text


def _size_filter(size: float, *, is_larger: bool) -> Filter:
    return lambda row: row.size is not None and (row.size > size) == is_larger


def _age_filter(limit: float, *, is_older: bool) -> Filter:
    return lambda row: row.pull_time is not None and (row.pull_time < limit) == is_older


def _number_of(text: str, units: Mapping[str, int]) -> float | None:
    """Return the value of a number with one of the units; None for any other text."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", text.lower())
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


ORDERS: dict[str, Callable[[ImageRow], tuple[Any, ...]]] = {
    "name": lambda row: (row.name,),
    "size": lambda row: (-(row.size or 0), row.name),
    "pulled": lambda row: (-(row.pull_time or 0), row.name),
    "expires": lambda row: (row.expiration is None, row.expiration or 0, row.name),
    "owner": lambda row: (row.owner is None, row.owner or "", row.name),
}
"""Orders of rows: the largest, the last pulled and the first to expire come first."""


def table(rows: Iterable[ImageRow], now: float) -> str:
    """Return the rows as a table with a header, in columns as wide as their cells."""
    return columns([_HEADER, *(_cells(row, now) for row in rows)], right_aligned={2})


def _cells(row: ImageRow, now: float) -> tuple[str, ...]:
    return (
        row.name,
        row.image_id[:_SHORT_ID],
        _UNKNOWN if row.size is None else amount(row.size),
        _UNKNOWN if row.pull_time is None else f"{duration(max(1, now - row.pull_time))} ago",
        "pinned" if row.record.get("pinned") is True else _expiration(row.expiration, now),
        _UNKNOWN if row.owner is None else row.owner,
        "private" if row.is_private else "public",
    )


def _expiration(time: float | None, now: float) -> str:
    if time is None:
        return _UNKNOWN
    return "now" if time <= now else f"in {duration(time - now)}"


def columns(lines: Sequence[Sequence[str]], right_aligned: Iterable[int] = ()) -> str:
    """Return lines of cells as text, two blanks between the columns."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    right = set(right_aligned)
    texts = []
    for line in lines:
        cells = [
            f"{cell:>{width}}" if number in right else f"{cell:{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip() + "\n")
    return "".join(texts)
