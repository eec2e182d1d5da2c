"""A gateway whose workers die, are stopped, or cannot start: all of it is known within seconds.

The limit of heartbeats is long: what waited for it would take too long here.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.parts import need
from tests.patience import patient
from tests.running_service import SYSTEM, Service, until

ADMIN = "good:root:root::0:0"
SOON = 30.0
"""Seconds. A second attempt takes about two on an idle machine."""

NEVER = 3600
"""Seconds; the limit of heartbeats where none is to be waited for."""


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with a few images."""
    with FaultyRegistry() as running:
        for n in range(4):
            made = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            running.add(f"lib/app{n}", made)
        yield running


class Gateway(Service):
    """A gateway whose `mksquashfs` is a script of ours, which finds its worker in `$PPID`."""

    def __init__(self, root: Path, registry: FaultyRegistry, body: str, **changes: Any) -> None:
        """Run `body` before each conversion; `$ONCE` is true in the first of them."""
        real, flag = need("mksquashfs"), root / "flag"
        program = root / "converter"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n'
            f'ONCE=false; mkdir {flag} 2>/dev/null && ONCE=true\n{body}\nexec {real} "$@"\n'
        )
        program.chmod(0o755)
        self.flag = flag
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        fixed = {"Mksquashfs": str(program), "HeartbeatLimit": NEVER}
        super().__init__(root, locations, {**fixed, **changes})

    def slots(self) -> int:
        """Return how many slots an admin is shown."""
        status, body = self.get(f"/api/workers/{SYSTEM}/", ADMIN)
        assert status == 200, body
        return sum(row["slots"] for row in body["list"])

    def messages(self, image: str) -> list[str]:
        """Poll a pull to its end; return what it said while it was PENDING."""
        said: list[str] = []

        def ended() -> bool:
            answer = self.poll(image)
            assert answer["status"] != "FAILURE", answer
            if answer["status"] == "PENDING":
                said.append(answer["status_message"])
            return bool(answer["status"] == "READY")

        until(ended, SOON, "the end of the pull")
        return said


@pytest.mark.parametrize(
    ("act", "how"),
    [
        ("kill -KILL $PPID; sleep 100", "was killed by signal 9"),
        ("kill -SEGV $PPID; sleep 100", "was killed by signal 11"),
        ("kill -ABRT $PPID; sleep 100", "was killed by signal 6"),
        ("kill -TERM $PPID; sleep 100", "was stopped"),
        ("kill -INT $PPID; sleep 100", "was stopped"),
        ("prlimit --pid $PPID --nofile=3:3", "ran out of file descriptors"),
    ],
)
def test_a_worker_that_ends(registry: FaultyRegistry, tmp_path: Path, act: str, how: str) -> None:
    """Its pull says so, and goes on at once; the log names the image; no part stays."""
    body = f"if $ONCE; then {act}; fi"
    with Gateway(tmp_path, registry, body) as gateway:
        said = gateway.messages("lib/app0:1")
        assert any(how in words for words in said), said
        log = gateway.log.read_text()
        assert re.search(rf"requeued: docker:lib/app0:1 on {SYSTEM}, .*attempt 1: .* {how}", log)
        assert re.search("READY: docker:lib/app0:1 .*attempt 2", log)
        until(lambda: not gateway.leftovers(), 10, "the clean-up")


def test_an_image_that_always_kills(registry: FaultyRegistry, tmp_path: Path) -> None:
    """After five deaths it is a FAILURE with a reason; others' pulls are not held up."""
    deadly = tmp_path / "deadly"
    deadly.touch()
    body = f"[ -e {deadly} ] && kill -KILL $PPID && sleep 100"
    gateway = Gateway(tmp_path, registry, body)
    with gateway:
        failed = gateway.pull("lib/app1:1", seconds=60)
        assert failed["status"] == "FAILURE"
        assert (
            "5 workers died on this image; the last one was killed by signal 9" in failed["cause"]
        )
        deadly.unlink()
        assert gateway.pull("lib/app2:1", seconds=SOON)["status"] == "READY"


def test_a_worker_that_hangs(registry: FaultyRegistry, tmp_path: Path) -> None:
    """With a short limit, too, its successor is left alone; others' pulls do not wait meanwhile."""
    body = "if $ONCE; then kill -STOP $PPID; sleep 100; fi"
    with Gateway(tmp_path, registry, body, HeartbeatLimit=2) as gateway:
        gateway.poll("lib/app0:1")
        until(gateway.flag.exists, SOON, "the conversion")
        assert gateway.pull("lib/app1:1", seconds=SOON)["status"] == "READY"
        assert gateway.pull("lib/app0:1", seconds=SOON)["status"] == "READY"
        log = gateway.log.read_text()
        assert log.count("gives no sign of life") == 1
        assert re.search("READY: docker:lib/app0:1 .*attempt 2", log)


def test_a_log_whose_disk_is_full(registry: FaultyRegistry, tmp_path: Path) -> None:
    """It ends no worker and no gateway; what happens is told all the same."""
    gateway = Gateway(tmp_path, registry, "if $ONCE; then kill -KILL $PPID; sleep 100; fi")
    gateway.log = Path("/dev/full")
    with gateway:
        said = gateway.messages("lib/app0:1")
        assert any("was killed by signal 9" in words for words in said), said
        assert gateway.pull("lib/app1:1", seconds=SOON)["status"] == "READY"
        assert gateway.get("/readyz")[0] == 200


def test_an_orderly_restart(registry: FaultyRegistry, tmp_path: Path) -> None:
    """What it stops in the middle goes on as soon as it is back, and was no death."""
    with Gateway(tmp_path, registry, "$ONCE && sleep 100") as gateway:
        gateway.poll("lib/app0:1")
        until(gateway.flag.exists, SOON, "the conversion")
        begin = time.monotonic()
        gateway.stop()
        assert time.monotonic() - begin < patient(20)
        log = gateway.log.read_text()
        assert re.search("requeued: docker:lib/app0:1 .*attempt 1: The worker was stopped", log)
        gateway.start()
        assert gateway.pull("lib/app0:1", seconds=SOON)["status"] == "READY"
        assert "died" not in gateway.log.read_text()


def test_no_worker_can_start(registry: FaultyRegistry, tmp_path: Path) -> None:
    """All are told, pulls fail after a while, and everything goes on once that is mended."""
    with Gateway(tmp_path, registry, "", WorkerWait=3) as gateway:
        until(gateway.workers, SOON, "the first worker")
        assert gateway.slots() == 2
        whole = gateway.config.read_text()
        gateway.config.write_text("{")
        os.kill(gateway.workers()[0], signal.SIGKILL)
        until(lambda: gateway.get("/readyz")[0] == 503, SOON, "the word")
        assert gateway.get("/readyz")[1] == "no-workers"
        assert gateway.get("/livez")[0] == 200
        assert gateway.slots() == 0
        answer = gateway.poll("lib/app0:1")
        waiting = gateway.poll("lib/app0:1")
        assert answer["status"] == "INIT"
        assert "No worker can start" in waiting["status_message"] or waiting["status"] == "FAILURE"
        failed = gateway.pull("lib/app0:1", seconds=SOON)
        assert failed["status"] == "FAILURE"
        assert "no worker could start" in failed["cause"]
        # On a busy machine the pull has failed before the next worker has come to say why.
        until(lambda: "worker cannot start: " in gateway.log.read_text(), SOON, "the reason")
        gateway.config.write_text(whole)
        until(lambda: gateway.get("/readyz")[0] == 200, 90, "the recovery")
        assert gateway.pull("lib/app1:1", seconds=SOON)["status"] == "READY"
