"""Worker machines for tests: processes of Celery, started and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from shiftergw.work.celery.broker_connections import MessageSender
from tests import children
from tests.work.contract import key_of
from tests.work.waiting import until

LEAVE_SECONDS = 30.0
START_SECONDS = 40.0

Start = Callable[..., "WorkerMachine"]


class WorkerMachine:
    """A machine in a process group of its own; what it says goes to `log`."""

    def __init__(
        self,
        name: str,
        systems: str,
        slots: int,
        log: Path,
        env: Mapping[str, str],
        app: str = "tests.work.machine",
        options: tuple[str, ...] = (),
    ) -> None:
        """Start it."""
        self.name = f"celery@{name}"
        self.log = log
        argv = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", name, "-Q", systems]
        argv += ["-c", str(slots), "-l", "INFO", *options]
        with log.open("ab") as output:
            self._process = children.start(
                argv,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the process that holds the connection."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Say whether it has ended."""
        return self._process.poll() is not None

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the machine's main process."""
        self._process.send_signal(number)

    def tell_all(self, number: signal.Signals) -> None:
        """Send a signal to the machine's processes that are no jobs."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Cut its power: all its processes die at once, but those of jobs."""
        with suppress(ProcessLookupError):
            self.tell_all(signal.SIGKILL)
        self._process.wait(LEAVE_SECONDS)

    def stop(self) -> None:
        """Let it finish what it has, and end; kill it if it does not."""
        self.tell(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_SECONDS)
        self.kill()


def send(sender: MessageSender, system: str, *names: str) -> None:
    """Send jobs."""
    for name in names:
        sender.offer(str(uuid4()), key_of(name), system)


async def is_up(machine: WorkerMachine) -> None:
    """Return once a machine is ready."""
    await until(lambda: " ready." in machine.log.read_text(), START_SECONDS)
