"""The last answers to polls are stored for a while."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.model.records import ImageRecord
from shiftergw.service.polls import CAPACITY, VALID_SECONDS, LastAnswers
from shiftergw.states import State

POLL = (2001, "mycluster/docker/app:1")
WORKING = ImageRecord(status=State.PULLING)


def test_an_answer_belongs_to_its_user() -> None:
    """Other users do not get the answer, and the end of a pull is not stored."""
    answers = LastAnswers(Clock())
    answers.remember(POLL, WORKING)
    assert answers.get(POLL) is WORKING
    assert answers.get((2002, POLL[1])) is None
    answers.remember(POLL, ImageRecord(status=State.READY))
    assert answers.get(POLL) is None


def test_an_answer_expires() -> None:
    """After ten minutes an answer is not repeated any more."""
    clock = Clock()
    answers = LastAnswers(clock)
    answers.remember(POLL, WORKING)
    clock.advance(VALID_SECONDS - 1)
    assert answers.get(POLL) is WORKING
    clock.advance(1)
    assert answers.get(POLL) is None


def test_the_number_of_answers_is_limited() -> None:
    """The oldest answers are dropped first; a new poll makes its answer the newest."""
    answers = LastAnswers(Clock())
    answers.remember(POLL, WORKING)
    for number in range(CAPACITY - 1):
        answers.remember((number, "x"), WORKING)
    answers.remember(POLL, WORKING)
    answers.remember((0, "y"), WORKING)
    assert answers.get(POLL) is WORKING
    assert answers.get((0, "x")) is None
    assert answers.get((1, "x")) is WORKING
