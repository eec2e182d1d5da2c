"""What the end of an attempt adds to the metrics."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from shiftergw.app.metric_counts import MetricCounts
from shiftergw.errors import ImageNotFound, RegistryUnavailable, RetryLater
from shiftergw.job.attempt import Attempt
from shiftergw.job.measures import measure
from shiftergw.model.metrics import ATTEMPTS
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.ports import ImageStore
from shiftergw.states import State
from tests.job.workbench import Bench

RECORD = ImageRecord(
    key="k", system="cluster", pulltag="lib/app:1", status=State.PULLING, attempt=1, last_pull=997.5
)


def attempt_at(record: ImageRecord, clock: Clock) -> Attempt:
    """Return an attempt that needs no store."""
    return Attempt(record, cast("ImageStore", None), clock, 60)


def test_a_pull() -> None:
    """A pull counts by outcome, with the seconds of its stages and steps, and its bytes."""
    clock, counts = Clock(), MetricCounts()
    clock.advance(1000)
    attempt = attempt_at(RECORD, clock)
    attempt.report(Progress("fetch", 100, 100, downloaded_bytes=70))
    clock.advance(2)
    attempt.enter_stage(State.TRANSFER, "")
    attempt.report(Progress("deliver", 50, 50, copied_bytes=10))
    clock.advance(0.2)
    attempt.timeline.steps = {"pack": 1.5}
    attempt.cause_code = "of-an-earlier-failure"
    measure(counts, attempt, "READY", replace(RECORD, id="abc", size=50))
    numbers = {(name, *labels): values[-1] for name, labels, values in counts.entries()}
    assert numbers == {
        ("shiftergw_attempts_total", "cluster", "pull", "READY", ""): 1,
        ("shiftergw_stage_seconds", "cluster", "PULLING"): 2,
        ("shiftergw_stage_seconds", "cluster", "TRANSFER"): pytest.approx(0.2),
        ("shiftergw_step_seconds_total", "pack"): 1.5,
        ("shiftergw_layer_bytes_total", "registry"): 70,
        ("shiftergw_layer_bytes_total", "cache"): 30,
        ("shiftergw_sent_bytes_total", "cluster"): 40,
        ("shiftergw_wait_seconds", "cluster"): 2.5,
        ("shiftergw_image_bytes_total", "cluster"): 50,
    }


def test_a_failure() -> None:
    """A failure counts by the code of its error, and has neither bytes nor a wait."""
    counts = MetricCounts()
    attempt = attempt_at(RECORD, Clock())
    attempt.cause_code = "no-space"
    measure(counts, attempt, "FAILURE", None)
    names = {name: labels for name, labels, _ in counts.entries()}
    assert names == {
        "shiftergw_attempts_total": ["cluster", "pull", "FAILURE", "no-space"],
        "shiftergw_stage_seconds": ["cluster", "PULLING"],
    }


@pytest_twisted.ensureDeferred
async def test_causes_are_codes(bench: Bench) -> None:
    """Errors count by their code, waits by what is waited for, and faults of our own together."""
    counts = MetricCounts()
    bench.worker._metrics = counts
    await bench.pull()
    failure = RegistryUnavailable("The registry is away.")
    for error in (
        ImageNotFound("There is no image lib/secret:1."),
        RuntimeError("a surprise"),
        RetryLater(time.time() + 5, "the registry", failure),
    ):
        bench.source.refuses = error
        await bench.pull("lib/other:1")
    causes = {
        (labels[2], labels[3]) for name, labels, _ in counts.entries() if name == ATTEMPTS.name
    }
    assert causes == {
        ("READY", ""),
        ("FAILURE", ImageNotFound.code),
        ("FAILURE", "fault"),
        ("PENDING", "wait-for-registry"),
    }
