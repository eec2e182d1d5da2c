"""Real parts that tests run against: programs of the machine, ports, waiting for a server."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.patience import patient

_MNT_DETACH = 2


def lacking(what: str) -> NoReturn:
    """Skip the test for want of a part of the machine, or fail it where all must run."""
    if os.environ.get("SHIFTERGW_REQUIRE_ALL") == "1":
        pytest.fail(what)
    pytest.skip(what)


def need(program: str) -> str:
    """Return the path of a program; without it the test is `lacking`."""
    path = shutil.which(program)
    if path is None:
        lacking(f"{program} is not installed; `tests/run` installs it")
    return path


def need_root() -> None:
    """Return if this user may mount."""
    if os.geteuid() != 0:
        lacking("only root may mount")


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Say whether something takes connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def accepts(path: Path) -> bool:
    """Return whether something takes connections on a unix socket.

    A socket that exists may not be listened on yet: the file is there from `bind` on.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def wait_for_port(port: int, seconds: float = 15) -> None:
    """Return once something listens on a loopback port; raise `TimeoutError` otherwise."""
    deadline = time.monotonic() + patient(seconds)
    while time.monotonic() < deadline:
        if listens(port):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class HungDisk:
    """A file system on `directory` that answers nothing, as NFS does whose server is away.

    It is one of FUSE whose program never reads what the kernel asks. Once it has ended, what lies
    in `directory` itself is there again, and whatever hung fails.
    """

    def __init__(self, directory: Path) -> None:
        """Mount it."""
        need_root()
        try:
            self._descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            lacking("this machine has no FUSE")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory = os.fsencode(directory)
        options = f"fd={self._descriptor},rootmode=40000,user_id=0,group_id=0"
        if self._libc.mount(b"hung", self._directory, b"fuse", 0, options.encode()):
            os.close(self._descriptor)
            lacking("mounting is not allowed here")
        self._is_mounted = True

    def end(self) -> None:
        """Let whatever hangs go, and take the file system away."""
        if self._is_mounted:
            self._is_mounted = False
            self._libc.umount2(self._directory, _MNT_DETACH)
            os.close(self._descriptor)


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[None]:
    """Mount a file system of its own on `directory`; `options` are tmpfs's, such as `size=2m`."""
    need_root()
    directory.mkdir(exist_ok=True)
    command = [need("mount"), "-t", "tmpfs", "-o", options, "none", str(directory)]
    if subprocess.run(command, check=False).returncode:
        lacking("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run([need("umount"), directory], check=True)
