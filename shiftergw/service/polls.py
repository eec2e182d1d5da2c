"""Remember the last answers to polls, to repeat them while the store is unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.recent import RecentValues

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

CAPACITY = 10_000
"""Answers that are remembered; the oldest are dropped first."""

VALID_SECONDS = 600.0
"""Seconds for which an answer may be repeated: longer than any server takes to restart."""

Poll = tuple[int, str]
"""The uid of the user who polls, and the claim."""


class LastAnswers:
    """Remembers the last answer to each poll that a client will repeat."""

    def __init__(self, clock: IReactorTime) -> None:
        """Start without answers."""
        self._answers: RecentValues[Poll, ImageRecord] = RecentValues(
            CAPACITY, VALID_SECONDS, clock
        )

    def remember(self, poll: Poll, record: ImageRecord) -> None:
        """Remember an answer, unless it ends the polling."""
        if record.is_polled:
            self._answers.set(poll, record)
        else:
            self._answers.discard(poll)

    def get(self, poll: Poll) -> ImageRecord | None:
        """Return the last answer to this poll, or None if it is older than `VALID_SECONDS`."""
        return self._answers.get(poll)
