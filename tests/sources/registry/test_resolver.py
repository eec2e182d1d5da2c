"""Look-ups of names: one at a time for each name, with a time limit."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.sources.registry.resolver import (
    ANSWER_SECONDS,
    LOOKUP_SECONDS,
    MAX_LOOKUPS,
    Resolver,
)
from shiftergw.sources.registry.retry import Interruption


class Names(Clock):
    """A reactor whose look-ups end when the test answers them."""

    def __init__(self) -> None:
        """Start without look-ups."""
        super().__init__()
        self.nameResolver = self
        self.lookups: list[tuple[str, Any]] = []

    def resolveHostName(self, receiver: Any, name: str, **_: Any) -> None:
        """Begin a look-up."""
        self.lookups.append((name, receiver))

    def answer(self, number: int, *addresses: str) -> None:
        """End a look-up with these addresses."""
        for address in addresses:
            self.lookups[number][1].addressResolved(IPv4Address("TCP", address, 0))
        self.lookups[number][1].resolutionComplete()


def ask(resolver: Resolver, host: str) -> list[frozenset[str]]:
    """Start a look-up, and return the list that gets its answer."""
    answers: list[frozenset[str]] = []
    Deferred.fromCoroutine(resolver.addresses(host)).addCallback(answers.append)
    return answers


def test_an_answer_is_shared_and_kept() -> None:
    """Callers during a look-up share its answer, and so do later ones for `ANSWER_SECONDS`."""
    names = Names()
    resolver = Resolver(cast("Any", names))
    first, second = ask(resolver, "a.test"), ask(resolver, "a.test")
    assert (first, second) == ([], [])
    names.answer(0, "8.8.8.8", "10.0.0.1")
    assert first == second == [{"8.8.8.8", "10.0.0.1"}]
    names.advance(ANSWER_SECONDS - 1)
    assert ask(resolver, "a.test") == first
    assert len(names.lookups) == 1
    names.advance(2)
    assert ask(resolver, "a.test") == []
    assert len(names.lookups) == 2
    names.answer(1)
    assert names.getDelayedCalls() == []


def test_look_ups_that_hang() -> None:
    """The hosts of hanging look-ups have no address; beyond a number of them others are refused.

    A refused host must not count as without an address: a registry could name some slow hosts
    first, and a private one next.
    """
    names = Names()
    resolver = Resolver(cast("Any", names))
    hanging = [ask(resolver, f"{number}.test") for number in range(MAX_LOOKUPS)]
    with pytest.raises(Interruption, match="has not answered for 4 hosts"):
        resolver.addresses("one-more.test").send(None)
    names.advance(LOOKUP_SECONDS)
    assert hanging == [[frozenset()]] * MAX_LOOKUPS
    assert ask(resolver, "0.test") == []
    assert len(names.lookups) == MAX_LOOKUPS
    names.answer(0, "8.8.8.8")
    assert ask(resolver, "0.test") == [{"8.8.8.8"}]
    assert ask(resolver, "another.test") == []
    assert len(names.lookups) == MAX_LOOKUPS + 1


def test_a_caller_that_is_cancelled() -> None:
    """After a caller is cancelled, the look-up continues for the others."""
    names = Names()
    resolver = Resolver(cast("Any", names))
    caller = Deferred.fromCoroutine(resolver.addresses("a.test"))
    answers = ask(resolver, "a.test")
    caller.addErrback(lambda _: None)
    caller.cancel()
    names.answer(0, "8.8.8.8")
    assert answers == [{"8.8.8.8"}]
