"""Run munge daemons for tests, each with its own key and socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from shiftergw.auth.munge_client import encode
from tests import children
from tests.parts import accepts, lacking, need
from tests.patience import patient

START_SECONDS = 15.0
_KEY_BYTES = 128

_ENCODE = """
import os, sys
from pathlib import Path
from shiftergw.auth.munge_client import encode
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[3]))
print(encode(sys.stdin.buffer.read(), Path(sys.argv[1])))
"""


def clock_off_by(shift: str) -> dict[str, str]:
    """Return the environment of a process whose clock is shifted, such as by `-1h`."""
    argv = [need("faketime"), "-f", shift, "printenv", "LD_PRELOAD"]
    library = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    return {"LD_PRELOAD": library, "FAKETIME": shift}


class MungeDaemon:
    """A munge daemon; `with MungeDaemon() as munged` runs it in a temporary directory.

    Every user must be able to reach its socket, so it is not in pytest's directory, which only the
    user of the tests can enter.
    """

    def __init__(self, key: bytes | None = None, env: Mapping[str, str] | None = None) -> None:
        """Use a key, or else a new one; the daemon starts when the context is entered."""
        self.key = key or os.urandom(_KEY_BYTES)
        self._env = {**os.environ, **(env or {})}
        self._directory = TemporaryDirectory(prefix="munged-")
        self.root = Path(self._directory.name)
        self.socket = self.root / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Write the key and start the daemon."""
        self.root.chmod(0o711)
        key = self.root / "key"
        key.write_bytes(self.key)
        key.chmod(0o400)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the daemon and remove its directory."""
        try:
            self.stop()
        finally:
            self._directory.cleanup()

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        program = shutil.which("munged", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        names = ("socket", "key-file", "log-file", "pid-file", "seed-file")
        options = [f"--{name}={self.root / name.removesuffix('-file')}" for name in names]
        argv = [program or need("munged"), "--foreground", *options]
        with (self.root / "output").open("wb") as output:
            self._process = children.start(argv, stdout=output, stderr=output, env=self._env)
        deadline = time.monotonic() + patient(START_SECONDS)
        while not accepts(self.socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError((self.root / "output").read_text())
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the daemon, even if it is suspended; SIGKILL leaves its socket behind."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + patient(START_SECONDS)
        while process.poll() is None and time.monotonic() < deadline:
            # The daemon checks for a signal only between clients. A signal that arrives just before
            # it waits for the next client is lost, so the signal is repeated.
            process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        assert process.returncode is not None, "munged does not stop"

    @property
    def pid(self) -> int:
        """Return the daemon's process id."""
        assert self._process is not None
        return self._process.pid

    @contextmanager
    def suspension(self) -> Iterator[None]:
        """Suspend the daemon for a while; the kernel still accepts connections to it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def encode(self, payload: bytes = b"") -> str:
        """Return a credential of the user of the tests."""
        return encode(payload, self.socket)

    def encode_as(self, uid: int, gid: int, payload: bytes = b"") -> str:
        """Return a credential of another user; the test is skipped unless root runs it."""
        if os.geteuid() != 0:
            lacking("only root may act as other users")
        result = subprocess.run(
            [sys.executable, "-c", _ENCODE, str(self.socket), str(gid), str(uid)],
            input=payload,
            stdout=subprocess.PIPE,
            check=True,
        )
        return result.stdout.decode().strip()

    def munge(self, *options: str, payload: bytes = b"") -> str:
        """Return a credential that the program `munge` creates with these options."""
        result = subprocess.run(
            [need("munge"), f"--socket={self.socket}", *options],
            input=payload,
            stdout=subprocess.PIPE,
            check=True,
        )
        return result.stdout.decode().strip()
