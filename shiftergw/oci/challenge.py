"""Parse header fields of registries: challenges, content ranges, and times to wait.

Registries are not trusted: text that violates the grammar of a field is skipped and raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the "token" of RFC 9110
_SCHEME = re.compile(_TOKEN)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_BLANK = re.compile(r"[ \t]*")
_SEPARATOR = re.compile(r"[ \t,]*")
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
_SECONDS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of a server, which offers one authentication scheme (RFC 9110, section 11.3).

    `scheme` and the names of the parameters are in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(fields: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all `WWW-Authenticate` fields of a response, in order.

    Commas separate challenges as well as parameters, so the text after a word decides what the word
    is. After invalid text the rest of the field is skipped.
    """
    return tuple(challenge for value in fields for challenge in _challenges(value))


def _challenges(text: str) -> Iterator[Challenge]:
    position = _skip(_SEPARATOR, text, 0)
    while scheme := _SCHEME.match(text, position):
        parameters: dict[str, str] = {}
        position = _skip(_BLANK, text, scheme.end())
        # A token68 takes the place of parameters; none of the supported schemes uses one.
        if not _PARAMETER.match(text, position) and (single := _TOKEN68.match(text, position)):
            position = single.end()
        position = _skip(_SEPARATOR, text, position)
        while match := _PARAMETER.match(text, position):
            name, quoted_value, value = match.groups()
            if quoted_value is not None:
                value = re.sub(r"\\(.)", r"\1", quoted_value)
            parameters.setdefault(name.lower(), value)
            position = _skip(_SEPARATOR, text, match.end())
        yield Challenge(scheme[0].lower(), parameters)


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    assert match is not None, "these patterns match the empty text"
    return match.end()


def parse_content_range(value: str) -> tuple[int, int, int | None] | None:
    """Return (first, last, complete length or None) of a `Content-Range` (RFC 9110, 14.4).

    Returns None for an invalid value.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = int(match[1]), int(match[2]), int(match[3]) if match[3] else None
    if last < first or (total is not None and last >= total):
        return None
    return first, last, total


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds of a `Retry-After`, a number or a date (RFC 9110, 10.2.3).

    Returns None for an invalid value.
    """
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
