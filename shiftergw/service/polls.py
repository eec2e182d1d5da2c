"""Remember the last answers to polls, to repeat them while the store is unavailable."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from shiftergw.model import ImageRecord
from shiftergw.states import POLLING_STATES

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
        self._clock = clock
        self._answers: OrderedDict[Poll, tuple[float, ImageRecord]] = OrderedDict()

    def remember(self, poll: Poll, record: ImageRecord) -> None:
        """Remember an answer, unless it ends the polling."""
        self._answers.pop(poll, None)
        if record.status in POLLING_STATES:
            self._answers[poll] = self._clock.seconds(), record
            if len(self._answers) > CAPACITY:
                self._answers.popitem(last=False)

    def get(self, poll: Poll) -> ImageRecord | None:
        """Return the last answer to this poll, or None if it is older than `VALID_SECONDS`."""
        time, record = self._answers.get(poll, (0.0, None))
        return record if time + VALID_SECONDS > self._clock.seconds() else None
