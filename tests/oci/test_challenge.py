"""Header fields of untrusted servers are parsed by RFC 9110, or skipped."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.oci.challenge import (
    Challenge,
    parse_challenges,
    parse_content_range,
    parse_retry_after,
)

REALM = "https://auth.example/token?a=b,c"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            [f'Bearer realm="{REALM}",service="registry.example",scope="repository:x/y:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": REALM,
                        "service": "registry.example",
                        "scope": "repository:x/y:pull,push",
                    },
                )
            ],
        ),
        (['BEARER Realm = "a" , SERVICE=b'], [Challenge("bearer", {"realm": "a", "service": "b"})]),
        (
            [r'Basic realm="a \"quoted\" \\ name"'],
            [Challenge("basic", {"realm": 'a "quoted" \\ name'})],
        ),
        (["Basic"], [Challenge("basic", {})]),
        (
            ['Negotiate, Basic realm=x, Bearer realm="y"'],
            [
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y"}),
            ],
        ),
        (
            ["Negotiate YWJj==, Basic realm=x"],
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})],
        ),
        (
            ['Basic realm="x"', "Bearer realm=y"],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        (['Bearer realm="one", realm="two"'], [Challenge("bearer", {"realm": "one"})]),
        ([", ,Basic realm=x, ,"], [Challenge("basic", {"realm": "x"})]),
        (['Basic realm="ü"'], [Challenge("basic", {"realm": "ü"})]),
        (['"nonsense", Basic realm=x', ""], []),
    ],
)
def test_challenges(fields: list[str], expected: list[Challenge]) -> None:
    """Several challenges, quoted strings, blanks and any letter case are parsed."""
    assert list(parse_challenges(fields)) == expected


@given(st.lists(st.text()))
def test_any_text_is_parsed_without_an_error(fields: list[str]) -> None:
    """No text makes the parser raise or loop forever."""
    assert all(challenge.scheme for challenge in parse_challenges(fields))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 5-9/10", (5, 9, 10)),
        (" bytes 0-0/* ", (0, 0, None)),
        ("bytes */10", None),
        ("bytes 9-5/10", None),
        ("bytes 5-10/10", None),
        ("items 5-9/10", None),
        ("bytes -5-9/10", None),
        ("bytes 5-9", None),
        ("", None),
    ],
)
def test_content_ranges(value: str, expected: tuple[int, int, int | None] | None) -> None:
    """A contradictory range is rejected."""
    assert parse_content_range(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("120", 120), (" 0 ", 0), ("-5", None), ("soon", None), ("1.5", None)]
)
def test_retry_after_in_seconds(value: str, expected: float | None) -> None:
    """A number of seconds is returned; invalid text is rejected."""
    assert parse_retry_after(value, 0) == expected


def test_retry_after_as_a_date() -> None:
    """A date is converted to the seconds until then, at least zero."""
    now = time.time()
    assert parse_retry_after(formatdate(now + 30, usegmt=True), now) == pytest.approx(30, abs=1)
    assert parse_retry_after(formatdate(now - 30, usegmt=True), now) == 0
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 -0000", 1445412470) == 10
    assert parse_retry_after("Wed, 99 Oct 2015 07:28:00 GMT", now) is None
    assert parse_retry_after(f"Wed, 21 Oct {10**20} 07:28:00 GMT", now) is None
