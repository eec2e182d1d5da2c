"""Real MongoDB servers for tests, as child processes, or the one that the environment names.

`SHIFTERGW_TEST_MONGODB` is the URI of a server for tests that only need a database of their own.
The database is dropped afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pymongo

from tests import children, forks
from tests.parts import free_port, lacking, wait_for_port

START_SECONDS = 30.0
EXTERNAL_SERVER = os.environ.get("SHIFTERGW_TEST_MONGODB")


class Mongod:
    """A server on a free port of the loopback; the context starts and stops it."""

    def __init__(self, root: Path, *options: str, login: str = "", query: str = "") -> None:
        """Store its data in `root`; `login` and `query` are parts of its URI."""
        self.root = root
        self.port = free_port()
        self.uri = f"mongodb://{login}127.0.0.1:{self.port}/{query}"
        self._options = options
        self._process: subprocess.Popen[bytes] | forks.Fork | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server: its data is not needed any more."""
        self.kill()

    def start(self, *options: str) -> None:
        """Start the process and wait until it listens."""
        own = Path(sys.executable).parent / "secantusd-py"
        program = str(own) if own.exists() else shutil.which("secantusd-py")
        if program is None:
            lacking("secantusd-py is not installed; `tests/run` installs it")
        self.root.mkdir(parents=True, exist_ok=True)
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "WARNING",
                "--storage-path", str(self.root / "data"), "--cache-size", "64M",
                *self._options, *options]  # fmt: skip
        with (self.root / "log").open("ab") as log, Path(os.devnull).open("rb") as null:
            if forks.can_fork(os.environ):
                streams = [null.fileno(), log.fileno(), log.fileno()]
                self._process = forks.start(
                    "secantusd-py", arguments, env=os.environ, cwd=self.root, streams=streams
                )
            else:
                self._process = children.start(
                    [program, *arguments], cwd=self.root, stdout=log, stderr=log
                )
        try:
            wait_for_port(self.port, START_SECONDS)
        except TimeoutError as error:
            self.kill()
            raise AssertionError((self.root / "log").read_text()) from error

    def kill(self) -> None:
        """Kill the process, even if it is suspended."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Suspend the process; the kernel still accepts connections to it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        # The threads of the process stop one after another.
        while any(
            stat.read_text().rpartition(") ")[2][0] != "T" for stat in threads.glob("*/stat")
        ):
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let the process continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


_databases: list[str] = []
"""Databases that are dropped again at the end, since a late command may have created one."""


@contextmanager
def any_server(root: Path) -> Iterator[str]:
    """Yield the URI of the server that the environment names, or of a new one.

    Several tests share the server, so they may only use databases of their own.
    """
    if EXTERNAL_SERVER is not None:
        yield EXTERNAL_SERVER
        with pymongo.MongoClient[dict[str, Any]](EXTERNAL_SERVER) as client:
            while _databases:
                client.drop_database(_databases.pop())
        return
    with Mongod(root, "--standalone") as server:
        yield server.uri


@contextmanager
def database(uri: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of a new database and pymongo's object for it; drop it at the end."""
    name = f"shiftergw_test_{uuid.uuid4().hex[:12]}"
    with pymongo.MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=10_000) as client:
        _databases.append(name)
        yield name, client[name]
        client.drop_database(name)


def all_documents(db: Any) -> dict[str, Sequence[Any]]:
    """Return all documents of a database by collection."""
    return {name: sorted(db[name].find(), key=str) for name in sorted(db.list_collection_names())}
