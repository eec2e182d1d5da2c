"""The one line of the log that tells how a pull, or a removal, went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftergw.errors import amount, printable
from shiftergw.model import ImageRecord, Progress
from shiftergw.rules.attempts import describe_attempt, describe_work

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

CAUSE_LIMIT = 1200
"""Characters of a cause, and of what belongs to it: a tool's last words, an answer of a server."""

_QUIET_SECONDS = 0.05
"""A stage, or a wait, that took less is left out."""


class Timeline:
    """Measures the stages of one attempt, and counts the bytes of its layers."""

    def __init__(self, clock: IReactorTime, stage: str) -> None:
        """Begin now, in `stage`."""
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._stage = stage
        self.began = self._since = clock.seconds()
        self.fetched = 0
        """Bytes of layers, those that were in the cache included."""

    def enter(self, stage: str) -> None:
        """Note that a stage begins; one that comes again goes on."""
        self._count()
        self._stage = stage

    def report(self, progress: Progress) -> None:
        """Note how far a stage is."""
        if progress.stage == "fetch":
            self.fetched = max(self.fetched, progress.done)

    def seconds(self) -> dict[str, float]:
        """Return for each stage so far how many seconds it took, in the order of their begin."""
        self._count()
        return dict(self._seconds)

    def total(self) -> float:
        """Return the seconds since the attempt began."""
        return self._clock.seconds() - self.began

    def _count(self) -> None:
        now = self._clock.seconds()
        # A clock that was set back takes nothing away.
        passed = max(0.0, now - self._since)
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + passed
        self._since = now


def summary(record: ImageRecord, timeline: Timeline, ended: str, size: int | None, why: str) -> str:
    """Return how an attempt at a record went.

    `ended` is the state in which it left the record, or a word for why it left it in flight;
    `size` is the image file's in bytes, if there is one; `why` the cause of a failure.
    """
    amounts = [
        *([f"layers {amount(timeline.fetched)}"] if timeline.fetched else []),
        *([f"image {amount(size)}"] if size is not None else []),
    ]
    stages = [
        f"{stage} {seconds:.1f} s"
        for stage, seconds in timeline.seconds().items()
        if seconds >= _QUIET_SECONDS
    ]
    waited = _waited(record, timeline)
    if waited >= _QUIET_SECONDS:
        stages.insert(0, f"waited {waited:.1f} s")
    figures = ", ".join([*amounts, f"{timeline.total():.1f} s"])
    parts = [
        (
            f"{ended}: {describe_work(record)} for {_user_of(record)},"
            f" {describe_attempt(record)}: {figures}"
        ),
        f" ({', '.join(stages)})" if stages else "",
        f": {printable(why, CAUSE_LIMIT)}" if why else "",
    ]
    return "".join(parts)


def _user_of(record: ImageRecord) -> str:
    uid = "-" if record.requested_by is None else str(record.requested_by)
    return f"{printable(record.requester, 60)}({uid})" if record.requester else f"uid {uid}"


def _waited(record: ImageRecord, timeline: Timeline) -> float:
    """Return the seconds between the request and its first attempt; 0 for other attempts.

    A removal has no time of its request.
    """
    if record.kind == "expire" or record.attempt != 1 or record.last_pull is None:
        return 0.0
    return max(0.0, timeline.began - record.last_pull)
