"""Run OpenSSH servers for tests, on the loopback, each with its own keys and settings."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from tests import children
from tests.parts import free_port, need
from tests.patience import patient

START_SECONDS = 15.0
_PRIVILEGE_SEPARATION = Path("/run/sshd")


def make_key(path: Path, kind: str = "ed25519", *options: str, passphrase: str = "") -> Path:
    """Make a key pair at `path` and `path`.pub with `ssh-keygen`; return `path`."""
    argv = [need("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run([*argv, *options], check=True)
    return path


def public(path: Path) -> str:
    """Return the public half of a key: `TYPE BASE64`."""
    return path.with_name(f"{path.name}.pub").read_text().strip()


class Sshd:
    """An SSH server; `with Sshd() as sshd` runs it in a temporary directory.

    The user of the tests may log in with `key`; `known_hosts` has the server's host keys.
    """

    def __init__(
        self,
        *settings: str,
        host_keys: Sequence[str] = ("ed25519",),
        environment: Mapping[str, str] = {},
    ) -> None:
        """Add `settings` to the lines of `sshd_config`; `host_keys` are `TYPE` or `TYPE:BITS`.

        `environment` is added to the environment of the server process.
        """
        self._settings = settings
        self._environment = {**os.environ, **environment}
        self._host_keys = host_keys
        self._directory = TemporaryDirectory(prefix="sshd-")
        self.root = Path(self._directory.name)
        self.port = 0
        self.user = getpass.getuser()
        self.key = self.root / "id"
        self.known_hosts = self.root / "known_hosts"
        self.authorized_keys = self.root / "authorized_keys"
        self.log = self.root / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Create its keys and start the server."""
        make_key(self.key)
        self.authorized_keys.write_text(f"{public(self.key)}\n")
        lines = []
        self.port = free_port()
        for kind in self._host_keys:
            name, _, bits = kind.partition(":")
            make_key(self.host_key(kind), name, *(("-b", bits) if bits else ()))
            lines.append(f"{_address(self.port)} {public(self.host_key(kind))}\n")
        self.known_hosts.write_text("".join(lines))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its directory."""
        try:
            self.stop()
        finally:
            self._directory.cleanup()

    def host_key(self, kind: str) -> Path:
        """Return the file of the host key of a type."""
        return self.root / f"host_{kind.replace(':', '_')}"

    def trust_port(self, port: int) -> None:
        """Add the host keys to `known_hosts` for another port that leads to the server."""
        text = self.known_hosts.read_text()
        lines = [
            line.replace(_address(self.port), _address(port))
            for line in text.splitlines()
            if line.startswith(_address(self.port))
        ]
        self.known_hosts.write_text(text + "\n".join(lines) + "\n")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        config = self.root / "sshd_config"
        lines = [
            *self._settings,  # sshd uses the first of two lines with the same keyword
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            *(f"HostKey {self.host_key(kind)}" for kind in self._host_keys),
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"PidFile {self.root}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "MaxStartups 100",
            "LogLevel VERBOSE",
            # Set so that bash does not read the start-up files of the user of the tests.
            "SetEnv SHLVL=1",
        ]
        if not any(line.startswith("Subsystem ") for line in self._settings):
            lines.append("Subsystem sftp internal-sftp")
        config.write_text("\n".join(lines) + "\n")
        argv = [program or need("sshd"), "-D", "-e", "-f", str(config)]
        with self.log.open("ab") as log:
            offset = log.tell()
            # A session of its own, so that `stop` finds the processes of its connections, too.
            self._process = children.start(
                argv, env=self._environment, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + patient(START_SECONDS)
        ready = b"listening on 127.0.0.1 port %d." % self.port
        while ready not in self.log.read_bytes()[offset:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(self.log.read_text())
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill the server and the processes of its connections, even if they are suspended."""
        if self._process is None:
            return
        process, self._process = self._process, None
        for pid in [*_descendants(process.pid), process.pid]:
            _kill(pid, signal.SIGKILL)
        process.wait(patient(START_SECONDS))

    def end_connections(self) -> None:
        """Kill the processes of the open connections; clients can connect again."""
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            _kill(pid, signal.SIGKILL)

    @contextmanager
    def suspension(self) -> Iterator[None]:
        """Suspend the server and the processes of its connections for a while."""
        assert self._process is not None
        pids = [self._process.pid, *_descendants(self._process.pid)]
        for pid in pids:
            _kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                _kill(pid, signal.SIGCONT)


def remote_section(sshd: Sshd, port: int, images: Path) -> dict[str, Any]:
    """Return the section of a system to which `port`, or a link from there, leads."""
    return {
        "accesstype": "remote",
        "host": ["127.0.0.1"],
        "ssh": {
            "username": sshd.user,
            "imageDir": str(images),
            "key": str(sshd.key),
            "port": port,
            "knownHosts": str(sshd.known_hosts),
        },
    }


def _address(port: int) -> str:
    """Return the name of a port of the loopback in a file of known hosts."""
    return f"[127.0.0.1]:{port}"


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process; some that end meanwhile may be missing."""
    pids = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in task.read_text().split():
                pids += [int(child), *_descendants(int(child))]
    return pids
