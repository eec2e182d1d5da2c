"""Run the gateway as sites do, in a process of its own, and send HTTP requests to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from shiftergw.plumbing.backoff import Backoff
from tests import children, forks
from tests.parts import free_port
from tests.patience import patient

BIN = Path(sys.executable).parent
SYSTEM = "mycluster"
ALICE = "good:alice:users::2001:2100"
BOB = "good:bob:users::2002:2100"
START_SECONDS = 30.0
FIRST_PAUSE = 0.05
POLL_PAUSE = 0.25
"""The longest pause in seconds between two polls of a pull."""

FINAL = {"READY", "FAILURE"}

T = TypeVar("T")


def until(
    condition: Callable[[], T | None],
    seconds: float,
    event: str,
    longest_pause: float = FIRST_PAUSE,
) -> T:
    """Return the first true value of `condition`; raise `TimeoutError` after `seconds`.

    `event` names the condition in the error. The pauses between two calls grow up to
    `longest_pause`: a condition that stays true may be noticed later, and costs less.
    """
    deadline = time.monotonic() + patient(seconds)
    backoff = Backoff(FIRST_PAUSE, longest_pause, 1.2)
    calls = 0
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{event} did not happen within {patient(seconds):.0f} s")
        calls += 1
        time.sleep(backoff.seconds(calls))


class Service:
    """A gateway on a free port of the loopback, with all its directories below `root`.

    `changes` are merged into its configuration. `locations` are its registries; the first of them
    is the default.
    """

    def __init__(
        self,
        root: Path,
        locations: Mapping[str, Mapping[str, Any]],
        changes: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        munged: Path | None = None,
        through: Sequence[str] = (),
    ) -> None:
        """Write the configuration; the gateway starts when the context is entered.

        `munged` is the socket of the system's munge daemon, for `Authentication: munge`. `through`
        is a command that runs the gateway's command, which is appended to it.
        """
        self._through = through
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.images = root / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.log = root / "gateway.log"
        self.config = root / "imagemanager.json"
        self._env = {**os.environ, **(env or {})}
        document: dict[str, Any] = {
            "Authentication": "mock",
            "Listen": f"tcp:{self.port}:interface=127.0.0.1",
            "DefaultImageLocation": next(iter(locations)),
            "ImageExpirationTimeout": "90:00:00:00",
            "StateDirectory": str(root / "state"),
            "CacheDirectory": str(root / "cache"),
            "ExpandDirectory": str(root / "expand"),
            "WorkerThreads": 2,
            "FailureHold": 2,
            "Locations": {name: dict(location) for name, location in locations.items()},
            "Platforms": {
                SYSTEM: {
                    "accesstype": "local",
                    "admins": ["root"],
                    "squashfs": {"compressor": "gzip", "level": 1},
                    "local": {"imageDir": str(self.images)},
                }
            },
        }
        if munged is not None:
            document["Platforms"][SYSTEM]["mungeSocketPath"] = str(munged)
        document.update(changes or {})
        self.config.write_text(json.dumps(document))
        self._process: subprocess.Popen[bytes] | forks.Fork | None = None

    def __enter__(self) -> Self:
        """Start the gateway and wait until it is ready."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the gateway."""
        self.stop()

    def start(self, ready_path: str = "/readyz") -> None:
        """Start the process and wait until a GET of `ready_path` is answered with 200."""
        self._process = self._start_process()
        process = self._process

        def is_ready() -> bool:
            assert process.poll() is None, self.log.read_text()
            return self.get(ready_path)[0] == 200

        try:
            until(is_ready, START_SECONDS, "the gateway's start")
        except TimeoutError as error:
            self.stop()
            raise AssertionError(self.log.read_text()) from error

    def _start_process(self) -> subprocess.Popen[bytes] | forks.Fork:
        arguments = ["--nodaemon", "--pidfile=", "shiftergw", "--config", str(self.config)]
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as null:
            if not self._through and forks.can_fork(self._env):
                streams = [null.fileno(), log.fileno(), log.fileno()]
                return forks.start(
                    "twistd", arguments, env=self._env, cwd=self.root, streams=streams
                )
            return children.start(
                [*self._through, BIN / "twistd", *arguments],
                cwd=self.root,
                env=self._env,
                stdin=null,
                stdout=log,
                stderr=log,
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process and wait until it has ended."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(patient(30))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None

    @property
    def pid(self) -> int:
        """Return the gateway's process id."""
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """Return the process ids of the gateway's workers."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [
            int(child)
            for child in pids
            if b"shiftergw.runner" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    def get(self, path: str, credential: str = ALICE, method: str = "GET") -> tuple[int, Any]:
        """Send a request without a body; see `ask`."""
        return self.ask(path, credential, method)

    def ask(
        self, path: str, credential: str, method: str = "GET", content: bytes | None = None
    ) -> tuple[int, Any]:
        """Return the status and the body of the answer; a JSON body is parsed.

        The status is 0 if the connection fails.
        """
        request = urllib.request.Request(
            self.url + path,
            headers={"authentication": credential},
            method=method,
            data=content or (b"" if method == "POST" else None),
        )
        try:
            with urllib.request.urlopen(request, timeout=patient(20)) as answer:
                status, content, kind = answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                status, content, kind = error.code, error.read(), error.headers["Content-Type"]
        except OSError:
            return 0, None
        return status, json.loads(content) if kind == "application/json" else content.decode()

    def log_with(self, line: str, count: int = 1) -> str:
        """Return the log once it contains `line`, which is a part of a line, `count` times.

        The lines of workers arrive through pipes: the gateway may answer before it writes them.
        """

        def log() -> str | None:
            text = self.log.read_text()
            return text if text.count(line) >= count else None

        return until(log, 30, f"{line!r} in the log")

    def poll(self, image: str, credential: str = ALICE) -> dict[str, Any]:
        """Request a pull once, as each poll of a client does; return the answer."""
        path = f"/api/pull/{SYSTEM}/docker/{quote(image, safe='')}/"
        status, body = self.get(path, credential, "POST")
        assert status == 200, (status, body)
        answer: dict[str, Any] = body
        return answer

    def pull(self, image: str, credential: str = ALICE, seconds: float = 60) -> dict[str, Any]:
        """Poll until the pull has ended and return the last answer."""

        def final_answer() -> dict[str, Any] | None:
            answer = self.poll(image, credential)
            return answer if answer["status"] in FINAL else None

        return until(final_answer, seconds, f"the end of the pull of {image}", POLL_PAUSE)

    def lookup(self, image: str, credential: str = ALICE) -> tuple[int, Any]:
        """Look up an image; return the status and the body of the answer."""
        return self.get(f"/api/lookup/{SYSTEM}/docker/{quote(image, safe='')}/", credential)

    def queue(self, credential: str = ALICE) -> list[dict[str, Any]]:
        """Return the queue's entries."""
        _, body = self.get(f"/api/queue/{SYSTEM}/", credential)
        entries: list[dict[str, Any]] = body["list"]
        return entries

    def leftovers(self) -> list[str]:
        """Return temporary files in the image directory and in the scratch directories.

        Delivered files, complete blobs, packs, converted files and their descriptions are not
        temporary.
        """
        places = [self.images, self.root / "expand", self.root / "cache"]
        names = [path for place in places for path in place.rglob("*") if path.is_file()]
        keep = (".squashfs", ".meta", ".json", ".pack", ".index")
        return [
            str(path.relative_to(self.root))
            for path in names
            if not path.name.endswith(keep)
            and not (path.parent.name == "sha256" and len(path.name) == 64)
        ]
