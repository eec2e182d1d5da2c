"""A call waits for an attempt to connect that was made after the call."""

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
    """Opens connections when a test says so."""

    def __init__(self) -> None:
        """Create a pool without a connection."""
        self.clock = Clock()
        self.attempts: list[Deferred[Any]] = []
        self.links = ConnectionPool(self._open, self.clock, 5)

    async def _open(self) -> Any:
        attempt: Deferred[Any] = Deferred()
        self.attempts.append(attempt)
        return await attempt

    def take(self) -> Deferred[Any]:
        """Take a connection from the pool."""
        return Deferred.fromCoroutine(self.links.take())

    def refuse(self) -> None:
        """Let the latest attempt fail."""
        self.attempts[-1].errback(Unavailable("x", detail=f"refused: {len(self.attempts)}"))


@pytest_twisted.ensureDeferred
async def test_a_shared_attempt_that_fails_is_repeated() -> None:
    """A call that has shared an attempt gets another one."""
    server = Server()
    first, second, third = server.take(), server.take(), server.take()
    server.refuse()
    with pytest.raises(Unavailable) as caught:
        await first
    assert caught.value.detail == "refused: 1"
    assert len(server.attempts) == 2
    link = SimpleNamespace(is_open=True, command_count=0, server="a", is_reserved=False)
    server.attempts[1].callback(link)
    assert [await second, await third] == [link, link]
    assert await server.take() is link


@pytest_twisted.ensureDeferred
async def test_a_call_makes_no_third_attempt() -> None:
    """No call waits longer than for one attempt of its own."""
    server = Server()
    first, second = server.take(), server.take()
    server.refuse()
    server.refuse()
    for call in (first, second):
        with pytest.raises(Unavailable):
            await call
    assert len(server.attempts) == 2
    third, fourth = server.take(), server.take()
    server.clock.advance(0.9)
    server.refuse()
    server.clock.advance(0.2)
    for call in (third, fourth):
        with pytest.raises(Unavailable):
            await call


@pytest_twisted.ensureDeferred
async def test_a_closed_pool_makes_no_attempt() -> None:
    """Calls that wait when the pool is closed fail."""
    server = Server()
    first, second = server.take(), server.take()
    closing = Deferred.fromCoroutine(server.links.close())
    server.clock.advance(1)
    await closing
    for call in (first, second):
        with pytest.raises(Unavailable):
            await call
    assert len(server.attempts) == 1
