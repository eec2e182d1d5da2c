"""A system whose SFTP sessions are told apart: each does what the test says of its number."""

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
        stopped.poll()  # until whoever writes to it has gone
        break
    if free < 0:
        time.sleep(65536 / rate)
"""


class Far:
    """A system whose SFTP sessions are numbered; it keeps count of them."""

    def __init__(self, directory: Path, body: str, settings: tuple[str, ...]) -> None:
        """Run the shell's text `body` for each, which knows its number and OpenSSH's server."""
        directory.mkdir()
        script = directory / "serve"
        script.write_text(_SERVE.format(directory=directory, server=sftp_server(), body=body))
        script.chmod(0o755)
        self._directory = directory
        self.sshd = Sshd(f"ForceCommand {script}", *settings)

    @property
    def begun(self) -> list[int]:
        """Return the processes of all sessions there have been."""
        found = sorted(self._directory.glob("*/pid"), key=lambda path: int(path.parent.name))
        return [int(path.read_text()) for path in found]

    def left(self) -> list[int]:
        """Return those that run."""
        return [pid for pid in self.begun if is_alive(pid)]


PLAIN = "exec $server"
"""A session as it should be."""


def slow(rate: str, free: str = "0") -> str:
    """Return a session that takes `rate` bytes a second, or nothing more, after some at once."""
    pump = f"{sys.executable} -S -c '{_SLOW}' $(({free})) $(({rate}))"
    return f"{{ {pump} | $server; exit; }}"


SLOW_FIRST = f"[ $n != 0 ] || {slow('30000000')}; {PLAIN}"
"""Sessions that come later have something to do."""
