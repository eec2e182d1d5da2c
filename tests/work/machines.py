"""Start and stop worker machines, which are processes of Celery."""

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
from tests import children, forks
from tests.work.keys import key_of
from tests.work.waiting import until

LEAVE_SECONDS = 30.0
START_SECONDS = 40.0

StartMachine = Callable[..., "WorkerMachine"]


class WorkerMachine:
    """A worker machine in a process group of its own, whose output goes to `log`."""

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
        """Start the machine with `slots` slots for `systems`, which are separated by commas."""
        self.name = f"celery@{name}"
        self.log = log
        arguments = ["-A", app, "worker", "-n", name, "-Q", systems, "-c", str(slots)]
        arguments += ["-l", "INFO", *options]
        environment = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | forks.Fork
        with log.open("ab") as output, Path(os.devnull).open("rb") as null:
            if forks.can_fork(environment):
                self._process = forks.start(
                    "celery",
                    arguments,
                    env=environment,
                    cwd=Path.cwd(),
                    streams=[null.fileno(), output.fileno(), output.fileno()],
                    start_new_session=True,
                )
            else:
                self._process = children.start(
                    [sys.executable, "-m", "celery", *arguments],
                    env=environment,
                    stdin=null,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )

    @property
    def pid(self) -> int:
        """Return the id of the main process, which has the connection to the broker."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Return whether the main process has ended."""
        return self._process.poll() is not None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the machine's main process."""
        self._process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the machine, except the workers."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill all processes of the machine at once, except the workers."""
        with suppress(ProcessLookupError):
            self.signal_all(signal.SIGKILL)
        self._process.wait(LEAVE_SECONDS)

    def stop(self) -> None:
        """Let the machine finish its jobs and end; kill it if it does not end in time."""
        self.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_SECONDS)
        self.kill()


def send(sender: MessageSender, system: str, *names: str) -> None:
    """Offer jobs to the machines of a system, whether they have slots or not."""
    for name in names:
        sender.offer(str(uuid4()), key_of(name), system)


async def wait_until_ready(machine: WorkerMachine) -> None:
    """Return once a machine has logged that it is ready."""
    await until(lambda: " ready." in machine.log.read_text(), START_SECONDS)
