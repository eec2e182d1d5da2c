"""A pull continues at another gateway if its own dies, with real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from shiftergw.cli import gateways, polling
from shiftergw.cli import pull as commands
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import NoGateway, RequestRefused
from shiftergw.cli.pull import PullOptions
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAllowed, NotFound, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, site_of

WORKING = ImageRecord(status=State.PULLING, status_message="Pulling layers")
OPTIONS = PullOptions(("docker", "x:1"), {}, wait=True)


@dataclass
class Server:
    """A gateway on the loopback, which has the same port when it comes back."""

    fake: FakeGateway
    port: int = field(default_factory=free_port)
    listener: Any = None
    connections: list[Any] = field(default_factory=list)

    def start(self, factory: Any = None) -> None:
        """Listen, as a gateway unless `factory` is something else."""
        site = factory or site_of(self.fake, reactor)
        self.listener = reactor.listenTCP(self.port, site, interface="127.0.0.1")

    async def die(self) -> None:
        """Refuse connections from now on."""
        listener, self.listener = self.listener, None
        if listener is not None:
            await listener.stopListening()

    @property
    def url(self) -> str:
        """Return the address."""
        return f"http://127.0.0.1:{self.port}"


class Silent(Protocol):
    """Accepts requests and does not answer."""


@asynccontextmanager
async def serving(*servers: Server) -> AsyncIterator[None]:
    """Serve until the context ends and all connections are closed."""
    before = set(reactor.getReaders())
    for server in servers:
        server.start()
    try:
        yield
    finally:
        for server in servers:
            await server.die()
        await until(lambda: not set(reactor.getReaders()) - before)


@asynccontextmanager
async def two_gateways(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Server, Server, Remote]]:
    """Yield two gateways, and a client that asks the first one first."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    servers = Server(FakeGateway(pulls=[WORKING])), Server(FakeGateway(pulls=[WORKING]))
    async with serving(*servers):
        settings = Settings([server.url for server in servers], ["mycluster"], "good:ann")
        yield *servers, Remote(TwistedExchange(reactor), settings, urls=settings.gateway_urls())


def begin(remote: Remote) -> Deferred[int]:
    """Start a pull."""
    return Deferred.fromCoroutine(commands.pull_image(remote, reactor, OPTIONS))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    while not condition():
        await deferLater(reactor, 0.005, int)


@pytest_twisted.ensureDeferred
async def test_the_next_gateway_is_asked_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the gateway dies during a pull, the other one is polled, which is reported once."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 2)
        assert second.fake.calls == []
        await first.die()
        await until(lambda: len(second.fake.calls) >= 3)
        second.fake.pulls = [READY]
        assert await pulling == 0
    output = capsys.readouterr()
    assert output.out == f"{IMAGE_ID}\n"
    assert output.err.count("cannot be reached: nothing listens there.") == 1
    assert f"Going on with the gateway 127.0.0.1:{second.port}." in output.err


@pytest_twisted.ensureDeferred
async def test_the_first_gateway_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second gateway dies, the first one is polled again."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        await first.die()
        await until(lambda: len(second.fake.calls) >= 1)
        first.start()
        await second.die()
        first.fake.pulls = [READY]
        assert await pulling == 0


@pytest_twisted.ensureDeferred
async def test_all_are_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All gateways are polled until one comes back, which is reported once."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        await first.die()
        await second.die()
        error_texts: list[str] = []

        def is_told() -> bool:
            error_texts.append(capsys.readouterr().err)
            return "Still trying." in "".join(error_texts)

        await until(is_told)
        second.fake.pulls = [READY]
        second.start()
        assert await pulling == 0
    assert "".join([*error_texts, capsys.readouterr().err]).count("Still trying.") == 1


@pytest_twisted.ensureDeferred
async def test_all_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `SILENCE_LIMIT` the pull ends with an error that names its own gateway."""
    monkeypatch.setattr(polling, "SILENCE_LIMIT", 0.1)
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        await first.die()
        await second.die()
        with pytest.raises(NoGateway, match=f":{first.port} cannot be reached"):
            await pulling


@pytest_twisted.ensureDeferred
async def test_a_busy_gateway_is_not_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that answers 503 for a moment is polled on."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        first.fake.raises = Unavailable("The store is away.")
        await until(lambda: len(first.fake.calls) >= 5)
        first.fake.raises, first.fake.pulls = None, [READY]
        assert await pulling == 0
        assert second.fake.calls == []


@pytest_twisted.ensureDeferred
async def test_a_busy_gateway_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that answers 503 for longer than `BUSY_LIMIT` is left."""
    monkeypatch.setattr(gateways, "BUSY_LIMIT", 0.1)
    async with two_gateways(monkeypatch) as (first, second, remote):
        second.fake.pulls = [READY]
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        first.fake.raises = Unavailable("The store is away.")
        assert await pulling == 0


@pytest_twisted.ensureDeferred
async def test_a_hung_gateway_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that does not answer is left after `POLL_LIMIT`."""
    monkeypatch.setattr(gateways, "POLL_LIMIT", 0.1)
    async with two_gateways(monkeypatch) as (first, second, remote):
        second.fake.pulls = [READY]
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        await first.die()
        first.start(Factory.forProtocol(Silent))
        assert await pulling == 0
    assert "did not answer within" in capsys.readouterr().err


@pytest_twisted.ensureDeferred
async def test_another_gateway_may_not_have_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by a gateway that never had the pull does not end the pull."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        second.fake.raises = NotFound("There is no such system.")
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        await first.die()
        await until(lambda: len(second.fake.calls) >= 3)
        first.fake.pulls = [READY]
        first.start()
        assert await pulling == 0


@pytest_twisted.ensureDeferred
async def test_the_own_gateway_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by the gateway that has the pull ends the pull."""
    async with two_gateways(monkeypatch) as (first, second, remote):
        pulling = begin(remote)
        await until(lambda: len(first.fake.calls) >= 1)
        first.fake.raises = NotAllowed("No more.")
        with pytest.raises(RequestRefused, match="No more"):
            await pulling
        assert second.fake.calls == []


@pytest_twisted.ensureDeferred
async def test_pulls_for_several_systems_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first of three gateways dies, the pulls of all systems move to the same one."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    names = ("a", "b", "c")
    servers = [Server(FakeGateway(names, pulls=[WORKING])) for _ in range(3)]
    first, second, third = servers
    monkeypatch.setattr(commands, "shuffle", lambda urls: urls)
    async with serving(*servers):
        urls = [server.url for server in servers]
        remotes = commands.remotes(TwistedExchange(reactor), Settings(urls, names, "good:ann"))
        pulling = Deferred.fromCoroutine(commands.pull_for_each(remotes, reactor, [OPTIONS]))
        await until(lambda: {request[1].system for request in first.fake.calls} == set(names))
        await first.die()
        await until(lambda: {request[1].system for request in second.fake.calls} == set(names))
        second.fake.pulls = [READY]
        assert await pulling == 0
        assert third.fake.calls == []
