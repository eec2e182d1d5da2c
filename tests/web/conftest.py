"""Fixtures of the tests of the HTTP interface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.service import upload_space
from tests.web.fakes import FakeGateway, Wire, listening, site_of
from tests.web.upload_site import Place, running_place


@pytest_twisted.async_yield_fixture()
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """Yield a site that listens."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    async with (
        running_place(tmp_path, reactor) as place,
        listening(site_of(place.gateway, reactor)) as port,
    ):
        place.port = port
        yield place


@pytest.fixture
def gateway() -> FakeGateway:
    """Return a gateway with one image."""
    return FakeGateway()


@pytest.fixture
def wire(gateway: FakeGateway) -> Wire:
    """Return a connection to the gateway."""
    return Wire(site_of(gateway))


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """Return the events that are logged during the test."""
    logged_events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        logged_events.append(event)

    globalLogPublisher.addObserver(observe)
    yield logged_events
    globalLogPublisher.removeObserver(observe)
