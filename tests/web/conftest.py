"""Fixtures of the tests of the HTTP interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.service import upload_space
from tests.web.fakes import listening, site_of
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
