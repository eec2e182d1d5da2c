"""The fields of the log line at the end of work."""

from __future__ import annotations

from dataclasses import replace

from shiftergw.errors import key_values
from shiftergw.model.records import ImageRecord
from shiftergw.rules.attempts import describe_work
from shiftergw.rules.work_ends import WorkMeasures, end_fields, event_of

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
MEASURES = WorkMeasures(
    1000,
    1007.54,
    {"PULLING": 2.0, "EXAMINATION": 0.01, "CONVERSION": 4.04},
    {"fetch": 2.9, "pack": 6.25, "plan": 0.01},
    27_500_000,
    7_000_000,
    25_000_000,
)


def test_a_pull() -> None:
    """One line has outcome, user, system, image, id, request, seconds and bytes, in this order."""
    fields = end_fields(
        RECORD, "READY", MEASURES, image_id="abc", image_size=25_100_000, cause="of a wait before"
    )
    assert f"{event_of(RECORD, 'READY')} {key_values(fields)}" == (
        "pull finished outcome=READY user=alice uid=2001 system=cluster image=docker:lib/app:1"
        " id=abc request=1a2b3c4d job=k attempt=1 deaths=0 seconds=7.5 waited=2.5"
        " stages=PULLING:2.0,CONVERSION:4.0 steps=fetch:2.9,pack:6.2"
        " bytes_layers=27500000 bytes_downloaded=7000000 bytes_image=25100000 bytes_sent=25000000"
    )


def test_a_failure() -> None:
    """A failure has the same fields, and its cause; foreign text cannot break the line."""
    unknown = replace(
        RECORD, requester=None, request_id=None, last_pull=None, attempt=2, pulltag='a b="c'
    )
    cause = "It broke.\nREADY: x\x1b[2J"
    fields = end_fields(unknown, "FAILURE", WorkMeasures(5, 4), cause=cause)
    assert list(fields) == [*end_fields(RECORD, "READY", MEASURES), "cause"]
    assert key_values(fields) == (
        'outcome=FAILURE user=- uid=2001 system=cluster image="docker:a b=\\"c" id=- request=-'
        " job=k attempt=2 deaths=0 seconds=0.0 waited=0.0 stages=- steps=- bytes_layers=0"
        ' bytes_downloaded=0 bytes_image=- bytes_sent=0 cause="It broke.\\\\x0aREADY: x\\\\x1b[2J"'
    )


def test_names() -> None:
    """Removals, changes of readers and waits are named as such."""
    assert describe_work(replace(RECORD, kind="acl")) == "readers of docker:lib/app:1 on cluster"
    removal = replace(RECORD, kind="expire", tags=("lib/app:1", "lib/app:2"))
    assert describe_work(removal) == "removal of lib/app:1, lib/app:2 on cluster"
    assert describe_work(replace(removal, tags=(), id="abc")) == "removal of abc on cluster"
    fields = end_fields(removal, "EXPIRED", MEASURES)
    assert fields["image"] == "docker:lib/app:1,docker:lib/app:2"
    assert fields["waited"] == 0
    assert event_of(removal, "EXPIRED") == "removal finished"
    assert event_of(replace(RECORD, kind="acl"), "FAILURE") == "change of readers finished"
    assert event_of(RECORD, "PENDING") == "pull postponed"
    assert event_of(RECORD, "superseded") == "pull superseded"
