"""Record file operations on the reactor's thread, which a disk that hangs would block.

The tests run the reactor in the main thread. There, code of `shiftergw/` must not open, lock, stat,
rename or remove a file below a directory of a test, which stands for the cache, expand, state and
image directories of a site: NFS may take minutes for each of these operations.

A test itself may call a function that blocks. So a call counts only if it comes from a coroutine of
ours or from a callback of Twisted.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import shiftergw
import twisted

TESTS_DIRECTORY = str(Path(__file__).parent) + os.sep
PROGRAM_DIRECTORY = str(Path(shiftergw.__file__).parent) + os.sep
TWISTED_DIRECTORY = str(Path(twisted.__file__).parent) + os.sep

COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

AUDIT_EVENTS = frozenset(
    {
        "open",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.listdir",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "fcntl.flock",
        "fcntl.lockf",
        "sqlite3.connect",
    }
)
"""The file operations among Python's audit events (PEP 578); the first argument is the file."""

FUNCTIONS_WITHOUT_EVENTS = (
    "access",
    "close",
    "fdatasync",
    "fstat",
    "fsync",
    "lstat",
    "readlink",
    "stat",
    "statvfs",
)
"""Functions of `os` that raise no audit event."""

_PROGRAM = "looks for a program in PATH: starting it would hang where this does"

_CERTIFICATES = "reads the certificates that the configuration names, once, before all else"

EXEMPTIONS = {
    "ssh/openssh.py:_start": _PROGRAM,
    "plumbing/process.py:run_command": _PROGRAM,
    "build/check.py:unsquashfs_of": _PROGRAM,
    "mongo/address.py:_parse": _CERTIFICATES,
    "mongo/tls.py:client_tls": _CERTIFICATES,
    "plumbing/unix_listening.py:_listen": "Twisted makes the file of a socket, on a local disk",
    "app/checkup": "`shiftergw check` looks at these disks, and nothing else runs in its process",
    "app/trust.py": "`shiftergw ssh-trust` reads the known hosts, and nothing else runs there",
}
"""Functions, files and packages that may access a disk on the reactor's thread, and why."""


class Watch:
    """Collect the calls on the reactor's thread that access files below a directory."""

    def __init__(self) -> None:
        """Install an audit hook; it cannot be removed, so there is one for all tests."""
        self._root: str | None = None
        self._reactor_thread = threading.main_thread().ident
        self.calls: list[str] = []
        sys.addaudithook(self._handle_event)
        for name in FUNCTIONS_WITHOUT_EVENTS:
            function = getattr(os, name)
            recording_function = self._watch(function)
            setattr(os, name, recording_function)
            for supporting in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
                if function in supporting:
                    supporting.add(recording_function)

    def begin(self, root: Path) -> None:
        """Collect calls below `root` from now on."""
        self.calls = []
        self._root = str(root)

    def end(self) -> list[str]:
        """Stop collecting; return the calls, each of them once."""
        self._root = None
        return sorted(set(self.calls))

    def _handle_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._root is not None and event in AUDIT_EVENTS:
            self._record(event, arguments[0])

    def _watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recording_function(*arguments: Any, **keywords: Any) -> Any:
            if self._root is not None and arguments:
                self._record(f"os.{function.__name__}", arguments[0])
            return function(*arguments, **keywords)

        return recording_function

    def _record(self, operation: str, file: Any) -> None:
        root = self._root
        if root is None or threading.get_ident() != self._reactor_thread:
            return
        self._root = None  # the following file operations are our own
        try:
            path = path_of(file)
        finally:
            self._root = root
        if path is None or not (path == root or path.startswith(root + os.sep)):
            return
        caller = blocking_caller(sys._getframe(2))
        if caller is not None:
            self.calls.append(f"{operation} of {path[len(root) + 1 :]} by {caller}")


def path_of(file: Any) -> str | None:
    """Return the path of a path-like object or a descriptor."""
    if isinstance(file, int):
        try:
            return os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115 - at each call of `fstat`
        except OSError:
            return None
    if hasattr(file, "fileno"):
        return path_of(file.fileno())
    if isinstance(file, str | bytes | os.PathLike):
        return os.path.abspath(os.fsdecode(file))  # noqa: PTH100 - resolves nothing
    return None


def blocking_caller(frame: FrameType | None) -> str | None:
    """Return our innermost function, as `file:name`, if the reactor runs it and it must not."""
    innermost: str | None = None
    runs = False
    while frame is not None and not frame.f_code.co_filename.startswith(TESTS_DIRECTORY):
        file = frame.f_code.co_filename
        if file.startswith(PROGRAM_DIRECTORY):
            place = file[len(PROGRAM_DIRECTORY) :]
            function = f"{place}:{frame.f_code.co_name}"
            if not EXEMPTIONS.keys().isdisjoint({function, place, place.rpartition("/")[0]}):
                return None
            innermost = innermost or function
            runs = runs or bool(frame.f_code.co_flags & COROUTINE)
        elif innermost is not None and file.startswith(TWISTED_DIRECTORY):
            runs = True
        frame = frame.f_back
    return innermost if runs else None


WATCH = Watch()
"""The only instance, which all tests use."""
