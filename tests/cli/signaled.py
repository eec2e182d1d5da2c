"""Commands that run in a process of their own, and their ends."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.cli.command import start
from tests.cli.homes import LIMIT
from tests.patience import patient

WORKING = ImageRecord(system="mycluster", status=State.PULLING)


@dataclass
class Outcome:
    """The exit code and the output of a process."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A running command."""

    process: subprocess.Popen[str]

    def expect(self, line: str) -> None:
        """Read standard error up to a line."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            if text.startswith(line):
                return
        raise AssertionError(f"{line!r} was not printed")

    def interrupt(self, number: int, times: int) -> Outcome:
        """Send signals and wait for the end."""
        for _ in range(times):
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=patient(LIMIT))
        return Outcome(self.process.returncode, out, err)


@contextmanager
def command(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Run a command."""
    with start(
        *arguments,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@contextmanager
def silent_server() -> Iterator[tuple[str, socket.socket]]:
    """Run a server that accepts connections and does not answer; the value is its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}", server


@dataclass
class Conversion:
    """A `convert` whose `mksquashfs` never ends: its arguments, and its files."""

    arguments: Sequence[str]
    pid_file: Path
    out: Path
    expand: Path

    def child(self) -> int:
        """Return the process id of the `mksquashfs` once it runs."""
        deadline = time.monotonic() + patient(LIMIT)
        while not self.pid_file.exists() or not self.pid_file.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(self.pid_file.read_text())

    def check_nothing_is_left(self, child: int) -> None:
        """Check that the child has ended, and that no file is left."""
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert list(self.out.parent.iterdir()) == []
        assert [path for path in self.expand.rglob("*") if path.is_file()] == []
