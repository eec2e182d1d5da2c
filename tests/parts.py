"""What tests need of the machine: programs, ports, mounts, servers that listen."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from tests.patience import patient

_MNT_DETACH = 2


def lacking(reason: str) -> NoReturn:
    """Skip the test because the machine lacks something, or fail it where all tests must run."""
    if os.environ.get("SHIFTERGW_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def need(program: str) -> str:
    """Return the path of a program; skip the test if it is not installed (see `lacking`)."""
    path = shutil.which(program)
    if path is None:
        lacking(f"{program} is not installed; `tests/run` installs it")
    return path


def need_module(name: str) -> None:
    """Skip the test if a Python package is not installed (see `lacking`)."""
    if find_spec(name) is None:
        lacking(f"the package {name} is not installed; `tests/run` installs it")


def need_root() -> None:
    """Skip the test unless root runs it, who may mount."""
    if os.geteuid() != 0:
        lacking("only root may mount")


RESERVED_PORTS = 100
_reservations: deque[socket.socket] = deque()


def free_port() -> int:
    """Return a TCP port of the loopback on which no process listens, and reserve it.

    A socket without a listener is bound to the port, so that the system gives the port to no
    program that asks for any port. Without it another test's server may answer in the place of a
    server that a test has stopped. Programs that set `SO_REUSEADDR`, as servers do, can listen.
    Each process of tests reserves its last `RESERVED_PORTS` ports.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reservations.append(reservation)
    if len(_reservations) > RESERVED_PORTS:
        _reservations.popleft().close()
    port: int = reservation.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Return whether a process accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def accepts(path: Path) -> bool:
    """Return whether a process accepts connections on a unix socket.

    `bind` creates the file of the socket, and connections are refused until `listen`.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def wait_for_port(port: int, seconds: float = 15) -> None:
    """Return once a process listens on a loopback port; raise `TimeoutError` after `seconds`."""
    deadline = time.monotonic() + patient(seconds)
    while time.monotonic() < deadline:
        if listens(port):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class HungDisk:
    """A file system on `directory` that never answers, like NFS whose server is down.

    It is a FUSE file system whose program never reads the requests of the kernel. After `end` the
    files of `directory` itself are visible again, and calls that hung fail.
    """

    def __init__(self, directory: Path) -> None:
        """Mount the file system."""
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
        """Unmount the file system, so that calls that hang fail."""
        if self._is_mounted:
            self._is_mounted = False
            self._libc.umount2(self._directory, _MNT_DETACH)
            os.close(self._descriptor)


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs on `directory` with `options` such as `size=2m`; unmount it at the end.

    After a failure programs may still write there, and the disk cannot be unmounted. Then it is
    detached instead, so that the test reports its failure.
    """
    need_root()
    directory.mkdir(exist_ok=True)
    command = [need("mount"), "-t", "tmpfs", "-o", options, "none", str(directory)]
    if subprocess.run(command, check=False).returncode:
        lacking("mounting is not allowed here")
    try:
        yield
    except BaseException:
        subprocess.run([need("umount"), "--lazy", directory], check=True)
        raise
    subprocess.run([need("umount"), directory], check=True)
