"""What those who poll were told last."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.model import ImageRecord
from shiftergw.service.polls import KEPT_SECONDS, MOST_KEPT, LastAnswers
from shiftergw.states import State

POLL = (2001, "mycluster/docker/app:1")
WORKING = ImageRecord(status=State.PULLING)


def test_an_answer_is_kept_for_its_asker() -> None:
    """Nobody else is told it, and an end is told once only."""
    answers = LastAnswers(Clock())
    answers.keep(POLL, WORKING)
    assert answers.last(POLL) is WORKING
    assert answers.last((2002, POLL[1])) is None
    answers.keep(POLL, ImageRecord(status=State.READY))
    assert answers.last(POLL) is None


def test_an_answer_is_not_told_for_ever() -> None:
    """After ten minutes the asker is told that the gateway cannot tell."""
    clock = Clock()
    answers = LastAnswers(clock)
    answers.keep(POLL, WORKING)
    clock.advance(KEPT_SECONDS - 1)
    assert answers.last(POLL) is WORKING
    clock.advance(1)
    assert answers.last(POLL) is None


def test_answers_are_bounded() -> None:
    """The oldest go first; asking again makes young."""
    answers = LastAnswers(Clock())
    answers.keep(POLL, WORKING)
    for number in range(MOST_KEPT - 1):
        answers.keep((number, "x"), WORKING)
    answers.keep(POLL, WORKING)
    answers.keep((0, "y"), WORKING)
    assert answers.last(POLL) is WORKING
    assert answers.last((0, "x")) is None
    assert answers.last((1, "x")) is WORKING
