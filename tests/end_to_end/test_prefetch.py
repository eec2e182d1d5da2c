"""A script that requests many images at once, as sites of the original gateway run."""

from __future__ import annotations

from pathlib import Path

from tests.client_double import ShifterImg
from tests.running_service import ALICE, SYSTEM, Service

LOCATIONS = {"registry.example.com": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}


def test_seventy_images_at_once(tmp_path: Path) -> None:
    """All requests of `shifterimg pullnb` in a loop are accepted, although workers are slower."""
    with Service(tmp_path, LOCATIONS, {"WorkerThreads": 1}) as service:
        client = ShifterImg([service.url], SYSTEM, ALICE)
        codes = [client.run("pullnb", f"docker:lib/app:{n}").code for n in range(70)]
    assert codes == [0] * 70
