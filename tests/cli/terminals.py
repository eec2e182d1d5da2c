"""A terminal of the test's own for a command."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from typing import Any

from tests import forks
from tests.cli.command import PROGRAM
from tests.cli.homes import LIMIT
from tests.patience import patient


class Terminal:
    """A command on a terminal of its own, which wins over its standard input."""

    def __init__(self, env: Mapping[str, str], *arguments: str, columns: int = 80) -> None:
        """Start the command."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        self._slave = slave
        streams: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": slave,
        }
        self.output = b""
        if forks.can_fork(env):
            self.process: subprocess.Popen[Any] = forks.ChildFork(
                ["shiftergw", *arguments], terminal=True, env=env, **streams
            )
            return
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=env,
            **streams,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no lock
        )

    def expect(self, text: bytes) -> None:
        """Wait until a text is shown."""
        deadline = time.monotonic() + patient(LIMIT)
        while text not in self.output:
            if not select.select([self._master], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(self.output)
            self.output += os.read(self._master, 1024)

    def echoes(self) -> bool:
        """Return whether the terminal echoes input."""
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def type(self, text: bytes) -> None:
        """Type a text."""
        os.write(self._master, text)

    def close(self) -> None:
        """Kill the command, and close the terminal."""
        self.process.kill()
        self.process.wait(LIMIT)
        os.close(self._master)
        os.close(self._slave)
