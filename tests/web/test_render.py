"""Records and errors as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shiftergw.errors import NotAuthenticated, NotFound, TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from shiftergw.web import render
from tests.web.fakes import IMAGE_ID, READY

MEMBERS = {
    "id",
    "system",
    "itype",
    "tag",
    "status",
    "userACL",
    "groupACL",
    "ENV",
    "ENTRY",
    "WORKDIR",
    "LABELS",
    "last_pull",
    "status_message",
}


def test_a_row_of_a_list() -> None:
    """A list shows size, owner and expiration where records have valid ones."""
    image = replace(READY, size=5, requested_by=1000, expiration=1_800_000_000)
    row = render.image_row(image)
    assert {name: value for name, value in row.items() if name not in MEMBERS} == {
        "size": 5,
        "private": False,
        "owner": 1000,
        "expiration": 1_800_000_000.0,
    }
    assert isinstance(row["expiration"], float)
    invalid_image = replace(image, size=-1, requested_by=-1, expiration=1e300)
    assert set(render.image_row(invalid_image)) == MEMBERS | {"private"}


def test_a_record_has_its_13_members() -> None:
    """A READY record has exactly the 13 members, with MISSING for absent values."""
    assert render.record(READY) == {
        "id": IMAGE_ID,
        "system": "mycluster",
        "itype": "docker",
        "tag": ["ubuntu:24.04"],
        "status": "READY",
        "userACL": (),
        "groupACL": (),
        "ENV": ("PATH=/bin",),
        "ENTRY": "MISSING",
        "WORKDIR": "MISSING",
        "LABELS": "MISSING",
        "last_pull": 1_700_000_000.0,
        "status_message": "Transferring image",
    }


def test_an_empty_record_is_missing_and_never_null() -> None:
    """The absent members of a new record are strings, except `tag`, which is an array."""
    empty = render.record(ImageRecord(system="s", workdir=""))
    assert set(empty) == MEMBERS
    assert None not in empty.values()
    assert empty["tag"] == []
    assert {name for name, value in empty.items() if value == "MISSING"} == MEMBERS - {
        "system",
        "itype",
        "tag",
        "status",
    }


def test_last_pull_has_a_decimal_point() -> None:
    """A whole number of seconds is a float on the wire: the clients show 1970 otherwise."""
    whole = replace(READY, last_pull=1_700_000_000)
    assert b'"last_pull":1700000000.0' in render.answer(render.record(whole)).body


def test_a_pull_tells_progress_only_where_there_is_some() -> None:
    """An answer has stage and bytes only while work runs."""
    silent = replace(READY, status=State.TRANSFER, stage="", done=0, total=0)
    assert set(render.pull_answer(silent)) == MEMBERS
    running = replace(READY, status=State.PULLING, stage="fetch", done=5, total=9)
    extra = {k: v for k, v in render.pull_answer(running).items() if k not in MEMBERS}
    activity = {"activity": "Transferring image"}
    assert extra == {"stage": "fetch", "done": 5, "total": 9, **activity}
    assert set(render.pull_answer(READY)) == MEMBERS


def test_progress_in_words_and_in_numbers() -> None:
    """Clients that read the message alone see the progress; others have each part of it."""
    running = replace(
        READY, status=State.PULLING, status_message="Pulling layers", stage="fetch",
        done=812_000_000, total=1_430_000_000, rate=42_000_000, time_left=15.0,
        layers_in_flight=(["3f4a9c1b2d5e", 5, 9], ["odd"]),
    )  # fmt: skip
    for answer in (render.pull_answer(running), render.queue_row(running)):
        assert answer["status_message"] == "Pulling 812 of 1,430 MB, 42 MB/s, 15 s left"
        assert answer["activity"] == "Pulling layers"
        assert (answer["rate"], answer["time_left"]) == (42_000_000, 15.0)
        assert answer["layers_in_flight"] == [{"digest": "3f4a9c1b2d5e", "done": 5, "total": 9}]
    waiting = ImageRecord(queue_place=3, queue_length=9, waits_for="a registry", not_before=5)
    answer = render.pull_answer(waiting)
    assert (answer["queue_place"], answer["queue_length"], answer["activity"]) == (3, 9, "")
    assert (answer["waits_for"], answer["waits_until"]) == ("a registry", 5.0)
    odd = replace(running, rate=-1, time_left=float("nan"))
    assert not render.queue_row(odd).keys() & {"rate", "time_left"}
    assert "layers_in_flight" not in render.pull_answer(replace(running, layers_in_flight=None))


def test_a_failure_tells_cause_and_remedy() -> None:
    """A failed pull has the cause, the remedy, whether a retry may help, and the request id."""
    failure = replace(
        READY,
        status=State.FAILURE,
        stage="resolve",
        cause="No such tag.",
        remedy="Check it.",
        retryable=False,
        request_id="ab12",
    )
    answer = render.pull_answer(failure)
    assert answer["cause"] == "No such tag."
    assert answer["remedy"] == "Check it."
    assert answer["retryable"] is False
    assert answer["request_id"] == "ab12"


def test_settings_that_jobs_do_without_are_listed() -> None:
    """A READY image lists settings that the runtime does not get; malformed reports are ignored."""
    lacking = replace(READY, report={"metadata": ["CMD", "ENV A"]})
    notice = "Jobs do without settings that the gateway cannot store: CMD, ENV A"
    assert render.record(lacking)["status_message"] == notice
    assert render.pull_answer(lacking)["notice"] == notice
    reports: list[dict[str, object]] = [
        {"metadata": "CMD"},
        {"metadata": []},
        {},
        {"metadata": {"a": 1}},
    ]
    for report in reports:
        plain = replace(READY, report=report)
        assert render.pull_answer(plain) == render.pull_answer(READY)


def test_secrets_and_owners_stay_inside() -> None:
    """Sealed logins, the requester and host names are in no answer."""
    record = replace(
        READY, sealed="SECRET", requested_by=4711, runner="host7:99", claim="c", key="the-key"
    )
    for document in (
        render.pull_answer(record),
        render.queue_row(record),
        render.record(record),
    ):
        text = json.dumps(document)
        assert not any(word in text for word in ("SECRET", "4711", "host7", "the-key"))


def test_a_row_of_the_queue() -> None:
    """A row of the queue has the state and the requested tag."""
    waiting = ImageRecord(status=State.PENDING, pulltag="ubuntu:24.04")
    row = {"status": "PENDING", "image": "ubuntu:24.04", "type": "docker"}
    assert render.queue_row(waiting) == row
    assert render.queue_row(replace(waiting, last_pull=5)) == {**row, "since": 5.0}
    assert render.queue_row(ImageRecord())["image"] == "MISSING"
    queue_record = ImageRecord(status=State.PULLING, status_message="waiting 6 s: no answer")
    assert render.queue_row(queue_record)["status_message"] == "waiting 6 s: no answer"


def test_the_age_of_a_removal_is_unknown() -> None:
    """The record of an image that is being removed has the time of its last pull."""
    assert "since" not in render.queue_row(replace(READY, status=State.EXPIRING))


def test_the_user_of_a_pull() -> None:
    """The uid is shown, and the name as long as the record has it."""
    assert render.requester(ImageRecord(requested_by=5, requester="ann")) == {
        "owner": 5,
        "user": "ann",
    }
    assert render.requester(ImageRecord(requested_by=5)) == {"owner": 5}
    assert render.requester(ImageRecord(requested_by=-1, requester="anonymous")) == {}
    assert render.requester(ImageRecord()) == {}


def test_an_event_is_for_all_users() -> None:
    """The data of an event is a row of the queue without the request that began the work."""
    work = ImageRecord(key="a", status=State.FAILURE, request_id="1a2b3c4d", requested_by=5)
    row = render.queue_row(work)
    assert row.pop("request_id") == "1a2b3c4d"
    assert render.event_row(work) == {"key": "a", **row}


def test_a_refusal_is_one_line_of_json() -> None:
    """An error has its HTTP status, what happened, what to do, and a word for programs."""
    answer = render.refusal(NotFound("Gone.\n", remedy="Look."), "/api/x")
    assert answer.status == 404
    assert answer.content_type == b"application/json"
    assert b"\n" not in answer.body
    assert json.loads(answer.body) == {
        "status": 404,
        "error": "Gone.\n Look.",
        "message": "Not Found: /api/x",
        "code": "not-found",
    }


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Unavailable("Away."), "5"),
        (TooMany("Full.", retry_after=12.2), "13"),
        (Unavailable("Away.", retry_after=0.01), "1"),
        (NotFound("No."), None),
    ],
)
def test_refusals_that_pass_say_when_to_ask_again(error: NotFound, seconds: str | None) -> None:
    """429 and 503 always carry whole seconds in `Retry-After`; other refusals do not."""
    assert render.refusal(error).headers.get("Retry-After") == seconds


def test_a_missing_credential_is_challenged() -> None:
    """A 401 names the scheme, as HTTP requires."""
    headers = render.refusal(NotAuthenticated("Who?")).headers
    assert headers["WWW-Authenticate"].startswith("munge")


@pytest.mark.parametrize("number", [1e300, -1.0, -(2**63), 2**80])
def test_numbers_that_no_client_reads_are_missing(number: Any) -> None:
    """Other programs write into the database; a malformed record does not break a list."""
    odd = replace(READY, stage="fetch", last_pull=number, done=-1, total=2**63)
    row = render.pull_answer(odd)
    assert row["last_pull"] == "MISSING"
    assert not row.keys() & {"done", "total"}
