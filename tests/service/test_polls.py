"""What those who poll were told last."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.model import ImageRecord
from shiftergw.service.polls import CAPACITY, VALID_SECONDS, LastAnswers
from shiftergw.states import State

POLL = (2001, "mycluster/docker/app:1")
WORKING = ImageRecord(status=State.PULLING)


def test_an_answer_is_kept_for_its_asker() -> None:
    """Nobody else is told it, and an end is told once only."""
    answers = LastAnswers(Clock())
    answers.remember(POLL, WORKING)
    assert answers.get(POLL) is WORKING
    assert answers.get((2002, POLL[1])) is None
    answers.remember(POLL, ImageRecord(status=State.READY))
    assert answers.get(POLL) is None


def test_an_answer_is_not_told_for_ever() -> None:
    """After ten minutes the asker is told that the gateway cannot tell."""
    clock = Clock()
    answers = LastAnswers(clock)
    answers.remember(POLL, WORKING)
    clock.advance(VALID_SECONDS - 1)
    assert answers.get(POLL) is WORKING
    clock.advance(1)
    assert answers.get(POLL) is None


def test_answers_are_bounded() -> None:
    """The oldest go first; asking again makes young."""
    answers = LastAnswers(Clock())
    answers.remember(POLL, WORKING)
    for number in range(CAPACITY - 1):
        answers.remember((number, "x"), WORKING)
    answers.remember(POLL, WORKING)
    answers.remember((0, "y"), WORKING)
    assert answers.get(POLL) is WORKING
    assert answers.get((0, "x")) is None
    assert answers.get((1, "x")) is WORKING
