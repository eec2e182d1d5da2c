"""Unreadable members of a document count as absent, and give no user access."""

from __future__ import annotations

from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.store.legacy_documents import (
    INVALID_UID,
    read_document,
    read_number,
    read_tags,
    read_time,
    unreadable_members,
)
from tests.store.original import IN_ORDER, document, records


@pytest.mark.parametrize(
    ("member", "value", "read"),
    [
        ("tag", "x:1", ["x:1"]),
        ("tag", ["x:1", 5, None], ["x:1"]),
        ("userACL", [5.0, 6], [5, 6]),
        ("userACL", [5, "6"], [5]),
        ("userACL", ["6"], [INVALID_UID]),
        ("userACL", [-1, 2**32, True, 5.5], [INVALID_UID]),
        ("userACL", "5", [INVALID_UID]),
        ("groupACL", {"5": 5}, [INVALID_UID]),
        ("userACL", [], []),
        ("private", 0, False),
        ("private", "false", True),
        ("private", [], True),
        ("ostcount", 5, "5"),
        ("status", 5, "?"),
        ("LABELS", {"a": "b", "c": 5}, {"a": "b"}),
        ("origin", {"location": "l", "repository": "r", "source_digest": "d", "more": 1},
         {"location": "l", "repository": "r", "source_digest": "d", "more": 1, "private": False}),
        ("attempt", 3.0, 3),
        ("attempt", Decimal128("3"), 3),
        ("expiration", Decimal128("-3.5"), -3.5),
        ("groupACL", [Decimal128("5"), Int64(6)], [5, 6]),
    ],
)  # fmt: skip
def test_foreign_forms_are_read_leniently(member: str, value: Any, read: Any) -> None:
    """A value in another form is read as far as possible."""
    assert read_document({member: value}) == {member: read}


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("id", "a" * 63), ("id", "A" * 64), ("id", "../" * 21 + "x"), ("id", 5),
        ("last_pull", Decimal128("NaN")), ("last_pull", Decimal128("sNaN")),
        ("expiration", Decimal128("-Infinity")), ("expiration", Decimal128("1E+999")),
        ("attempt", Decimal128("1.5")), ("last_pull", DatetimeMS(2**60)),
        ("last_pull", float("inf")), ("last_pull", True), ("expiration", "5"),
        ("ENV", {"A": 1}), ("WORKDIR", 5), ("origin", {"location": "l"}), ("origin", "l"),
        ("claim", 5), ("attempt", 1.5), ("report", []), ("retryable", "yes"),
    ],
)  # fmt: skip
def test_unreadable_members_are_absent_and_reported(member: str, value: Any) -> None:
    """Unreadable members are absent, and their names are listed for the survey."""
    assert read_document({member: value, "more": value}) == {"more": value}
    assert unreadable_members({member: value, "more": value}) == [member]


def test_any_document_becomes_a_record() -> None:
    """Members in their proper form are unchanged, and no content raises.

    An access list never contains more users than the document names.
    """
    own = document(5, IN_ORDER)
    assert (read_document(own), unreadable_members(own)) == (own, [])
    stranger = Session("alpha", "me", 7, "users", 7, frozenset({7}))
    for kind, uid in records(100):
        record = ImageRecord.from_document(read_document(uid))
        if uid.get("userACL") or uid.get("groupACL"):
            assert record.may_be_read_by(stranger) is (uid["private"] == 0), kind.name


def test_missing_times_are_zero() -> None:
    """A member that is absent or not a number has no time."""
    assert [read_time({"at": at}, "at") for at in (5, 5.5, None, "5", True)] == [5, 5.5, 0, 0, 0]
    assert read_time({}, "at") == 0
    assert read_number(float("nan")) is None
    assert read_number(10**400) is None
    assert [read_tags({"tag": tag}) for tag in ("x", ["x", 1], None, 5)] == [["x"], ["x"], [], []]
