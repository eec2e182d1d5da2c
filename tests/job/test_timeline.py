"""What an attempt has taken, for the log line at its end."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.job.timeline import Timeline
from shiftergw.model.records import Progress
from shiftergw.rules.work_ends import WorkMeasures


def test_an_attempt() -> None:
    """The seconds of stages and steps are measured, and bytes that were downloaded and sent."""
    clock = Clock()
    clock.advance(1000)
    timeline = Timeline(clock, "PULLING")
    clock.advance(1)
    timeline.enter("PULLING")
    timeline.report(Progress("fetch", 50, 50, downloaded_bytes=20))
    clock.advance(2)
    timeline.enter("CONVERSION")
    timeline.report(Progress("build", 99, 100))
    clock.advance(4)
    timeline.enter("TRANSFER")
    clock.advance(0.5)
    timeline.report(Progress("deliver", 70, 90, copied_bytes=10))
    timeline.steps = {"fetch": 2.9}
    stages = {"PULLING": 3.0, "CONVERSION": 4.0, "TRANSFER": 0.5}
    assert timeline.measures() == WorkMeasures(1000, 1007.5, stages, {"fetch": 2.9}, 50, 20, 60)


def test_downloads_that_begin_again() -> None:
    """Bytes that were downloaded twice count twice."""
    timeline = Timeline(Clock(), "PULLING")
    for count in (0, 30, 50, 0, 20):
        timeline.report(Progress("fetch", count, 50, downloaded_bytes=count))
    assert (timeline.layer_bytes, timeline.downloaded_bytes) == (50, 70)


def test_a_clock_that_is_set_back() -> None:
    """No stage takes negative time."""
    clock = Clock()
    clock.advance(100)
    timeline = Timeline(clock, "PULLING")
    clock.rightNow = 40
    timeline.enter("TRANSFER")
    clock.advance(3)
    assert timeline.seconds() == {"PULLING": 0.0, "TRANSFER": 3.0}
