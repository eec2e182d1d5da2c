"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shiftergw.errors import GatewayError, printable


class Level(StrEnum):
    """How grave a finding is; with a failure the gateway will not work."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def failure(name: str, error: GatewayError) -> Finding:
    """Return what an error says."""
    text = " ".join(filter(None, [error.what, printable(error.detail)]))
    return Finding(name, Level.FAILURE, text, error.remedy)
