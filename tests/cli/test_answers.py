"""Answers of gateways: no text reaches the terminal raw, and no answer causes a fault."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread

from shiftergw.cli import answers
from shiftergw.cli.admin import metrics_table
from shiftergw.cli.answers import InvalidAnswer
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.image_table import rows_of, table
from shiftergw.cli.queue_table import queue_table
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from tests.cli.command import answering, shiftergw
from tests.installed_reactor import reactor
from tests.web.fakes import IMAGE_ID, FakeGateway, listening, site_of

STEERING = "\x1b]0;owned\x07\x1b[2Jx\nsecond line"
OPTIONS = ("--system", "mycluster", "--credential", "x")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        None,
        {},
        *({"id": value} for value in (None, "", "MISSING", 7, [IMAGE_ID], STEERING)),
        *({"id": value} for value in (IMAGE_ID[1:], IMAGE_ID.upper(), f"{IMAGE_ID}\n")),
    ],
)
def test_answers_without_an_image_id(answer: Any) -> None:
    """A look-up, and a READY record, without an image id are invalid."""
    with pytest.raises(InvalidAnswer):
        answers.parse_image_id(answer)
    with pytest.raises(InvalidAnswer):
        answers.parse_record({"status": "READY", **answer} if isinstance(answer, dict) else answer)


@pytest.mark.parametrize(
    "member",
    [
        {"status": ["x"]},
        {"status": 5},
        {"image": {}},
        {"cause": []},
        {"last_pull": 1e300},
        {"last_pull": -1},
        {"last_pull": float("nan")},
        {"last_pull": "yesterday"},
        {"last_pull": True},
        {"heard": 10**400},
        {"heard": float("inf")},
        {"total": "a"},
        {"total": 1.5},
        {"done": -1},
        {"done": 10**4299},
        {"tag": 5},
        {"tag": ["a", None]},
    ],
    ids=lambda member: repr(member)[:30],
)
def test_members_of_the_wrong_type(member: dict[str, Any]) -> None:
    """Rows and records with such a member are invalid."""
    for read, answer in (
        (answers.parse_list, {"list": [{"status": "INIT"}, {"status": "INIT", **member}]}),
        (answers.parse_rows, [member]),
        (answers.parse_record, {"status": "INIT", **member}),
    ):
        with pytest.raises(InvalidAnswer):
            read(answer)


@pytest.mark.parametrize("answer", [None, [], {}, {"list": {}}, {"list": [5]}, {"list": "a"}])
def test_answers_without_a_list(answer: Any) -> None:
    """An answer without a list is invalid; an empty list is valid."""
    with pytest.raises(InvalidAnswer):
        answers.parse_list(answer)
    assert answers.parse_list({"list": []}) == []


@pytest.mark.parametrize(
    "row", [{}, {"location": "a"}, {"location": "a", "host": None}, {"host": 1}]
)
def test_registries_without_a_host(row: dict[str, Any]) -> None:
    """A registry without location or host is invalid."""
    with pytest.raises(InvalidAnswer):
        answers.parse_registries({"list": [row]})


def test_a_record_of_the_original() -> None:
    """A missing member is MISSING or null; unknown members are ignored."""
    fresh = {"status": "INIT", "id": "MISSING", "tag": [], "last_pull": "MISSING", "ENV": "MISSING"}
    assert answers.parse_record(fresh) == fresh
    assert answers.parse_list({"list": [{"tag": "MISSING", "id": None}]}) == [{"tag": "MISSING"}]
    with pytest.raises(InvalidAnswer):
        answers.parse_record({**fresh, "status": None})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
NAMES = ["status", "id", "tag", "last_pull", "time", "total", "done", "cause", "user", "uid"]


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_row_is_printed_or_invalid(row: dict[str, Any]) -> None:
    """Every valid row is printed by every table, in printable lines."""
    with suppress(InvalidAnswer):
        rows = answers.parse_rows([row])
        texts = [table(rows_of(rows), 0), queue_table(rows, 0), metrics_table(rows)]
        assert all(line.isprintable() for text in texts for line in text.split("\n"))


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ({"id": STEERING}, ["lookup", "a:1"]),
        ({}, ["lookup", "a:1"]),
        ({"status": "READY", "id": STEERING}, ["pull", "a:1"]),
        ({"status": ["x"]}, ["pull", "a:1"]),
        ({"list": [{"status": "PULLING", "total": "a"}]}, ["queue"]),
        ({"list": [{"last_pull": 1e300}]}, ["images"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_not_a_gateway_s(
    answer: dict[str, Any], arguments: list[str]
) -> None:
    """The command exits with 3, and prints one line on standard error."""
    async with answering(json.dumps(answer).encode()) as url:
        done: Any = await deferToThread(shiftergw, "--gateway", url, *OPTIONS, *arguments)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert "is not understood: is it a gateway?" in line


@pytest_twisted.ensureDeferred
async def test_texts_cannot_steer_the_terminal() -> None:
    """State and cause of a pull are shown in one escaped line each."""
    answer = {"status": STEERING, "cause": STEERING, "remedy": STEERING, "request_id": STEERING}
    async with answering(json.dumps(answer).encode()) as url:
        done: Any = await deferToThread(shiftergw, "--gateway", url, *OPTIONS, "pull", "a:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 3
    assert all(line.isprintable() for line in done.stderr.split("\n"))


@pytest_twisted.ensureDeferred
async def test_the_next_gateway_is_asked() -> None:
    """A gateway with an invalid answer, however deeply nested, is passed over."""
    for nonsense in (b'{"list": [{"status": 5}]}', b"[" * 200_000):
        async with (
            answering(nonsense) as odd,
            listening(site_of(FakeGateway(), reactor)) as port,
        ):
            urls = [odd, f"http://127.0.0.1:{port}"]
            for order in (urls, urls[::-1]):
                remote = Remote(
                    TwistedExchange(reactor), Settings(order, ["mycluster"], "good:ann")
                )
                assert [row["id"] for row in await remote.images()] == [IMAGE_ID]
