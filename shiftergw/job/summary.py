"""The log line that reports the end of a pull or a removal: who, what, how much, how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shiftergw.errors import printable
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.rules.attempts import trace_of
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.job.attempt import Attempt

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
        self.downloaded_bytes = self._last_downloaded_bytes = 0
        """Bytes of layers that have arrived from the registry."""
        self.sent_bytes = 0
        """Bytes of the image that were sent to the system."""
        self.steps: Mapping[str, float] = {}
        """The seconds of each step of the build, which overlap: layers are read as they arrive."""

    def enter(self, stage: str) -> None:
        """Start measuring a stage, or continue with it if it has been measured before."""
        self._count()
        self._stage = stage

    def report(self, progress: Progress) -> None:
        """Count the bytes that a progress report contains."""
        if progress.stage == "fetch":
            self.layer_bytes = max(self.layer_bytes, progress.done)
            # A download of all layers that begins again counts from 0.
            begins_again = progress.downloaded_bytes < self._last_downloaded_bytes
            earlier = 0 if begins_again else self._last_downloaded_bytes
            self.downloaded_bytes += progress.downloaded_bytes - earlier
            self._last_downloaded_bytes = progress.downloaded_bytes
        elif progress.stage == "deliver":
            self.sent_bytes = max(self.sent_bytes, progress.done - progress.copied_bytes)

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


_KINDS = {"pull": "pull", "acl": "change of readers", "expire": "removal"}
"""What the log calls the kinds of work."""

SUPERSEDED_OUTCOME = "superseded"
"""The outcome of an attempt that another one has taken over."""

_WITH_CAUSE = frozenset({State.FAILURE, State.EXPIRING, State.PENDING})


def event_of(record: ImageRecord, outcome: str) -> str:
    """Return the words that begin the line, such as `pull finished`."""
    verb = {str(State.PENDING): "postponed", SUPERSEDED_OUTCOME: "superseded"}.get(
        outcome, "finished"
    )
    return f"{_KINDS.get(record.kind, 'pull')} {verb}"


def summary(attempt: Attempt, outcome: str, image: ImageRecord | None = None) -> dict[str, Any]:
    """Return the fields of the log line at the end of an attempt, always in the same order.

    `outcome` is the state in which the attempt left its record, or `superseded`. `image` is the
    record of the image file, if there is one. Only what has not succeeded has a cause.
    """
    record, timeline = attempt.record, attempt.timeline
    tags = record.tags if record.kind == "expire" else (record.pulltag or "",)
    names = [f"{record.itype}:{tag}" for tag in tags]
    has_cause = attempt.cause and outcome in _WITH_CAUSE
    return {
        "outcome": outcome,
        "user": record.requester,
        "uid": record.requested_by,
        "system": record.system,
        "image": ",".join(names),
        "id": (image.id if image is not None else None) or attempt.image_id,
        **trace_of(record),
        "deaths": record.deaths,
        "seconds": round(timeline.total(), 1),
        "waited": round(_seconds_until_begin(record, timeline), 1),
        "stages": _long_enough(timeline.seconds()),
        "steps": _long_enough(timeline.steps),
        "bytes_layers": timeline.layer_bytes,
        "bytes_downloaded": timeline.downloaded_bytes,
        "bytes_image": None if image is None else image.size,
        "bytes_sent": timeline.sent_bytes,
        **({"cause": printable(attempt.cause, CAUSE_LIMIT)} if has_cause else {}),
    }


def _long_enough(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return what took long enough to be named, in seconds with one decimal."""
    return {name: round(value, 1) for name, value in seconds.items() if value >= _QUIET_SECONDS}


def _seconds_until_begin(record: ImageRecord, timeline: Timeline) -> float:
    """Return the seconds from the request to the begin of this attempt, with earlier attempts.

    Removals do not record when they were requested.
    """
    if record.kind == "expire" or record.last_pull is None:
        return 0.0
    return max(0.0, timeline.start - record.last_pull)
