"""Become the parent of a process that a server of forks has made (see `tests.fork_server`).

The server forks a process that forks the program and ends at once. The kernel gives the program to
the next "child subreaper" above (prctl(2)), which the process that requests it is meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
_library = ctypes.CDLL(None)


def request_child(server: socket.socket, request: Mapping[str, Any], streams: Sequence[int]) -> int:
    """Have a server fork a program with these standard streams; return its process id.

    The server is a descendant of this process, which may wait for the program as for any child.
    """
    reading_end, writing_end = os.pipe()
    message = json.dumps({**request, "orphan": True}).encode()
    _library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        with os.fdopen(reading_end, "rb") as report:
            try:
                socket.send_fds(server, [message], [*streams, writing_end])
            finally:
                os.close(writing_end)
            return int(report.readline())
    finally:
        _library.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def fork_orphan() -> int:
    """Fork a process that gets another parent; return what `os.fork` returns."""
    reading_end, writing_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(reading_end)
        pid = os.fork()
        if pid:
            os.write(writing_end, b"%d" % pid)
            os._exit(0)
        os.close(writing_end)
        return 0
    os.close(writing_end)
    with os.fdopen(reading_end, "rb") as report:
        pid = int(report.read())
    os.waitpid(parent, 0)  # from now on it has another parent
    return pid
