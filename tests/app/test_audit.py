"""The audit log of a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest_twisted

from shiftergw.app.gateway import audit_of
from shiftergw.plumbing.services import run_services
from shiftergw.plumbing.threads import Threads
from tests.configurations import load_config
from tests.installed_reactor import reactor


@pytest_twisted.ensureDeferred
async def test_events_become_lines(tmp_path: Path, threads: Threads) -> None:
    """Each event is a line of `AuditLog` with its time; the stop writes what still waits."""
    path = tmp_path / "audit.log"
    audit, services = audit_of(load_config({"AuditLog": str(path)}).config, threads, reactor)
    async with run_services(services):
        audit({"user": "a\nb", "status": 200})
    event = json.loads(path.read_text())
    assert event.pop("time").endswith("Z")
    assert event == {"user": r"a\x0ab", "status": 200}


def test_without_a_file(threads: Threads) -> None:
    """By default nothing is written."""
    audit, services = audit_of(load_config({}).config, threads, reactor)
    audit({})
    assert services == []
