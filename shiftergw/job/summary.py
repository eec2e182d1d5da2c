"""The log line that reports the end of a pull or a removal: who, what, how much, how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shiftergw.errors import amount, printable
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.rules.attempts import describe_attempt, describe_work

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

CAUSE_LIMIT = 1200
"""Characters of a cause, with its detail: the last output of a tool, the reply of a server."""

_QUIET_SECONDS = 0.05
"""Stages and waits that took less time are left out."""


class Timeline:
    """Measures the stages of one attempt, and counts the bytes of its layers."""

    def __init__(self, clock: IReactorTime, stage: str) -> None:
        """Start measuring in `stage`."""
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._stage = stage
        self.start = self._stage_start = clock.seconds()
        self.layer_bytes = 0
        """Bytes of layers, including those from the cache."""
        self.steps: Mapping[str, float] = {}
        """The seconds of each step of the build, which overlap: layers are read as they arrive."""

    def enter(self, stage: str) -> None:
        """Start measuring a stage, or continue with it if it has been measured before."""
        self._count()
        self._stage = stage

    def report(self, progress: Progress) -> None:
        """Count the bytes of layers that a progress report of the fetch stage contains."""
        if progress.stage == "fetch":
            self.layer_bytes = max(self.layer_bytes, progress.done)

    def seconds(self) -> dict[str, float]:
        """Return the seconds that each stage has taken, in the order in which they began."""
        self._count()
        return dict(self._seconds)

    def total(self) -> float:
        """Return the seconds since the attempt began."""
        return self._clock.seconds() - self.start

    def _count(self) -> None:
        now = self._clock.seconds()
        seconds = max(0.0, now - self._stage_start)  # the clock may have been set back
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + seconds
        self._stage_start = now


def summary(
    record: ImageRecord, timeline: Timeline, result: str, size: int | None, cause: str
) -> str:
    """Return the log line for the end of an attempt.

    `result` is the state in which the attempt left the record, or the reason why it left the record
    in flight; `size` is that of the image file in bytes, if there is one; `cause` is that of a
    failure.
    """
    amounts = [
        *([f"layers {amount(timeline.layer_bytes)}"] if timeline.layer_bytes else []),
        *([f"image {amount(size)}"] if size is not None else []),
    ]
    stages = [
        f"{stage} {seconds:.1f} s"
        for stage, seconds in timeline.seconds().items()
        if seconds >= _QUIET_SECONDS
    ]
    steps = [
        f"{step} {seconds:.1f} s"
        for step, seconds in timeline.steps.items()
        if seconds >= _QUIET_SECONDS
    ]
    wait_seconds = _seconds_until_begin(record, timeline)
    if wait_seconds >= _QUIET_SECONDS:
        stages.insert(0, f"waited {wait_seconds:.1f} s")
    figures = ", ".join([*amounts, f"{timeline.total():.1f} s"])
    parts = [
        f"{result}: {describe_work(record)} for {_user_of(record)}, ",
        f"{describe_attempt(record)}: {figures}",
        f" ({'; '.join(', '.join(part) for part in (stages, steps) if part)})"
        if stages or steps
        else "",
        f": {printable(cause, CAUSE_LIMIT)}" if cause else "",
    ]
    return "".join(parts)


def _user_of(record: ImageRecord) -> str:
    uid = "-" if record.requested_by is None else str(record.requested_by)
    return f"{printable(record.requester, 60)}({uid})" if record.requester else f"uid {uid}"


def _seconds_until_begin(record: ImageRecord, timeline: Timeline) -> float:
    """Return the seconds between the request and its first attempt; 0 for later attempts.

    Removals do not record when they were requested.
    """
    if record.kind == "expire" or record.attempt != 1 or record.last_pull is None:
        return 0.0
    return max(0.0, timeline.start - record.last_pull)
