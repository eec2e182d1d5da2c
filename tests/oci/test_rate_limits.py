"""Tests of limits on requests: the forms of Docker Hub and of the IETF's drafts."""

from __future__ import annotations

import pytest

from shiftergw.oci.rate_limits import RateLimit, parse_rate_limit


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Docker Hub
        (
            {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "76;w=21600"},
            RateLimit(76, 100, 21600),
        ),
        # draft-ietf-httpapi-ratelimit-headers-06
        (
            {
                "RateLimit-Limit": "10",
                "RateLimit-Policy": "10;w=1, 50;w=60",
                "RateLimit-Remaining": "9",
                "RateLimit-Reset": "7",
            },
            RateLimit(9, 10, 1, 7),
        ),
        # -07
        (
            {"RateLimit": "limit=10, remaining=4, reset=12", "RateLimit-Policy": "10;w=60"},
            RateLimit(4, 10, 60, 12),
        ),
        # -10
        (
            {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=10'},
            RateLimit(50, 100, 10, 30),
        ),
        ({"RateLimit-Remaining": " 0"}, RateLimit(0)),
        ({"RateLimit-Limit": "100;w=21600"}, None),
        ({}, None),
        ({"RateLimit-Remaining": "-1"}, None),
        ({"RateLimit-Remaining": "1.5"}, None),
        ({"RateLimit-Remaining": "9" * 16}, None),
        ({"RateLimit": "xr=1;r=x"}, None),
        ({"RateLimit-Remaining": "5", "RateLimit-Limit": "many;w=soon"}, RateLimit(5)),
    ],
)
def test_forms(fields: dict[str, str], expected: RateLimit | None) -> None:
    """The fields of a limit are read; invalid fields count as missing."""
    assert parse_rate_limit(fields.get) == expected


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (RateLimit(9, 100, 21600), "9 of 100 requests in 6 hours are left"),
        (RateLimit(0, 100), "0 of 100 requests are left"),
        (RateLimit(3), "3 requests are left"),
    ],
)
def test_words(limit: RateLimit, text: str) -> None:
    """The text of a limit has its known parts."""
    assert str(limit) == text


def test_a_limit_is_low_below_a_tenth() -> None:
    """A limit is never low if its total is unknown."""
    limits = RateLimit(9, 100), RateLimit(10, 100), RateLimit(0)
    assert [limit.is_low for limit in limits] == [True, False, False]
