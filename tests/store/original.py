"""A database as an original gateway leaves it after years: mostly in order, but not always.

The documents follow from known facts: the members of a record in each state, what a crash leaves
behind, and what admins and older versions have written.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bson.binary import Binary
from bson.code import Code
from bson.decimal128 import Decimal128
from bson.objectid import ObjectId

from shiftergw.store.survey import Category, Oddity

NOW = 1_700_000_000.0
"""When the database is taken over."""

SYSTEMS = ("alpha", "beta")
"""The systems that are configured."""

OWNER, GROUP = 2001, 2300


@dataclass(frozen=True, eq=False)
class Disorder:
    """A kind of record: how it differs from a normal one, and what a survey says about it.

    `changes` are members to set; `...` removes one. In texts, `{n}` stands for the record's number.
    """

    name: str
    category: Category
    changes: Mapping[str, Any] = field(default_factory=dict)
    odd: frozenset[Oddity] = frozenset()


def _kind(name: str, category: Category, *odd: Oddity, **changes: Any) -> Disorder:
    return Disorder(name, category, changes, frozenset(odd))


_NO_RESULT = {"id": ..., "tag": [], "ENV": ..., "ENTRY": ..., "WORKDIR": ..., "expiration": ...}
"""Work that has not ended: no image yet."""

C, O = Category, Oddity  # noqa: E741 - a table of short lines
DISORDERS = (
    _kind("tag as text", C.LISTED, O.TEXT_TAG, tag="lib/app:{n}"),
    _kind("no tag left", C.UNTAGGED, tag=[]),
    _kind("null as tag", C.UNTAGGED, tag=None),
    _kind("no tag member", C.UNTAGGED, tag=...),
    _kind("several tags", C.LISTED, tag=["lib/app:{n}", "lib/app:{n}-a", "quay.io/x/y:{n}"]),
    _kind("one tag twice in a record", C.LISTED, tag=["lib/app:{n}", "lib/app:{n}"]),
    _kind("tags and what is none", C.LISTED, O.FORM, tag=["lib/app:{n}", None, 5, {"a": 1}]),
    _kind("an object as tag", C.UNTAGGED, O.FORM, tag={"lib/app:{n}": True}),
    _kind("a number as tag", C.UNTAGGED, O.FORM, tag=5),
    _kind("a tag that is no reference", C.LISTED, tag=["Lib/App {n}:?"]),
    _kind("a tag without its name", C.LISTED, tag=["lib/app{n}"]),
    _kind("null ACLs", C.LISTED, private=None, userACL=None, groupACL=None),
    _kind("no ACLs", C.LISTED, private=..., userACL=..., groupACL=...),
    _kind("private by its ACL alone", C.LISTED, private=None, userACL=[OWNER]),
    _kind("private with readers", C.LISTED, private=True, userACL=[OWNER], groupACL=[GROUP]),
    _kind("private, null ACLs", C.LISTED, O.OPEN, private=True, userACL=None, groupACL=None),
    _kind("private, empty ACLs", C.LISTED, O.OPEN, private=True, userACL=[], groupACL=[]),
    _kind("readers as doubles", C.LISTED, private=True, userACL=[2001.0]),
    _kind("readers as text", C.LISTED, O.FORM, O.NO_READER, private=True, userACL=["2001"]),
    _kind("readers in a text", C.LISTED, O.FORM, O.NO_READER, private=True, userACL="2001,2002"),
    _kind("a number as readers", C.LISTED, O.FORM, O.NO_READER, private=None, groupACL=GROUP),
    _kind("text as private", C.LISTED, O.FORM, O.OPEN, private="yes"),
    _kind("a number as private", C.LISTED, O.FORM, private=0, userACL=[OWNER]),
    _kind("no last_pull", C.LISTED, last_pull=...),
    _kind("null as last_pull", C.LISTED, last_pull=None),
    _kind("whole seconds", C.LISTED, last_pull=1_600_000_000),
    _kind("text as last_pull", C.LISTED, O.FORM, last_pull="yesterday"),
    _kind("a date as last_pull", C.LISTED, O.FORM,
          last_pull=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    _kind("no number as last_pull", C.LISTED, O.FORM, last_pull=float("nan")),
    _kind("never looked up", C.LISTED, O.NO_DATE, expiration=...),
    _kind("null as expiration", C.LISTED, O.NO_DATE, expiration=None),
    _kind("expired long ago", C.LISTED, O.DUE, expiration=12.5),
    _kind("a date as expiration", C.LISTED, O.FORM, O.NO_DATE,
          expiration=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    _kind("text as expiration", C.LISTED, O.FORM, O.NO_DATE, expiration="90:00:00:00"),
    _kind("dates as decimals", C.LISTED, last_pull=Decimal128("1600000000.5"),
          expiration=Decimal128("1700001000.25")),
    _kind("a decimal that has passed", C.LISTED, O.DUE, expiration=Decimal128("12.5")),
    _kind("a decimal that is none", C.LISTED, O.FORM, O.NO_DATE, expiration=Decimal128("NaN")),
    _kind("no end", C.LISTED, O.FORM, O.NO_DATE, expiration=float("inf")),
    _kind("no beginning", C.LISTED, O.FORM, last_pull=float("-inf")),
    _kind("a flag as expiration", C.LISTED, O.FORM, O.NO_DATE, expiration=True),
    _kind("an end before all time", C.LISTED, O.DUE, expiration=-5),
    _kind("readers as decimals", C.LISTED, private=True, userACL=[Decimal128("2001")]),
    _kind("the old word", C.LISTED, status="SUCCESS"),
    _kind("custom", C.LISTED, itype="custom", ENV=..., ENTRY=..., WORKDIR=...),
    _kind("an unknown type", C.LISTED, O.TYPE, itype="local"),
    _kind("no type", C.LISTED, O.TYPE, itype=...),
    _kind("ENTRY as text", C.LISTED, ENTRY="/bin/sh -c true"),
    _kind("huge ENV", C.LISTED, ENV=[f"V{n}={'x' * 1000}" for n in range(100)]),
    _kind("ENV and what is none", C.LISTED, O.FORM, ENV=["A=1", None, 5], WORKDIR=7),
    _kind("an object as ENV", C.LISTED, O.FORM, ENV={"A": "1"}, ENTRY={"a": 1}, CMD=5),
    _kind("labels", C.LISTED, LABELS={"org.name": "x", "maintainer": "me"}),
    _kind("labels that are none", C.LISTED, O.FORM, LABELS={"a": ObjectId("1" * 24), "b": "c"}),
    _kind("unknown members", C.LISTED, site_note={"kept": ["by", "us"]}, blob=Binary(b"\0\1")),
    _kind("an origin of theirs", C.LISTED, O.FORM, origin="docker.io"),
    _kind("numbers for words", C.LISTED, O.FORM, ostcount=5, replication=1, format=None),
    _kind("no image id", C.NO_ID, id=...),
    _kind("an id that is none", C.NO_ID, O.FORM, id="../../etc/passwd"),
    _kind("a number as id", C.NO_ID, O.FORM, id=5),
    _kind("accepted", C.ABANDONED, **_NO_RESULT, status="INIT", last_pull=...),
    _kind("queued", C.ABANDONED, **_NO_RESULT, status="PENDING", status_message=""),
    _kind("died pulling", C.ABANDONED, **_NO_RESULT, status="PULLING", last_heartbeat=5.5),
    _kind("died examining", C.ABANDONED, **_NO_RESULT, status="EXAMINATION", last_heartbeat=5.5),
    _kind("died converting", C.ABANDONED, **_NO_RESULT, status="CONVERSION", last_heartbeat=5.5),
    _kind("died delivering", C.ABANDONED, **_NO_RESULT, status="TRANSFER", last_heartbeat=5.5),
    _kind("died hashing", C.ABANDONED, **_NO_RESULT, status="HASHING", last_heartbeat=5.5),
    _kind("an older version's word", C.ABANDONED, **_NO_RESULT, status="ENQUEUED"),
    _kind("work on what", C.UNNAMED, **_NO_RESULT, status="PULLING", pulltag=...),
    _kind("failed", C.FAILURES, **_NO_RESULT, status="FAILURE", status_message="FAILED"),
    _kind("died expiring", C.REMOVALS, status="EXPIRING", status_message="EXPIRING"),
    _kind("expired", C.EXPIRED, status="EXPIRED", status_message="EXPIRED"),
    _kind("a system that is gone", C.FOREIGN_SYSTEM, system="gone", expiration=12.5),
    _kind("a list as system", C.NOT_A_RECORD, system=["alpha"]),
    _kind("no system", C.NOT_A_RECORD, system=..., expiration=12.5),
    _kind("no status", C.NOT_A_RECORD, status=...),
    _kind("JavaScript as system", C.NOT_A_RECORD, system=Code("alpha")),
    _kind("JavaScript as status", C.NOT_A_RECORD, status=Code("READY")),
    _kind("JavaScript as tag", C.UNTAGGED, O.FORM, tag=Code("lib/app:1")),
    _kind("JavaScript as id", C.NO_ID, O.FORM, id=Code("a")),
    _kind("a list as status", C.NOT_A_RECORD, status=["READY"]),
)  # fmt: skip
"""Every kind of record but those in order, and those that are odd only beside others."""

KEYLESS = Disorder("a key of an admin's", Category.KEYLESS)
IN_ORDER = Disorder("in order", Category.LISTED)
SAME_ID = Disorder("the same image as before", Category.LISTED, {}, frozenset({O.SEVERAL_IDS}))
SAME_TAG = Disorder("the same tag as before", Category.LISTED, {}, frozenset({O.SEVERAL_TAGS}))
ROUND = (
    *DISORDERS, KEYLESS, IN_ORDER, SAME_ID, IN_ORDER, SAME_TAG, *[IN_ORDER] * 16,
)  # fmt: skip
"""The kinds of a hundred records, one after the other; then they begin again."""


def image_id(n: int) -> str:
    """Return the image id of a normal record."""
    return f"{n:064x}"


def document(n: int, kind: Disorder) -> dict[str, Any]:
    """Return the document of record `n`."""
    same = n - 1 if kind is SAME_ID else n
    tag = n - 1 if kind is SAME_TAG else n
    members: dict[str, Any] = {
        "_id": f"by hand {n}" if kind is KEYLESS else ObjectId(f"{n:024x}"),
        "format": "squashfs",
        "arch": "amd64",
        "os": "linux",
        "location": "docker.io",
        "remotetype": "dockerv2",
        "ostcount": "0",
        "replication": "1",
        "system": SYSTEMS[n // 2 % 2],
        "itype": "docker",
        "pulltag": f"lib/app:{tag}",
        "tag": [f"lib/app:{tag}"],
        "id": image_id(same),
        "status": "READY",
        "status_message": "Transferring image",
        "userACL": [],
        "groupACL": [],
        "private": False,
        "ENV": ["PATH=/usr/bin", "LANG=C"],
        "ENTRY": ["/bin/sh"],
        "WORKDIR": "/work",
        "last_pull": 1_600_000_000.5 + n,
        "last_heartbeat": 1_600_000_000.5 + n,
        "expiration": NOW + 1000 + n,
    }
    if kind in {SAME_ID, SAME_TAG}:
        members["system"] = SYSTEMS[(n - 1) // 2 % 2]
    for name, value in kind.changes.items():
        if value is ...:
            members.pop(name, None)
        else:
            members[name] = _with_number(value, n)
    return members


def _with_number(value: Any, n: int) -> Any:
    if isinstance(value, str) and not isinstance(value, Code):
        return value.replace("{n}", str(n))
    return [_with_number(element, n) for element in value] if isinstance(value, list) else value


def records(count: int) -> Iterator[tuple[Disorder, dict[str, Any]]]:
    """Yield a number of records, each with its kind."""
    for n in range(1, count + 1):
        kind = ROUND[(n - 1) % len(ROUND)]
        yield kind, document(n, kind)


def rows(count: int) -> list[dict[str, Any]]:
    """Return look-up rows, the oldest first."""
    return [
        {"user": "me", "uid": OWNER, "system": SYSTEMS[n % 2], "type": "docker",
         "tag": f"lib/app:{n}", "id": image_id(n), "time": NOW - 1000 + n}
        for n in range(count)
    ]  # fmt: skip
