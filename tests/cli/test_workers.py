"""workers: as a process against a gateway, and its table."""

from __future__ import annotations

import json

import pytest_twisted

from shiftergw import __version__
from shiftergw.cli.workers import workers_table
from tests.cli.command import ask
from tests.web.fakes import FakeGateway


@pytest_twisted.ensureDeferred
async def test_workers() -> None:
    """A line for each machine with its use, version and last sign of life; its jobs below."""
    result = await ask(FakeGateway(), "workers")
    assert result.returncode == 0
    machine, job = result.stdout.splitlines()
    assert machine.split()[:3] == ["node1", "1/2", "1.0!"]
    assert machine.endswith("s ago")
    assert job == "    app:1"
    as_json = await ask(FakeGateway(), "workers", "--json")
    assert json.loads(as_json.stdout)[0]["jobs"] == ["app:1"]


def test_the_table() -> None:
    """A machine of this version has no mark, one that leaves has a word; any row is accepted."""
    row = {"name": "a\x1b", "version": __version__, "slots": 1, "jobs": [], "heard": 90.0}
    line = workers_table([row | {"leaving": True}], 100.0)
    assert line.isprintable() or line.endswith("\n")
    assert "!" not in line
    assert "10 s ago leaving" in line
    assert "\x1b" not in line
    assert workers_table([{"jobs": 3, "heard": "x", "name": None}], 0)
    assert workers_table([], 0) == ""
