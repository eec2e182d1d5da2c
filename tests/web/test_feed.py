"""The work of a system for its watchers: how often it is read, and how changes are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from shiftergw.web.feed import (
    BUSY_SHARE,
    MOST_PAUSE_SECONDS,
    NOTES,
    PLACE_SECONDS,
    ROUND_SECONDS,
    Feed,
    WorkEntry,
)
from tests.web.fakes import FakeWork

WAITS = ImageRecord(
    key="a", system="mycluster", pulltag="a:1", status=State.PENDING, queue_place=9, queue_length=9
)


class Listener:
    """Counts notes and rounds; each note takes `seconds`."""

    def __init__(self, clock: Clock, seconds: float = 0) -> None:
        self._clock = clock
        self._seconds = seconds
        self.keys: list[str] = []
        self.rounds = 0

    def note(self, key: str, before: WorkEntry | None) -> None:
        """Take note of a key."""
        self.keys.append(key)
        self._clock.rightNow += self._seconds

    def end_round(self) -> None:
        """Count the round."""
        self.rounds += 1


def test_many_changes_leave_turns_to_others() -> None:
    """A turn of the reactor tells a number of changes, and not all of them to many watchers."""
    clock, work = Clock(), FakeWork()
    feed = Feed(work, "mycluster", clock)
    listeners = [Listener(clock) for _ in range(5)]
    for listener in listeners:
        feed.add(listener)
    work.records = [replace(WAITS, key=str(number)) for number in range(NOTES // 2)]
    counts: list[int] = []
    clock.callLater(ROUND_SECONDS, lambda: counts.extend(len(item.keys) for item in listeners))
    clock.advance(ROUND_SECONDS)
    assert counts == [NOTES // 2] * 2 + [0] * 3
    assert [len(listener.keys) for listener in listeners] == [NOTES // 2] * 5


def test_telling_counts_as_work() -> None:
    """After a round whose changes took long to tell, the next look is later."""
    clock, work = Clock(), FakeWork([WAITS])
    feed = Feed(work, "mycluster", clock)
    feed.add(Listener(clock, 0.5))
    clock.advance(BUSY_SHARE * 0.5 - 0.1)
    assert work.reads == 1
    clock.advance(0.1)
    assert work.reads == 2


@pytest.mark.parametrize("step", [7200.0, -7200.0])
def test_a_step_of_the_clock_pauses_no_events(step: float) -> None:
    """A look during which the clock was set is followed by another one soon, with new places."""
    clock, work = Clock(), FakeWork([WAITS], gate=Deferred())
    feed = Feed(work, "mycluster", clock)
    listener = Listener(clock)
    feed.add(listener)
    clock.rightNow += step
    assert work.gate is not None
    work.gate.callback(None)
    work.records = [replace(WAITS, queue_place=8)]
    clock.advance(MOST_PAUSE_SECONDS if step > 0 else ROUND_SECONDS)
    assert work.reads == 2
    assert listener.keys == ["a", "a"]


def test_new_places_are_told_now_and_then() -> None:
    """A new place alone is no change for some seconds; everything else is one at once."""
    clock, work = Clock(), FakeWork([WAITS])
    feed = Feed(work, "mycluster", clock)
    listener = Listener(clock)
    feed.add(listener)
    clock.advance(ROUND_SECONDS)
    work.records = [replace(WAITS, queue_place=8, queue_length=8)]
    clock.advance(ROUND_SECONDS)
    assert listener.keys == ["a"]
    work.records = [replace(work.records[0], waits_for="The broker is away.")]
    clock.advance(ROUND_SECONDS)
    assert listener.keys == ["a", "a"]
    work.records = [replace(work.records[0], queue_place=7, queue_length=7)]
    clock.advance(ROUND_SECONDS)
    assert listener.keys == ["a", "a"]
    clock.pump([ROUND_SECONDS] * round(PLACE_SECONDS))
    assert listener.keys == ["a", "a", "a"]
    assert feed.entries["a"].record.queue_place == 7
    work.records = [replace(WAITS, status=State.PULLING, queue_place=None, queue_length=None)]
    clock.advance(ROUND_SECONDS)
    assert feed.entries["a"].record == work.records[0]
