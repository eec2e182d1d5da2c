"""page: as a process against a gateway."""

from __future__ import annotations

import re

import pytest_twisted

from tests.cli.command import ask
from tests.web.fakes import FakeGateway


@pytest_twisted.ensureDeferred
async def test_the_address_is_that_of_the_gateway_that_has_answered() -> None:
    """The only line on standard output is the address, with an entry that the gateway knows."""
    gateway = FakeGateway()
    result = await ask(gateway, "page")
    assert result.returncode == 0
    assert "works once" in result.stderr
    match = re.fullmatch(
        r"http://127\.0\.0\.1:\d+/page/enter\?entry=([A-Za-z0-9_-]+)\n", result.stdout
    )
    assert match is not None
    _, session = await gateway.page_sessions.enter(match[1])
    assert session.user.system == "mycluster"
