"""Real MongoDB servers for tests, as processes of their own, or the one that the environment names.

`SHIFTERGW_TEST_MONGODB` is the URI of a server to be used instead, where a test needs no more than
a database of its own; it is dropped afterwards.
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

from tests import children
from tests.parts import free_port, lacking, wait_for_port

START_SECONDS = 30.0
ANOTHER = os.environ.get("SHIFTERGW_TEST_MONGODB")


class Mongod:
    """A server on a free port of the loopback; the context starts and stops it."""

    def __init__(self, root: Path, *options: str, login: str = "", query: str = "") -> None:
        """Keep its data in `root`; `login` and `query` are parts of its URI."""
        self.root = root
        self.port = free_port()
        self.uri = f"mongodb://{login}127.0.0.1:{self.port}/{query}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it: its data is of no more use."""
        self.kill()

    def start(self, *options: str) -> None:
        """Start the process and wait until it listens."""
        own = Path(sys.executable).parent / "secantusd-py"
        program = str(own) if own.exists() else shutil.which("secantusd-py")
        if program is None:
            lacking("secantusd-py is not installed; `tests/run` installs it")
        self.root.mkdir(parents=True, exist_ok=True)
        argv = [program, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "WARNING",
                "--storage-path", str(self.root / "data"), "--cache-size", "64M",
                *self._options, *options]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            self._process = children.start(argv, cwd=self.root, stdout=log, stderr=log)
        try:
            wait_for_port(self.port, START_SECONDS)
        except TimeoutError as error:
            self.kill()
            raise AssertionError((self.root / "log").read_text()) from error

    def kill(self) -> None:
        """End the process without a warning, also a suspended one."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Keep it from answering; the kernel still accepts connections to it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        # The signal is there before the last of the threads has heard of it.
        while any(
            stat.read_text().rpartition(") ")[2][0] != "T" for stat in threads.glob("*/stat")
        ):
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


_used: list[str] = []
"""Databases to be dropped, once more at the end: a late command may have made one again."""


@contextmanager
def any_server(root: Path) -> Iterator[str]:
    """Yield the URI of the server that the environment names, or else of one with data in `root`.

    Good for tests that share it, and do no more to it than to use databases of their own.
    """
    if ANOTHER is not None:
        yield ANOTHER
        with pymongo.MongoClient[dict[str, Any]](ANOTHER) as client:
            while _used:
                client.drop_database(_used.pop())
        return
    with Mongod(root, "--standalone") as server:
        yield server.uri


@contextmanager
def database(uri: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of a database of its own, and pymongo's way to it; drop it at the end."""
    name = f"shiftergw_test_{uuid.uuid4().hex[:12]}"
    with pymongo.MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=10_000) as client:
        _used.append(name)
        yield name, client[name]
        client.drop_database(name)


def everything(db: Any) -> dict[str, Sequence[Any]]:
    """Return all documents of a database, by collection."""
    return {name: sorted(db[name].find(), key=str) for name in sorted(db.list_collection_names())}
