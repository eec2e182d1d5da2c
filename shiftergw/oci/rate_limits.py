"""Parse the limits on requests that servers tell in the header fields of their responses.

Docker Hub tells how many manifests may still be read: `RateLimit-Limit: 100;w=21600` and
`RateLimit-Remaining: 76;w=21600`. The drafts of the IETF (draft-ietf-httpapi-ratelimit-headers) add
`RateLimit-Reset` (to -06), or put everything into `RateLimit` and `RateLimit-Policy` (from -07).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shiftergw.errors import duration

_NUMBER = re.compile(r"[ \t]*([0-9]{1,15})(?![0-9.])")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit on the requests of a client.

    `remaining` of `limit` requests in `window` seconds are left; after `reset` seconds there are
    more. None stands for what the server does not tell.
    """

    remaining: int
    limit: int | None = None
    window: int | None = None
    reset: int | None = None

    @property
    def is_low(self) -> bool:
        """Return whether less than a tenth of the requests is left."""
        return self.limit is not None and self.remaining * 10 < self.limit

    def __str__(self) -> str:
        """Return the limit in words: `0 of 100 requests in 6 hours are left`."""
        total = "" if self.limit is None else f" of {self.limit}"
        window = "" if self.window is None else f" in {duration(self.window)}"
        return f"{self.remaining}{total} requests{window} are left"


def parse_rate_limit(field: Callable[[str], str | None]) -> RateLimit | None:
    """Return the limit that a response tells, if it does; `field` returns a field of its header.

    Of several limits the first one counts. Invalid numbers count as missing.
    """
    state, policy = field("RateLimit") or "", field("RateLimit-Policy") or ""
    limit, remaining = field("RateLimit-Limit") or "", field("RateLimit-Remaining") or ""
    count = _first(_number(remaining), _parameter(state, "remaining"), _parameter(state, "r"))
    if count is None:
        return None
    return RateLimit(
        count,
        _first(
            _number(limit),
            _parameter(state, "limit"),
            _parameter(policy, "q"),
            _number(policy),
        ),
        _first(_parameter(limit, "w"), _parameter(remaining, "w"), _parameter(policy, "w")),
        _first(
            _number(field("RateLimit-Reset") or ""),
            _parameter(state, "reset"),
            _parameter(state, "t"),
        ),
    )


def _number(text: str) -> int | None:
    match = _NUMBER.match(text)
    return None if match is None else int(match[1])


def _parameter(text: str, name: str) -> int | None:
    match = re.search(rf"(?:^|[;, \t]){name}=([0-9]{{1,15}})(?![0-9.])", text)
    return None if match is None else int(match[1])


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)
