"""A system with numbered SFTP sessions: the test decides what each number does."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.delivery.far import sftp_server
from tests.sshd import Sshd
from tests.work.waiting import is_alive

_SERVE = """#!/bin/sh
case $SSH_ORIGINAL_COMMAND in internal-sftp*) ;; *) exec sh -c "$SSH_ORIGINAL_COMMAND";; esac
server={server}
n=0
until mkdir {directory}/$n 2>/dev/null; do n=$((n + 1)); done
echo $$ > {directory}/$n/new
mv {directory}/$n/new {directory}/$n/pid
{body}
"""

_SLOW = """
import os, select, sys, time
free, rate = int(sys.argv[1]), int(sys.argv[2])
while data := os.read(0, 65536):
    while data:
        data = data[os.write(1, data):]
    free -= 65536
    if free < 0 and not rate:
        stopped = select.poll()
        stopped.register(0, 0)
        stopped.poll()  # until the writer of the input has ended
        break
    if free < 0:
        time.sleep(65536 / rate)
"""


class NumberedSystem:
    """A system that numbers its SFTP sessions and records their processes."""

    def __init__(self, directory: Path, body: str, settings: tuple[str, ...]) -> None:
        """Run the shell text `body` for each session; `$n` is its number, `$server` OpenSSH's."""
        directory.mkdir()
        script = directory / "serve"
        script.write_text(_SERVE.format(directory=directory, server=sftp_server(), body=body))
        script.chmod(0o755)
        self._directory = directory
        self.sshd = Sshd(f"ForceCommand {script}", *settings)

    @property
    def pids(self) -> list[int]:
        """Return the processes of all sessions, also of those that have ended."""
        files = sorted(self._directory.glob("*/pid"), key=lambda path: int(path.parent.name))
        return [int(path.read_text()) for path in files]

    def running_pids(self) -> list[int]:
        """Return the processes that are still running."""
        return [pid for pid in self.pids if is_alive(pid)]


PLAIN = "exec $server"
"""A session without a fault."""


def slow(rate: str, free: str = "0") -> str:
    """Return a session that takes `free` bytes at once and then `rate` bytes a second, or none."""
    pump = f"{sys.executable} -S -c '{_SLOW}' $(({free})) $(({rate}))"
    return f"{{ {pump} | $server; exit; }}"


SLOW_FIRST = f"[ $n != 0 ] || {slow('30000000')}; {PLAIN}"
"""The first session is slow, so that later sessions have something to do."""
