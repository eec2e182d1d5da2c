"""The log line at the end of an attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from twisted.internet.task import Clock

from shiftergw.errors import key_values
from shiftergw.job.attempt import Attempt
from shiftergw.job.summary import Timeline, event_of, summary
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.ports import ImageStore
from shiftergw.rules.attempts import describe_work
from shiftergw.states import State

RECORD = ImageRecord(
    key="k",
    system="cluster",
    pulltag="lib/app:1",
    status=State.PULLING,
    attempt=1,
    requested_by=2001,
    requester="alice",
    request_id="1a2b3c4d",
    last_pull=997.5,
)


def attempt_at(record: ImageRecord, clock: Clock) -> Attempt:
    """Return an attempt that needs no store."""
    return Attempt(record, cast("ImageStore", None), clock, 60)


def test_a_pull() -> None:
    """One line has outcome, user, system, image, id, request, seconds and bytes, in this order."""
    clock = Clock()
    clock.advance(1000)
    attempt = attempt_at(RECORD, clock)
    clock.advance(1)
    attempt.enter_stage(State.PULLING, "")
    attempt.report(Progress("fetch", 27_500_000, 27_500_000, downloaded_bytes=7_000_000))
    clock.advance(2)
    attempt.enter_stage(State.CONVERSION, "")
    attempt.report(Progress("build", 99, 100))
    clock.advance(4)
    attempt.enter_stage(State.EXAMINATION, "")
    clock.advance(0.01)
    attempt.enter_stage(State.TRANSFER, "")
    clock.advance(0.5)
    attempt.report(Progress("deliver", 25_100_000, 25_100_000, copied_bytes=100_000))
    attempt.timeline.steps = {"fetch": 2.9, "pack": 6.25, "plan": 0.01}
    attempt.cause = "of an earlier failure"
    fields = summary(attempt, "READY", replace(RECORD, id="abc", size=25_100_000))
    assert f"{event_of(RECORD, 'READY')} {key_values(fields)}" == (
        "pull finished outcome=READY user=alice uid=2001 system=cluster image=docker:lib/app:1"
        " id=abc request=1a2b3c4d job=k attempt=1 deaths=0 seconds=7.5 waited=2.5"
        " stages=PULLING:3.0,CONVERSION:4.0,TRANSFER:0.5 steps=fetch:2.9,pack:6.2"
        " bytes_layers=27500000 bytes_downloaded=7000000 bytes_image=25100000 bytes_sent=25000000"
    )


def test_a_failure() -> None:
    """A failure has the same fields, and its cause; foreign text cannot break the line."""
    unknown = replace(
        RECORD, requester=None, request_id=None, last_pull=None, attempt=2, pulltag='a b="c'
    )
    attempt = attempt_at(unknown, Clock())
    attempt.image_id, attempt.cause = "abc", "It broke.\nREADY: x\x1b[2J"
    assert key_values(summary(attempt, "FAILURE")) == (
        'outcome=FAILURE user=- uid=2001 system=cluster image="docker:a b=\\"c" id=abc request=-'
        " job=k attempt=2 deaths=0 seconds=0.0 waited=0.0 stages=- steps=- bytes_layers=0"
        ' bytes_downloaded=0 bytes_image=- bytes_sent=0 cause="It broke.\\\\x0aREADY: x\\\\x1b[2J"'
    )


def test_names() -> None:
    """Removals and changes of readers are named as such, and so is the end that is none."""
    assert describe_work(replace(RECORD, kind="acl")) == "readers of docker:lib/app:1 on cluster"
    removal = replace(RECORD, kind="expire", tags=("lib/app:1", "lib/app:2"))
    assert describe_work(removal) == "removal of lib/app:1, lib/app:2 on cluster"
    assert describe_work(replace(removal, tags=(), id="abc")) == "removal of abc on cluster"
    fields = summary(attempt_at(removal, Clock()), str(State.EXPIRED))
    assert fields["image"] == "docker:lib/app:1,docker:lib/app:2"
    assert fields["waited"] == 0
    assert event_of(removal, "EXPIRED") == "removal finished"
    assert event_of(replace(RECORD, kind="acl"), "FAILURE") == "change of readers finished"
    assert event_of(RECORD, "PENDING") == "pull postponed"
    assert event_of(RECORD, "superseded") == "pull superseded"


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
