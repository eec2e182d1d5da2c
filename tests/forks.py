"""Start gateways, commands and other programs as forks of a process that has imported them.

Each process of tests has one such process (see `tests.fork_server`) for gateways and commands, and
one for each other kind of program; it starts each when it is needed first. With `SHIFTERGW_LONG=1`
the programs are started as sites start them. So they always are in the tests of installed packages,
of closed standard streams, and of signals during imports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests import children
from tests.adoption import request_child
from tests.matrices import LONG
from tests.patience import patient

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
EXEC_VARIABLES = ("LD_", "PYTHON")
"""Beginnings of the names of variables that act only when a program is executed."""

KINDS = {
    "celery": "machine",
    "doomed worker": "worker",
    "hammer": "store",
    "secantusd-py": "database",
}
"""The kinds of servers for programs; the others are forked by that for gateways and commands."""

_lock = threading.Lock()
_servers: dict[tuple[int, str], socket.socket] = {}
"""The socket of each server, by the id of the process that started it and its kind."""


def can_fork(env: Mapping[str, str]) -> bool:
    """Return whether a fork with this environment does what an executed program would do."""
    names = {name for name in {*env, *os.environ} if name.startswith(EXEC_VARIABLES)}
    return not LONG and all(env.get(name) == os.environ.get(name) for name in names)


class Fork:
    """A fork, with the methods of `subprocess.Popen` that the tests call."""

    def __init__(self, report: IO[bytes]) -> None:
        """Read the id of the process from the server's report."""
        self._report = report
        self.returncode: int | None = None
        self.pid = int(self._read_line(patient(START_SECONDS)))

    def _read_line(self, seconds: float | None) -> bytes:
        """Return the next line of the report; raise `TimeoutExpired` if none comes in time."""
        if not select.select([self._report], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired("fork", seconds or 0.0)
        line = self._report.readline()
        assert line, "the fork server has ended"
        return line

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended."""
        if self.returncode is None:
            self.returncode = int(self._read_line(timeout))
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def _kind_of(program: str) -> str:
    """Return the kind of the server that forks a program."""
    return KINDS.get(program, "gateway")


class ChildFork(subprocess.Popen[Any]):
    """A fork with the whole interface of `subprocess.Popen`.

    `arguments` begin with the program. With `terminal` the standard error becomes its controlling
    terminal, in a session of its own.
    """

    def __init__(self, arguments: Sequence[str], *, terminal: bool = False, **options: Any) -> None:
        """Start the command; `options` are those of `Popen`, except for those of executing."""
        self._terminal = terminal
        super().__init__(arguments, **options)

    def _execute_child(self, args: Sequence[str], *parts: Any) -> None:
        """Start the program: `Popen` calls this method, which has these parameters since 3.11."""
        cwd, env = parts[4:6]
        ends, session = parts[9:15], parts[20]
        request = {
            "program": args[0],
            "arguments": list(args[1:]),
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
            "session": session or self._terminal,
            "terminal": self._terminal,
        }
        given_ends = [ends[0], ends[3], ends[5]]
        streams = [own if end == -1 else end for own, end in enumerate(given_ends)]
        with _lock:
            self.pid = request_child(_server(_kind_of(args[0])), request, streams)
        self._child_created = True
        popen: Any = self
        popen._close_pipe_fds(*ends)


def _server(kind: str) -> socket.socket:
    """Return the socket of this process's server of a kind, which is started once."""
    key = os.getpid(), kind
    if key not in _servers:
        control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            process = children.start(
                [sys.executable, "-m", "tests.fork_server", kind, str(server_end.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[server_end.fileno()],
            )
        # Set so that Popen does not warn: the server ends after this process.
        process.returncode = 0
        _servers[key] = control
    return _servers[key]


def start(
    program: str,
    arguments: Sequence[object],
    *,
    env: Mapping[str, str],
    cwd: Path,
    streams: Sequence[int],
    start_new_session: bool = False,
) -> Fork:
    """Start a program of `tests.fork_server` with these descriptors as its standard streams."""
    request = {
        "program": program,
        "arguments": [str(argument) for argument in arguments],
        "env": dict(env),
        "cwd": str(cwd),
        "session": start_new_session,
    }
    reading_end, writing_end = os.pipe()
    report = os.fdopen(reading_end, "rb", buffering=0)
    try:
        descriptors = [*streams, writing_end]
        with _lock:
            socket.send_fds(_server(_kind_of(program)), [json.dumps(request).encode()], descriptors)
    finally:
        os.close(writing_end)
    return Fork(report)


def run(
    program: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    seconds: float,
    stdin: bytes = b"",
    cwd: Path | None = None,
    start_new_session: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output; kill it after a time limit."""
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        pipe_with(stdin) as source,
    ):
        fork = start(
            program,
            arguments,
            env=env,
            cwd=cwd or Path.cwd(),
            streams=[source, output.fileno(), errors.fileno()],
            start_new_session=start_new_session,
        )
        try:
            code = fork.wait(patient(seconds))
        except subprocess.TimeoutExpired:
            fork.kill()
            raise
        for stream in (output, errors):
            stream.seek(0)
        return subprocess.CompletedProcess(
            [program, *arguments], code, output.read(), errors.read()
        )


@contextmanager
def pipe_with(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a pipe from which `content` can be read."""
    reading_end, writing_end = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing_end, "wb") as pipe:
            pipe.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading_end
    finally:
        os.close(reading_end)
        writer.join()
