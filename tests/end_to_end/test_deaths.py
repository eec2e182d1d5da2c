"""A gateway whose workers die, stop, or cannot start notices it within seconds.

The limit of heartbeats is so long that a test that waited for it would fail.
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
from tests.matrices import LONG
from tests.parts import need
from tests.patience import patient
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until

ADMIN = "good:root:root::0:0"
ATTEMPT_SECONDS = 30.0
"""Time limit of a second attempt, which takes about two seconds on an idle machine."""

LONG_LIMIT = 3600
"""Seconds; a limit of heartbeats that no test reaches."""


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with a few images."""
    with FaultyRegistry() as running:
        for n in range(4):
            image = make_image([tar_of([entry("etc"), entry("etc/motd", os.urandom(50_000))])])
            running.add(f"lib/app{n}", image)
        yield running


class Gateway(Service):
    """A gateway whose `mksquashfs` is a script; `$PPID` in it is the worker."""

    def __init__(self, root: Path, registry: FaultyRegistry, body: str, **changes: Any) -> None:
        """Run the shell code `body` before each conversion; `$ONCE` is true in the first one."""
        real, flag = need("mksquashfs"), root / "flag"
        program = root / "converter"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n'
            f'ONCE=false; mkdir {flag} 2>/dev/null && ONCE=true\n{body}\nexec {real} "$@"\n'
        )
        program.chmod(0o755)
        self.flag = flag
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        defaults = {"Mksquashfs": str(program), "HeartbeatLimit": LONG_LIMIT}
        super().__init__(root, locations, {**defaults, **changes})

    def slots(self) -> int:
        """Return how many slots the gateway shows to admins."""
        status, body = self.get(f"/api/workers/{SYSTEM}/", ADMIN)
        assert status == 200, body
        return sum(row["slots"] for row in body["list"])

    def partial_files(self) -> list[str]:
        """Return what is left but for locks: a download that ended before the death needs none."""
        return [name for name in self.leftovers() if not name.endswith(".lock")]

    def messages(self, image: str) -> list[str]:
        """Poll a pull to its end; return its messages while it was PENDING."""
        messages: list[str] = []

        def has_ended() -> bool:
            answer = self.poll(image)
            assert answer["status"] != "FAILURE", answer
            if answer["status"] == "PENDING":
                messages.append(answer["status_message"])
            return bool(answer["status"] == "READY")

        until(has_ended, ATTEMPT_SECONDS, "the end of the pull")
        return messages

    def wait_for_second_attempt(self, image: str) -> None:
        """Wait until the log says that the second attempt at `image` made it READY.

        The line follows the answer to the poll that reported the end.
        """
        ready = re.compile(f"outcome=READY .* image=docker:{image} .* attempt=2 ")
        until(lambda: ready.search(self.log.read_text()), ATTEMPT_SECONDS, "the line of the end")


ENDS = [
    ("kill -SEGV $PPID; sleep 100", "was killed by signal 11"),
    ("kill -TERM $PPID; sleep 100", "was stopped"),
    ("prlimit --pid $PPID --nofile=3:3", "ran out of file descriptors"),
]
FURTHER_SIGNALS = [
    ("kill -KILL $PPID; sleep 100", "was killed by signal 9"),
    ("kill -ABRT $PPID; sleep 100", "was killed by signal 6"),
    ("kill -INT $PPID; sleep 100", "was stopped"),
]


@pytest.mark.parametrize(("act", "how"), [*ENDS, *(FURTHER_SIGNALS if LONG else [])])
def test_a_worker_that_ends(registry: FaultyRegistry, tmp_path: Path, act: str, how: str) -> None:
    """The pull reports the end and resumes; the log names the image; no partial file stays."""
    body = f"if $ONCE; then {act}; fi"
    with Gateway(tmp_path, registry, body) as gateway:
        messages = gateway.messages("lib/app0:1")
        assert any(how in words for words in messages), messages
        log = gateway.log.read_text()
        assert re.search(rf"requeued: docker:lib/app0:1 on {SYSTEM}, .*attempt 1: .* {how}", log)
        gateway.wait_for_second_attempt("lib/app0:1")
        until(lambda: not gateway.partial_files(), 10, "the clean-up")


