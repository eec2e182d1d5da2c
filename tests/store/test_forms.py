"""What cannot be read in a document counts as absent, and lets nobody in."""

from __future__ import annotations

from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from shiftergw.model import ImageRecord, Session
from shiftergw.store.forms import NOBODY, number_of, readable, tags_of, time_in, unreadable
from tests.store.original import IN_ORDER, document, records


@pytest.mark.parametrize(
    ("member", "value", "read"),
    [
        ("tag", "x:1", ["x:1"]),
        ("tag", ["x:1", 5, None], ["x:1"]),
        ("userACL", [5.0, 6], [5, 6]),
        ("userACL", [5, "6"], [5]),
        ("userACL", ["6"], [NOBODY]),
        ("userACL", [-1, 2**32, True, 5.5], [NOBODY]),
        ("userACL", "5", [NOBODY]),
        ("groupACL", {"5": 5}, [NOBODY]),
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
def test_what_can_be_read(member: str, value: Any, read: Any) -> None:
    """A value in a form that is not ours is read as far as it can be."""
    assert readable({member: value}) == {member: read}


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
def test_what_cannot_be_read(member: str, value: Any) -> None:
    """It counts as absent, and is told of."""
    assert readable({member: value, "more": value}) == {"more": value}
    assert unreadable({member: value, "more": value}) == [member]


def test_what_is_in_order() -> None:
    """Documents in order are read as they are; none, whatever is in it, keeps a record from being.

    Whoever is let in where others are named is one of them.
    """
    own = document(5, IN_ORDER)
    assert (readable(own), unreadable(own)) == (own, [])
    stranger = Session("alpha", "me", 7, "users", 7, frozenset({7}))
    for kind, one in records(100):
        record = ImageRecord.from_document(readable(one))
        if one.get("userACL") or one.get("groupACL"):
            assert record.may_be_read_by(stranger) is (one["private"] == 0), kind.name


def test_times_and_tags() -> None:
    """A member that is absent, or no number, says no time."""
    assert [time_in({"at": at}, "at") for at in (5, 5.5, None, "5", True)] == [5, 5.5, 0, 0, 0]
    assert time_in({}, "at") == 0
    assert number_of(float("nan")) is None
    assert [tags_of({"tag": tag}) for tag in ("x", ["x", 1], None, 5)] == [["x"], ["x"], [], []]
