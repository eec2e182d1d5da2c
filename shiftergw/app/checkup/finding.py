"""The findings of a check, and how grave they are."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from shiftergw.errors import GatewayError, printable

NETWORK_LIMIT = 10.0
"""Seconds for a registry, a system or a running gateway to answer."""

LITTLE_SPACE = 10 * 10**9
"""Free bytes below which a directory of images or layers gets a warning."""

LEAST_FOR_STATE = 10**6
"""Free bytes without which the gateway cannot start: for the key and an empty database."""

LITTLE_FOR_STATE = 100 * 10**6
"""Free bytes below which StateDirectory, which contains the database, gets a warning."""

WARNING_TIME = dt.timedelta(days=14)
"""The time before the end of a certificate or a key at which a warning begins."""

_TELL = "Tell the site's support"


class Level(StrEnum):
    """How grave a finding is: with a failure, the gateway will not work."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, the result, and what to do about it."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def failure(name: str, error: GatewayError) -> Finding:
    """Return an error as a finding."""
    text = " ".join(filter(None, [error.what, printable(error.detail)]))
    return Finding(name, Level.FAILURE, text, for_support(error.remedy))


def date_problem(
    start: dt.datetime, end: dt.datetime | None, now: dt.datetime
) -> tuple[Level, str] | None:
    """Return what is wrong with the time in which a certificate or a key is valid, if anything.

    An `end` of None is never.
    """
    if start > now:
        return Level.FAILURE, f"is not valid before {start:%Y-%m-%d}"
    if end is None:
        return None
    if end < now:
        return Level.FAILURE, f"expired on {end:%Y-%m-%d}"
    if end < now + WARNING_TIME:
        return Level.WARNING, f"expires on {end:%Y-%m-%d}"
    return None


def for_support(remedy: str) -> str:
    """Return a remedy without the advice to tell the site's support, which runs this check."""
    if remedy.removesuffix(".") == _TELL:
        return ""
    if remedy.startswith(f"{_TELL}: "):
        rest = remedy.removeprefix(f"{_TELL}: ")
        return rest[0].upper() + rest[1:]
    tell = _TELL.lower()
    return remedy.replace(f"; if it lasts, {tell}.", ".").replace(f"{tell}: ", "")


def of_free_space(name: str, text: str, free: int) -> Finding:
    """Judge the free space of a directory: the state is small, other directories contain images."""
    if name == "StateDirectory":
        if free < LEAST_FOR_STATE:
            return Finding(
                name, Level.FAILURE, text, "The key and the database do not fit: make room."
            )
        if free < LITTLE_FOR_STATE:
            return Finding(
                name, Level.WARNING, text, "The database will not fit for long: make room."
            )
        return Finding(name, Level.OK, text)
    if free < LITTLE_SPACE:
        return Finding(name, Level.WARNING, text, "Large images will not fit: make room.")
    return Finding(name, Level.OK, text)
