"""What those who poll were told last: an answer for them while the store is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftergw.model import ImageRecord
from shiftergw.plumbing.recent import RecentValues
from shiftergw.states import POLLED

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

MOST_KEPT = 10_000
"""Answers; the oldest go first."""

KEPT_SECONDS = 600.0
"""How long a client is told the same: longer than any server takes to start again."""

Poll = tuple[int, str]
"""Whose poll it is (uid), and of which claim."""


class LastAnswers:
    """Remembers the last answer to each poll that is to be asked again."""

    def __init__(self, clock: IReactorTime) -> None:
        """Remember nothing."""
        self._records: RecentValues[Poll, ImageRecord] = RecentValues(
            MOST_KEPT, KEPT_SECONDS, clock
        )

    def keep(self, poll: Poll, record: ImageRecord) -> None:
        """Remember an answer, unless it ended the polling."""
        if record.status in POLLED:
            self._records.set(poll, record)
        else:
            self._records.discard(poll)

    def last(self, poll: Poll) -> ImageRecord | None:
        """Return what this poll was answered last, if it was not long ago."""
        return self._records.get(poll)