@pytest.mark.slow
def test_an_image_that_always_kills(registry: FaultyRegistry, tmp_path: Path) -> None:
    """After five deaths of workers its pull fails with the reason; other pulls are not delayed."""
    deadly = tmp_path / "deadly"
    deadly.touch()
    body = f"[ -e {deadly} ] && kill -KILL $PPID && sleep 100"
    gateway = Gateway(tmp_path, registry, body)
    with gateway:
        answer = gateway.pull("lib/app1:1", seconds=60)
        assert answer["status"] == "FAILURE"
        assert (
            "5 workers died on this image; the last one was killed by signal 9" in answer["cause"]
        )
        deadly.unlink()
        assert gateway.pull("lib/app2:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"


@pytest.mark.slow
def test_a_worker_that_hangs(registry: FaultyRegistry, tmp_path: Path) -> None:
    """A hanging worker is stopped once; another finishes its pull; other pulls do not wait."""
    body = "if $ONCE; then kill -STOP $PPID; sleep 100; fi"
    with Gateway(tmp_path, registry, body, HeartbeatLimit=2) as gateway:
        gateway.poll("lib/app0:1")
        until(gateway.flag.exists, ATTEMPT_SECONDS, "the conversion")
        assert gateway.pull("lib/app1:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
        assert gateway.pull("lib/app0:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
        log = gateway.log.read_text()
        assert log.count("gives no sign of life") == 1
        gateway.wait_for_second_attempt("lib/app0:1")


def test_a_log_whose_disk_is_full(registry: FaultyRegistry, tmp_path: Path) -> None:
    """The gateway and its workers continue, and a pull still reports the death of its worker."""
    gateway = Gateway(tmp_path, registry, "if $ONCE; then kill -KILL $PPID; sleep 100; fi")
    gateway.log = Path("/dev/full")
    with gateway:
        messages = gateway.messages("lib/app0:1")
        assert any("was killed by signal 9" in words for words in messages), messages
        assert gateway.pull("lib/app1:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
        assert gateway.get("/readyz")[0] == 200


@pytest.mark.slow
def test_an_orderly_restart(registry: FaultyRegistry, tmp_path: Path) -> None:
    """An interrupted pull resumes after the restart, which does not count as a worker's death."""
    with Gateway(tmp_path, registry, "$ONCE && sleep 100") as gateway:
        gateway.poll("lib/app0:1")
        until(gateway.flag.exists, ATTEMPT_SECONDS, "the conversion")
        begin = time.monotonic()
        gateway.stop()
        assert time.monotonic() - begin < patient(20)
        log = gateway.log.read_text()
        assert re.search("requeued: docker:lib/app0:1 .*attempt 1: The worker was stopped", log)
        gateway.start()
        assert gateway.pull("lib/app0:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
        assert "died" not in gateway.log.read_text()


@pytest.mark.slow
def test_no_worker_can_start(registry: FaultyRegistry, tmp_path: Path) -> None:
    """The gateway reports the fault, pulls fail after a while, and work resumes with workers."""
    with Gateway(tmp_path, registry, "", WorkerWait=3) as gateway:
        until(gateway.workers, ATTEMPT_SECONDS, "the first worker")
        assert gateway.slots() == 2
        whole = gateway.config.read_text()
        gateway.config.write_text("{")
        os.kill(gateway.workers()[0], signal.SIGKILL)
        until(lambda: gateway.get("/readyz")[0] == 503, ATTEMPT_SECONDS, "the report")
        assert gateway.get("/readyz")[1] == "no-workers"
        assert gateway.get("/livez")[0] == 200
        assert gateway.slots() == 0
        answer = gateway.poll("lib/app0:1")
        waiting = gateway.poll("lib/app0:1")
        assert answer["status"] == "INIT"
        assert "No worker can start" in waiting["status_message"] or waiting["status"] == "FAILURE"
        answer = gateway.pull("lib/app0:1", seconds=ATTEMPT_SECONDS)
        assert answer["status"] == "FAILURE"
        assert "no worker could start" in answer["cause"]
        # On a busy machine the pull may fail before the next worker has logged the reason.
        until(
            lambda: "worker cannot start: " in gateway.log.read_text(),
            ATTEMPT_SECONDS,
            "the reason",
        )
        gateway.config.write_text(whole)
        until(lambda: gateway.get("/readyz")[0] == 200, 90, "the recovery", POLL_PAUSE)
        assert gateway.pull("lib/app1:1", seconds=ATTEMPT_SECONDS)["status"] == "READY"
