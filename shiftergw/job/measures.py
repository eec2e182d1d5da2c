"""What an attempt that has ended adds to the metrics."""

from __future__ import annotations

from shiftergw.job.attempt import Attempt
from shiftergw.model.metrics import (
    ATTEMPTS,
    IMAGE_BYTES,
    LAYER_BYTES,
    SENT_BYTES,
    STAGE_SECONDS,
    STEP_SECONDS,
    WAIT_SECONDS,
)
from shiftergw.model.records import ImageRecord
from shiftergw.ports import Metrics
from shiftergw.rules.work_ends import seconds_until_begin
from shiftergw.states import State


def measure(metrics: Metrics, attempt: Attempt, outcome: str, image: ImageRecord | None) -> None:
    """Count an attempt by its outcome and cause, and its times and bytes.

    `outcome` is the state in which it left its record, or `superseded`; `image` is the record of
    the image file, if there is one.
    """
    record, timeline = attempt.record, attempt.timeline
    cause = "" if outcome in (State.READY, State.EXPIRED) else attempt.cause_code
    metrics.add(ATTEMPTS, 1, record.system, record.kind, outcome, cause)
    for stage, seconds in timeline.seconds().items():
        metrics.observe(STAGE_SECONDS, seconds, record.system, stage)
    for step, seconds in timeline.steps.items():
        metrics.add(STEP_SECONDS, seconds, step)
    if timeline.layer_bytes:
        present_bytes = max(0, timeline.layer_bytes - timeline.downloaded_bytes)
        metrics.add(LAYER_BYTES, timeline.downloaded_bytes, "registry")
        metrics.add(LAYER_BYTES, present_bytes, "cache")
    if timeline.sent_bytes:
        metrics.add(SENT_BYTES, timeline.sent_bytes, record.system)
    if outcome == State.READY:
        metrics.observe(WAIT_SECONDS, seconds_until_begin(record, timeline.start), record.system)
        metrics.add(IMAGE_BYTES, (image and image.size) or 0, record.system)
