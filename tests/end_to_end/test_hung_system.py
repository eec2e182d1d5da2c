"""A system that hangs occupies no worker: two workers, two systems, and a suspended sshd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.parts import need
from tests.running_service import ALICE, BOB, FINAL, POLL_PAUSE, SYSTEM, Service, until
from tests.sshd import Sshd

REMOTE = "far"
USERS = (ALICE, BOB)
WHY = f"for the system {REMOTE} (its host does not answer)"
PULLS = 4


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run the SSH server of the remote system."""
    with Sshd() as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, sshd: Sshd) -> Iterator[Service]:
    """Run a gateway with two workers, a local system and a remote one."""
    need("mksquashfs")
    images = tmp_path / "far"
    images.mkdir()
    squashfs = {"compressor": "gzip", "level": 1}
    near = {
        "accesstype": "local",
        "admins": ["root"],
        "local": {"imageDir": str(tmp_path / "service" / "images")},
        "squashfs": squashfs,
    }
    remote: dict[str, Any] = {
        "accesstype": "remote",
        "admins": ["root"],
        "host": ["127.0.0.1"],
        "squashfs": squashfs,
        "ssh": {
            "username": sshd.user,
            "imageDir": str(images),
            "key": str(sshd.key),
            "port": sshd.port,
            "knownHosts": str(sshd.known_hosts),
            "sshCmdOptions": ["-o", "ConnectTimeout=5"],
        },
    }
    with FaultyRegistry() as registry:
        for number in range(PULLS):
            layer = tar_of([entry("etc"), entry(f"etc/{number}", os.urandom(50_000))])
            registry.add(f"team/{number}", make_image([layer]))
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        changes = {"WorkerThreads": 2, "Platforms": {SYSTEM: near, REMOTE: remote}}
        with Service(tmp_path / "service", locations, changes) as running:
            yield running


def poll(service: Service, system: str, number: int) -> dict[str, Any]:
    """Request a pull once."""
    path = f"/api/pull/{system}/docker/{quote(f'team/{number}:1', safe='')}/"
    status, answer = service.get(path, USERS[number % 2], "POST")
    assert status == 200, answer
    body: dict[str, Any] = answer
    return body


@pytest.mark.slow
def test_pulls_for_other_systems_go_on(service: Service, sshd: Sshd, tmp_path: Path) -> None:
    """Pulls for another system end READY; those of the hung system end READY afterwards."""
    with sshd.suspension():
        for number in range(PULLS):
            poll(service, REMOTE, number)

        def all_wait() -> bool:
            messages = [poll(service, REMOTE, number)["status_message"] for number in range(PULLS)]
            return all(message.endswith(WHY) for message in messages)

        until(all_wait, 60, "that all pulls of the hung system wait", POLL_PAUSE)
        for number in range(PULLS):

            def has_ended(number: int = number) -> bool:
                return poll(service, SYSTEM, number)["status"] in FINAL

            until(has_ended, 60, "the end of a pull of the other system", POLL_PAUSE)
            assert poll(service, SYSTEM, number)["status"] == "READY"
        # A few pulls have tried the system; the circuit breaker has postponed the others.
        assert {poll(service, REMOTE, number)["status"] for number in range(PULLS)} == {"PENDING"}
        tries = service.log.read_text().count(f"the system {REMOTE} is away")
        assert tries <= 2 + PULLS
    for number in range(PULLS):

        def is_ready(number: int = number) -> bool:
            return bool(poll(service, REMOTE, number)["status"] == "READY")

        until(is_ready, 90, "the end of a pull of the system that hung", POLL_PAUSE)
    assert len(list((tmp_path / "far").glob("*.squashfs"))) == PULLS
    service.log_with(f"the system {REMOTE} answers again")
