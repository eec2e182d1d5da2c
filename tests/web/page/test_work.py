"""The queue and the failures as a user reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted
from twisted.web.template import flattenString

from shiftergw.model.records import ImageRecord
from shiftergw.ports import QueueTrouble
from shiftergw.states import State
from shiftergw.web.page import work
from shiftergw.web.page.work import WORDS, FailureList, Health, QueueList
from tests.service.gateway_bench import ALICE

WAITING = ImageRecord(key="1", pulltag="app:1", status_message="Waits.", requested_by=2002)
FAILURE = ImageRecord(key="2", pulltag="app:2", status=State.FAILURE, last_pull=100.0)


async def text_of(*records: ImageRecord, trouble: QueueTrouble | None = None) -> str:
    """Return the parts of alice's document about these records."""

    def mark_of(record: ImageRecord) -> str:
        return "yours" if record.requested_by == ALICE.uid else ""

    parts = [
        Health(ALICE, records, trouble),
        QueueList(records, mark_of),
        FailureList(records, mark_of),
    ]
    return (await flattenString(None, parts)).decode()


@pytest_twisted.ensureDeferred
async def test_an_empty_queue() -> None:
    """Where nothing is, a sentence says so."""
    text = await text_of()
    assert "No pull waits or works." in text
    assert "No pull has failed" in text
    assert "Pulls are working." in text
    assert "<li" not in text


@pytest.mark.parametrize(("grave", "mood"), [(True, "bad"), (False, "slow")])
@pytest_twisted.ensureDeferred
async def test_trouble_has_its_words(grave: bool, mood: str) -> None:
    """The health says what is wrong; the color is that of its gravity."""
    text = await text_of(trouble=QueueTrouble("Workers start slowly.", "", 0, grave=grave))
    assert "Workers start slowly." in text
    assert f'class="state {mood}"' in text


@pytest_twisted.ensureDeferred
async def test_bars() -> None:
    """Bytes of a known total fill a bar; others only move it; what waits has none."""
    pull = replace(WAITING, status=State.TRANSFER, stage="deliver", done=3, total=4)
    assert 'value="0.7500"' in await text_of(pull)
    for record in (replace(pull, total=0), replace(pull, done="x")):  # type: ignore[arg-type]
        text = await text_of(record)
        assert ("value=" in text, "hidden" in text) == (False, False)
    for status in (State.PENDING, State.EXPIRING):
        assert 'hidden="hidden"' in await text_of(replace(pull, status=status))


@pytest_twisted.ensureDeferred
async def test_names_and_marks() -> None:
    """Images of other types are named with their type; the user's own work is marked."""
    text = await text_of(
        replace(WAITING, itype="custom", requested_by=ALICE.uid),
        replace(WAITING, status=State.EXPIRING, tags=("old:1", "old:2"), pulltag=None),
        replace(WAITING, pulltag=None),
    )
    assert "custom:app:1" in text
    assert text.count("yours") == 1
    assert "old:1, old:2" in text
    assert all(word in text for word in WORDS.values())


@pytest_twisted.ensureDeferred
async def test_failures_say_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last failure comes first; a record of another program has a sentence as well."""
    monkeypatch.setattr(work, "MOST_FAILURES", 2)
    text = await text_of(
        replace(FAILURE, last_pull=None, pulltag="odd:1"),
        FAILURE,
        replace(FAILURE, pulltag="new:1", cause="It broke.", retryable=True, last_pull=200.0),
    )
    assert text.index("new:1") < text.index("app:2")
    assert "odd:1" not in text
    assert "1 older ones are not shown." in text
    assert "Trying again may help." in text
    assert "The cause is not known." in text


@pytest_twisted.ensureDeferred
async def test_a_long_queue_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is bounded, says how much it leaves out, and the script knows."""
    monkeypatch.setattr(work, "MOST_WORK", 1)
    text = await text_of(WAITING, replace(WAITING, key="3"))
    assert "1 more are not shown." in text
    assert 'data-complete="no"' in text
    assert text.count("<li") == 1


@pytest_twisted.ensureDeferred
async def test_layers_in_flight() -> None:
    """Each layer that is being downloaded has a bar; where there is none, the list is hidden."""
    pull = replace(
        WAITING, status=State.PULLING, stage="fetch", done=3, total=8, status_message="Pulling"
    )
    text = await text_of(replace(pull, layers_in_flight=(["0a1b2c", 1, 4], "odd", ["3d", 0, 0])))
    assert 'data-digest="0a1b2c"' in text
    assert text.count("<li data-digest") == 2
    assert 'value="0.2500"' in text
    assert '<ul class="layers"></ul>' in await text_of(pull)
