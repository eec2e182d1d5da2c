"""The log line at the end of an attempt."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.task import Clock

from shiftergw.job.summary import Timeline, summary
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.rules.attempts import describe_work
from shiftergw.states import State

RECORD = ImageRecord(
    key="k",
    system="cluster",
    pulltag="lib/app:1",
    attempt=1,
    requested_by=2001,
    requester="alice",
    request_id="1a2b3c4d",
    last_pull=997.5,
)


def test_a_pull() -> None:
    """One line has outcome, image, system, user, request, bytes, seconds of stages and of steps."""
    clock = Clock()
    clock.advance(1000)
    timeline = Timeline(clock, "PULLING")
    clock.advance(1)
    timeline.enter("PULLING")
    timeline.report(Progress("fetch", 27_500_000, 27_500_000))
    clock.advance(2)
    timeline.enter("CONVERSION")
    timeline.report(Progress("build", 99, 100))
    clock.advance(4)
    timeline.enter("EXAMINATION")
    clock.advance(0.01)
    timeline.enter("TRANSFER")
    clock.advance(0.5)
    timeline.steps = {"fetch": 2.9, "pack": 6.25, "plan": 0.01}
    assert summary(RECORD, timeline, "READY", 25_100_000, "") == (
        "READY: docker:lib/app:1 on cluster for alice(2001), request 1a2b3c4d, attempt 1:"
        " layers 27.5 MB, image 25.1 MB, 7.5 s"
        " (waited 2.5 s, PULLING 3.0 s, CONVERSION 4.0 s, TRANSFER 0.5 s; fetch 2.9 s, pack 6.2 s)"
    )


def test_a_failure() -> None:
    """The line ends with the cause and its details; foreign text cannot break the line."""
    timeline = Timeline(Clock(), "PULLING")
    unknown = replace(RECORD, requester=None, request_id=None, last_pull=None, attempt=2)
    assert summary(unknown, timeline, "FAILURE", None, "It broke.\nREADY: x\x1b[2J") == (
        "FAILURE: docker:lib/app:1 on cluster for uid 2001, attempt 2: 0.0 s:"
        r" It broke.\x0aREADY: x\x1b[2J"
    )


def test_names() -> None:
    """Removals and changes of readers are named as such."""
    assert describe_work(replace(RECORD, kind="acl")) == "readers of docker:lib/app:1 on cluster"
    removal = replace(RECORD, kind="expire", tags=("lib/app:1", "lib/app:2"))
    assert describe_work(removal) == "removal of lib/app:1, lib/app:2 on cluster"
    assert describe_work(replace(removal, tags=(), id="abc")) == "removal of abc on cluster"
    line = summary(removal, Timeline(Clock(), "EXPIRING"), str(State.EXPIRED), None, "")
    assert "waited" not in line


def test_a_clock_that_is_set_back() -> None:
    """No stage takes negative time."""
    clock = Clock()
    clock.advance(100)
    timeline = Timeline(clock, "PULLING")
    clock.rightNow = 40
    timeline.enter("TRANSFER")
    clock.advance(3)
    assert timeline.seconds() == {"PULLING": 0.0, "TRANSFER": 3.0}
