"""Silence of a server ends a session only while replies are due, and after the limit."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import DeliveryFailed
from shiftergw.sftp.open_requests import OpenRequests, Reply

IDLE_SECONDS = 30.0


class Requests:
    """Open requests on a clock, and how often they were overdue."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.silences = 0
        self.open = OpenRequests(self.clock, IDLE_SECONDS, self._on_silence)

    def _on_silence(self) -> None:
        self.silences += 1

    def add(self, patience: float = 0) -> tuple[int, Deferred[Reply]]:
        """Make a request; return its number, and what its caller waits for."""
        reply: Deferred[Reply] = Deferred()
        return self.open.add(reply, patience), reply


def test_no_limit_without_requests() -> None:
    """A session that is not in use may be silent; its timer does not run."""
    requests = Requests()
    number, reply = requests.add()
    assert requests.open.take(number) is reply
    requests.open.watch()
    assert requests.clock.getDelayedCalls() == []


def test_each_reply_restarts_the_limit() -> None:
    """A slow server may take long for many requests, but not for one of them."""
    requests = Requests()
    numbers = [requests.add()[0] for _ in range(3)]
    for number in numbers[:2]:
        requests.clock.advance(IDLE_SECONDS - 1)
        requests.open.take(number)
        requests.open.watch()
    assert requests.silences == 0
    requests.clock.advance(IDLE_SECONDS)
    assert requests.silences == 1


def test_a_slow_request_extends_the_limit() -> None:
    """The extension ends with the reply to that request."""
    requests = Requests()
    requests.add()
    slow_number, _ = requests.add(patience=200.0)
    requests.clock.advance(199)
    assert requests.silences == 0
    requests.open.take(slow_number)
    requests.open.watch()
    requests.clock.advance(IDLE_SECONDS)
    assert requests.silences == 1


def test_the_greeting_is_due_first() -> None:
    """Silence from the beginning counts, too."""
    requests = Requests()
    requests.open.greeting = Deferred()
    requests.open.watch()
    requests.clock.advance(IDLE_SECONDS)
    assert requests.silences == 1


def test_a_reply_to_a_canceled_request_is_ignored_once() -> None:
    """A canceled request keeps its number until its reply; then that number is unknown."""
    requests = Requests()
    number, _ = requests.add()
    requests.open.ignore(number)
    assert requests.open.take(number) is None
    with pytest.raises(DeliveryFailed) as caught:
        requests.open.take(number)
    assert f"request {number}" in caught.value.detail


def test_the_end_returns_the_open_requests() -> None:
    """The greeting comes first; the timer stops, and no later request starts it again."""
    requests = Requests()
    greeting: Deferred[None] = Deferred()
    requests.open.greeting = greeting
    _, first_reply = requests.add()
    number, _ = requests.add()
    requests.open.ignore(number)
    assert requests.open.end() == [greeting, first_reply]
    requests.add()
    assert requests.clock.getDelayedCalls() == []
