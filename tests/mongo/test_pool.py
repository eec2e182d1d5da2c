"""Connections to MongoDB are handed out: who asks waits for an attempt that can know how it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import Unavailable
from shiftergw.mongo.pool import ConnectionPool


class Server:
    """Opens links when it is told to."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.clock = Clock()
        self.attempts: list[Deferred[Any]] = []
        self.links = ConnectionPool(self._open, self.clock, 5)

    async def _open(self) -> Any:
        attempt: Deferred[Any] = Deferred()
        self.attempts.append(attempt)
        return await attempt

    def ask(self) -> Deferred[Any]:
        """Ask for a link."""
        return Deferred.fromCoroutine(self.links.take())

    def refuse(self) -> None:
        """Have the latest attempt fail."""
        self.attempts[-1].errback(Unavailable("x", detail=f"refused: {len(self.attempts)}"))


@pytest_twisted.ensureDeferred
async def test_a_failure_of_what_was_before() -> None:
    """Who came while an attempt was under way is not refused for it: another one is made."""
    server = Server()
    first, second, third = server.ask(), server.ask(), server.ask()
    server.refuse()
    with pytest.raises(Unavailable) as caught:
        await first
    assert caught.value.detail == "refused: 1"
    assert len(server.attempts) == 2
    link = SimpleNamespace(is_open=True, command_count=0, server="a", is_reserved=False)
    server.attempts[1].callback(link)
    assert [await second, await third] == [link, link]
    assert await server.ask() is link


@pytest_twisted.ensureDeferred
async def test_an_attempt_of_his_own_is_the_last() -> None:
    """Nobody waits for a third one, nor longer than he would for one."""
    server = Server()
    first, second = server.ask(), server.ask()
    server.refuse()
    server.refuse()
    for refused in (first, second):
        with pytest.raises(Unavailable):
            await refused
    assert len(server.attempts) == 2
    third, fourth = server.ask(), server.ask()
    server.clock.advance(0.9)
    server.refuse()
    server.clock.advance(0.2)
    for refused in (third, fourth):
        with pytest.raises(Unavailable):
            await refused


@pytest_twisted.ensureDeferred
async def test_none_is_made_after_the_end() -> None:
    """Who waits when the links are closed is refused, and opens nothing."""
    server = Server()
    first, second = server.ask(), server.ask()
    closing = Deferred.fromCoroutine(server.links.close())
    server.clock.advance(1)
    await closing
    for refused in (first, second):
        with pytest.raises(Unavailable):
            await refused
    assert len(server.attempts) == 1
