"""Header fields of a registry's answers that steer the client: challenges, ranges, waits.

What does not follow its grammar is passed over, never an exception: these fields come from
strangers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word for a word
_SCHEME = re.compile(_TOKEN)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_BLANK = re.compile(r"[ \t]*")
_SEPARATOR = re.compile(r"[ \t,]*")
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
_SECONDS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers (RFC 9110, section 11.3).

    `scheme` and the names of the parameters are in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(fields: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all `WWW-Authenticate` fields of an answer, in order.

    Commas part both challenges and parameters, so what a word is shows by what follows it. After
    something unreadable the rest of its field is left out.
    """
    return tuple(challenge for value in fields for challenge in _challenges(value))


def _challenges(text: str) -> Iterator[Challenge]:
    position = _after(_SEPARATOR, text, 0)
    while scheme := _SCHEME.match(text, position):
        parameters: dict[str, str] = {}
        position = _after(_BLANK, text, scheme.end())
        # A token68 stands where parameters would; none of the schemes that we speak has one.
        if not _PARAMETER.match(text, position) and (single := _TOKEN68.match(text, position)):
            position = single.end()
        position = _after(_SEPARATOR, text, position)
        while found := _PARAMETER.match(text, position):
            quoted = found[2]
            value = found[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(found[1].lower(), value)
            position = _after(_SEPARATOR, text, found.end())
        yield Challenge(scheme[0].lower(), parameters)


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    assert match is not None, "these patterns match the empty text"
    return match.end()


def parse_content_range(value: str) -> tuple[int, int, int | None] | None:
    """Return (first, last, complete length if told) of a `Content-Range` (RFC 9110, 14.4)."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = int(match[1]), int(match[2]), int(match[3]) if match[3] else None
    if last < first or (total is not None and last >= total):
        return None
    return first, last, total


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, 10.2.3): a number or a date."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
