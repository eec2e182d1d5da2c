"""The fields of the log line at the end of work, which worker and gateway write alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shiftergw.errors import printable
from shiftergw.model.records import ImageRecord
from shiftergw.rules.attempts import trace_of
from shiftergw.states import State

CAUSE_LIMIT = 1200
"""Characters of a cause, with its detail: the last output of a tool, the reply of a server."""

QUIET_SECONDS = 0.05
"""Stages that took less time are left out."""

SUPERSEDED_OUTCOME = "superseded"
"""The outcome of an attempt that another one has taken over."""

_KINDS = {"pull": "pull", "acl": "change of readers", "expire": "removal"}
"""What the log calls the kinds of work."""

_VERBS = {str(State.PENDING): "postponed", SUPERSEDED_OUTCOME: "superseded"}

_WITH_CAUSE = frozenset({State.FAILURE, State.EXPIRING, State.PENDING})


@dataclass(frozen=True, slots=True)
class WorkMeasures:
    """What an attempt has taken: seconds, and bytes; nothing if no worker has begun it."""

    start: float
    end: float
    stages: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    layer_bytes: int = 0
    downloaded_bytes: int = 0
    sent_bytes: int = 0


def event_of(record: ImageRecord, outcome: str) -> str:
    """Return the words that begin the line, such as `pull finished`."""
    return f"{_KINDS.get(record.kind, 'pull')} {_VERBS.get(outcome, 'finished')}"


def end_fields(
    record: ImageRecord,
    outcome: str,
    measures: WorkMeasures,
    *,
    image_id: str | None = None,
    image_size: int | None = None,
    cause: str = "",
) -> dict[str, Any]:
    """Return the fields of the line, always in the same order.

    `outcome` is the state in which the attempt left `record`, or `superseded`. Only what has not
    succeeded has a cause.
    """
    tags = record.tags if record.kind == "expire" else (record.pulltag or "",)
    names = [f"{record.itype}:{tag}" for tag in tags]
    return {
        "outcome": outcome,
        "user": record.requester,
        "uid": record.requested_by,
        "system": record.system,
        "image": ",".join(names),
        "id": image_id or record.id,
        **trace_of(record),
        "deaths": record.deaths,
        "seconds": round(max(0.0, measures.end - measures.start), 1),
        "waited": round(seconds_until_begin(record, measures.start), 1),
        "stages": _rounded_seconds(measures.stages),
        "steps": _rounded_seconds(measures.steps),
        "bytes_layers": measures.layer_bytes,
        "bytes_downloaded": measures.downloaded_bytes,
        "bytes_image": image_size,
        "bytes_sent": measures.sent_bytes,
        **({"cause": printable(cause, CAUSE_LIMIT)} if cause and outcome in _WITH_CAUSE else {}),
    }


def _rounded_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds with one decimal, without those below `QUIET_SECONDS`."""
    return {name: round(value, 1) for name, value in seconds.items() if value >= QUIET_SECONDS}


def seconds_until_begin(record: ImageRecord, start: float) -> float:
    """Return the seconds from the request until this attempt began, with earlier attempts.

    Removals do not record when they were requested.
    """
    if record.kind == "expire" or record.last_pull is None:
        return 0.0
    return max(0.0, start - record.last_pull)
