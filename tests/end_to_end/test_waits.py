"""A registry that answers 429 occupies no worker, so pulls from other registries go on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faulty import FaultyRegistry
from tests.images import MadeImage, entry, make_image, tar_of
from tests.parts import free_port, need
from tests.running_service import ALICE, BOB, POLL_PAUSE, Service, until

CAROL = "good:carol:users::2003:2100"
NO_LIMIT = 10**9


def image(seed: str) -> MadeImage:
    """Return a small image whose content depends on `seed`."""
    return make_image([tar_of([entry("etc"), entry(f"etc/{seed}", os.urandom(50_000))])])


@pytest.fixture
def registries() -> Iterator[tuple[FaultyRegistry, FaultyRegistry]]:
    """Run a registry that answers 429 on demand, and a healthy one."""
    with FaultyRegistry() as busy, FaultyRegistry() as healthy:
        for name in ("team/one", "team/two"):
            busy.add(name, image(name))
        healthy.add("team/three", image("three"))
        yield busy, healthy


def service_at(
    root: Path, registries: tuple[FaultyRegistry, FaultyRegistry], changes: dict[str, Any]
) -> Service:
    """Return a gateway with two workers and both registries."""
    need("mksquashfs")
    locations = {
        name: {"remotetype": "dockerv2", "url": f"http://{registry.host}"}
        for name, registry in zip(("busy.example", "healthy.example"), registries, strict=True)
    }
    return Service(root, locations, {"WorkerThreads": 2, **changes})


def test_a_wait_of_six_hours_fails_pulls(
    tmp_path: Path, registries: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    """Both pulls fail at once and name the time; a pull from another registry ends READY."""
    busy, _ = registries
    for name in ("team/one", "team/two"):
        busy.rate_limits[name] = ("21600", NO_LIMIT)
    with service_at(tmp_path, registries, {}) as service:
        service.poll("busy.example/team/one:1", ALICE)
        service.poll("busy.example/team/two:1", BOB)
        assert service.pull("healthy.example/team/three:1", CAROL, 30)["status"] == "READY"
        for name, user in (("one", ALICE), ("two", BOB)):
            answer = service.pull(f"busy.example/team/{name}:1", user, 30)
            assert answer["status"] == "FAILURE"
            assert re.match(
                r"busy\.example asks to wait 6 hours; at most 15 minutes are waited\.",
                answer["cause"],
            )
        # The second pull sent no request: anonymous pulls of this machine are limited by then.
        assert sum(busy.manifest_requests.values()) <= 2
        counts = dict(busy.manifest_requests)
        name = "busy.example/team/one:1"
        until(
            lambda: service.poll(name, CAROL)["status"] != "FAILURE", 10, "a new pull", POLL_PAUSE
        )
        answer = service.pull(name, CAROL, 30)
        assert "asks to wait" in answer["cause"]
        assert dict(busy.manifest_requests) == counts


@pytest.mark.slow
def test_a_wait_of_seconds_postpones_pulls(
    tmp_path: Path, registries: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    """The pulls wait in the queue with the reason, leave both workers free, and then succeed."""
    busy, _ = registries
    busy.rate_limits = {"team/one": ("5", 1), "team/two": ("5", 1)}
    names = ("busy.example/team/one:1", "busy.example/team/two:1")
    with service_at(tmp_path, registries, {}) as service:
        for name, user in zip(names, (ALICE, BOB), strict=True):
            service.poll(name, user)

        def both_wait() -> bool:
            polls = [service.poll(name, ALICE) for name in names]
            return all(
                poll["status"] == "PENDING"
                and poll["status_message"].startswith("Waits until ")
                and poll["status_message"].endswith(" for busy.example (rate limit)")
                for poll in polls
            )

        until(both_wait, 20, "that both pulls wait", POLL_PAUSE)
        assert "Waits until" in str(service.queue())
        assert service.pull("healthy.example/team/three:1", CAROL, 30)["status"] == "READY"
        for name in names:
            assert service.pull(name, ALICE, 60)["status"] == "READY"
        assert service.leftovers() == []


@pytest.mark.slow
def test_a_restart_during_a_wait(
    tmp_path: Path, registries: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    """A pull that waits when the gateway stops starts at its time after the restart."""
    busy, _ = registries
    busy.rate_limits = {"team/one": ("6", 1)}
    name = "busy.example/team/one:1"
    with service_at(tmp_path, registries, {}) as service:
        service.poll(name)
        until(lambda: "Waits" in service.poll(name)["status_message"], 20, "that the pull waits")
        message = service.poll(name)["status_message"]
        service.stop()
        service.start()
        assert service.poll(name)["status_message"] == message
        assert service.pull(name, seconds=60)["status"] == "READY"


@pytest.mark.slow
def test_a_registry_that_is_down(
    tmp_path: Path, registries: tuple[FaultyRegistry, FaultyRegistry]
) -> None:
    """Pulls wait for `RegistryWait` seconds, then fail with the name of the registry."""
    _, healthy = registries
    absent = FaultyRegistry()
    absent.host = f"127.0.0.1:{free_port()}"
    with service_at(tmp_path, (absent, healthy), {"RegistryWait": 8}) as service:
        name = "busy.example/team/one:1"
        service.poll(name)
        until(
            lambda: "busy.example (unreachable)" in service.poll(name)["status_message"],
            30,
            "that the pull waits",
        )
        assert service.pull("healthy.example/team/three:1", CAROL, 30)["status"] == "READY"
        answer = service.pull(name, seconds=60)
        assert answer["status"] == "FAILURE"
        assert "busy.example" in answer["cause"]
        assert "RegistryWait" in answer["remedy"]
