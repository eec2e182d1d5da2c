"""The table of images, its filters and its orders."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest

from shiftergw.cli.exits import Misuse
from shiftergw.cli.image_table import (
    ORDERS,
    ImageRow,
    filter_of,
    matches,
    rows_of,
    table,
    user_name,
)

NOW = 1_700_000_000.0
DAY = 86400.0
OWN_UID = os.getuid()
UNKNOWN_UID = 4_000_000_123
PUBLIC: dict[str, Any] = {
    "tag": ["ubuntu:24.04", "ubuntu:latest"],
    "itype": "docker",
    "id": "ab" * 32,
    "size": 28_100_000,
    "private": False,
    "last_pull": NOW - 3 * DAY,
    "expiration": NOW + 87 * DAY,
}
PRIVATE: dict[str, Any] = {
    "tag": ["ghcr.io:5000/us/app:1"],
    "itype": "docker",
    "id": "cd" * 32,
    "size": 1_500_000_000,
    "private": True,
    "owner": OWN_UID,
    "last_pull": NOW - 600,
    "expiration": NOW - 1,
}
CUSTOM: dict[str, Any] = {
    **PUBLIC,
    "tag": "mine:1",
    "itype": "custom",
    "size": 5,
    "owner": UNKNOWN_UID,
}
OLD_GATEWAY: dict[str, Any] = {
    "tag": ["odd\x1b[2J:1"],
    "id": "MISSING",
    "last_pull": "MISSING",
    "userACL": [1],
}
"""A record with unusual values, of a gateway that sends no size, owner or expiration."""


def names(rows: list[ImageRow]) -> list[str]:
    """Return the names in rows."""
    return [row.name for row in rows]


def test_the_table() -> None:
    """Each tag has a row; what is not known is a dash, and control characters are escaped."""
    text = table(rows_of([PUBLIC, PRIVATE, CUSTOM, OLD_GATEWAY]), NOW)
    own_name = pwd.getpwuid(OWN_UID).pw_name
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows == [
        "NAME ID SIZE PULLED EXPIRES OWNER ACCESS",
        "ubuntu:24.04 abababababab 28.1 MB 3 days ago in 87 days - public",
        "ubuntu:latest abababababab 28.1 MB 3 days ago in 87 days - public",
        f"ghcr.io:5000/us/app:1 cdcdcdcdcdcd 1.5 GB 10 minutes ago now {own_name} private",
        f"custom:mine:1 abababababab 5 bytes 3 days ago in 87 days {UNKNOWN_UID} public",
        "odd\\x1b[2J:1 MISSING - - - - private",
    ]
    header, *lines = text.splitlines()
    assert {line[header.index("ACCESS") :] for line in lines} == {"public", "private"}


@pytest.mark.parametrize(
    ("pattern", "matching_names"),
    [
        ("ubuntu", ["ubuntu:24.04", "ubuntu:latest"]),
        ("ubuntu:24*", ["ubuntu:24.04"]),
        ("ghcr.io:5000/us/app", ["ghcr.io:5000/us/app:1"]),
        ("*/app:?", ["ghcr.io:5000/us/app:1"]),
        ("mine", ["custom:mine:1"]),
        ("custom:mine:1", ["custom:mine:1"]),
        ("ghcr.io", []),
        ("Ubuntu", []),
    ],
)
def test_patterns(pattern: str, matching_names: list[str]) -> None:
    """A pattern fits whole names, with or without tag and type."""
    rows = rows_of([PUBLIC, PRIVATE, CUSTOM])
    assert [row.name for row in rows if matches(row, pattern)] == matching_names


@pytest.mark.parametrize(
    ("text", "matching_records"),
    [
        ("access=private", [PRIVATE, OLD_GATEWAY]),
        ("access=public", [PUBLIC, CUSTOM]),
        (f"owner={user_name(OWN_UID)}", [PRIVATE]),
        (f"owner={OWN_UID}", [PRIVATE]),
        (f"owner={UNKNOWN_UID}", [CUSTOM]),
        ("owner=nobody-at-all", []),
        ("type=custom", [CUSTOM]),
        ("type=docker", [PUBLIC, PRIVATE, OLD_GATEWAY]),
        ("larger=28.1MB", [PRIVATE]),
        ("smaller=1.5 gb", [PUBLIC, CUSTOM, PRIVATE]),
        ("smaller=6", [CUSTOM]),
        ("older=1d", [PUBLIC, CUSTOM]),
        ("newer=12h", [PRIVATE]),
    ],
)
def test_filters(text: str, matching_records: list[dict[str, Any]]) -> None:
    """A filter keeps the images that fit; what the gateway does not say fits no filter."""
    condition = filter_of(text, NOW)
    records = [PUBLIC, PRIVATE, CUSTOM, OLD_GATEWAY]
    rows = [rows_of([record])[0] for record in records]
    assert names([row for row in rows if condition(row)]) == [
        rows_of([record])[0].name for record in records if record in matching_records
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "access", "access=", "access=mine", "owner=", "type=id", "color=red"),
        *("larger=", "larger=x", "larger=-1", "larger=1QB", "older=1", "older=1y", "newer=NaN"),
    ],
)
def test_an_invalid_filter(text: str) -> None:
    """The error lists the filters that there are."""
    with pytest.raises(Misuse, match=r"is not a filter: write access=private.*newer=TIME"):
        filter_of(text, NOW)


@pytest.mark.parametrize(
    ("order", "first_names"),
    [
        ("name", ["custom:mine:1", "ghcr.io:5000/us/app:1"]),
        ("size", ["ghcr.io:5000/us/app:1", "ubuntu:24.04"]),
        ("pulled", ["ghcr.io:5000/us/app:1", "custom:mine:1"]),
        ("expires", ["ghcr.io:5000/us/app:1", "custom:mine:1"]),
        ("owner", ["custom:mine:1", "ghcr.io:5000/us/app:1"]),
    ],
)
def test_orders(order: str, first_names: list[str]) -> None:
    """Largest, last pulled and first to expire come first; what is not known comes last."""
    rows = sorted(rows_of([PUBLIC, PRIVATE, CUSTOM, OLD_GATEWAY]), key=ORDERS[order])
    assert names(rows)[:2] == first_names


def test_a_pinned_image() -> None:
    """It shows that it is pinned in place of its expiration."""
    (row,) = rows_of([{**PUBLIC, "tag": ["a:1"], "pinned": True}])
    assert " pinned " in table([row], NOW)
    (row,) = rows_of([{**PUBLIC, "tag": ["a:1"], "pinned": 5}])
    assert " pinned " not in table([row], NOW)
