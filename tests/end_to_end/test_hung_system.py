"""A system that hangs holds no worker: two workers, two systems, and an sshd that is stopped."""

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
from tests.running_service import ALICE, BOB, FINAL, SYSTEM, Service, until
from tests.sshd import Sshd

FAR = "far"
USERS = (ALICE, BOB)
WHY = f"for the system {FAR} (its host does not answer)"
PULLS = 4


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run the far system's SSH server."""
    with Sshd() as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, sshd: Sshd) -> Iterator[Service]:
    """Run a gateway with two workers, a system on this machine, and one on another."""
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
    far: dict[str, Any] = {
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
        changes = {"WorkerThreads": 2, "Platforms": {SYSTEM: near, FAR: far}}
        with Service(tmp_path / "service", locations, changes) as running:
            yield running


def poll(service: Service, system: str, number: int) -> dict[str, Any]:
    """Ask once for a pull."""
    path = f"/api/pull/{system}/docker/{quote(f'team/{number}:1', safe='')}/"
    status, answer = service.get(path, USERS[number % 2], "POST")
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def test_others_go_on(service: Service, sshd: Sshd, tmp_path: Path) -> None:
    """All pulls of the other system end READY while it hangs, and its own ones once it goes on."""
    with sshd.suspended():
        for number in range(PULLS):
            poll(service, FAR, number)

        def all_wait() -> bool:
            messages = [poll(service, FAR, number)["status_message"] for number in range(PULLS)]
            return all(message.endswith(WHY) for message in messages)

        until(all_wait, 60, "that all pulls of the hung system wait")
        for number in range(PULLS):

            def ended(number: int = number) -> bool:
                return poll(service, SYSTEM, number)["status"] in FINAL

            until(ended, 60, "the end of a pull of the other system")
            assert poll(service, SYSTEM, number)["status"] == "READY"
        # Nobody has waited in vain for its pulls: each was tried, and the breaker held it back.
        assert {poll(service, FAR, number)["status"] for number in range(PULLS)} == {"PENDING"}
        tries = service.log.read_text().count(f"the system {FAR} is away")
        assert tries <= 2 + PULLS
    for number in range(PULLS):

        def is_ready(number: int = number) -> bool:
            return bool(poll(service, FAR, number)["status"] == "READY")

        until(is_ready, 90, "the end of a pull of the system that went on")
    assert len(list((tmp_path / "far").glob("*.squashfs"))) == PULLS
    assert f"the system {FAR} answers again" in service.log.read_text()
