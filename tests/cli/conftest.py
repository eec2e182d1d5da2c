"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.munged import MungeDaemon


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's proxy out: the gateways of the tests are on its loopback."""
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def munged() -> Iterator[MungeDaemon]:
    """Give the munge daemon of the machine that users and gateway share."""
    with MungeDaemon() as running:
        yield running
