"""Fixtures of the tests of the registry client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from shiftergw.store.sqlite.store import SqliteStore
from tests.certificates import Authority
from tests.sources.registry.token_sites import SECRETS
from tests.store.places import running


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Return a store for the breakers."""
    async with running(tmp_path / "store.sqlite") as sqlite_store:
        yield sqlite_store


@pytest.fixture
def nothing_is_shown(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a secret gets into the log."""
    caplog.set_level(logging.DEBUG)
    events: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        events.append(str({key: str(value) for key, value in event.items()}))

    globalLogPublisher.addObserver(observe)
    yield
    globalLogPublisher.removeObserver(observe)
    output = "".join(events) + caplog.text
    assert not [secret for secret in SECRETS if secret in output]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the clients of these tests trust."""
    return Authority(tmp_path_factory.mktemp("authority"))
