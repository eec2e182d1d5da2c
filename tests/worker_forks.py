"""Have a gateway that is a fork start its workers as forks, too.

To execute a worker, and to import its modules, takes more processor time than most pulls of tests.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.process import Process

from tests.adoption import request_child

STREAMS = 3
ARGUMENT_BOUNDS = slice(45, 47)
"""The fields `arg_start` and `arg_end` of /proc/self/stat (proc(5)), behind the name."""


def fork_workers(server: socket.socket, programs: Container[str]) -> None:
    """Have Twisted start `python -m PROGRAM` by a server of forks from now on.

    The server is a child of this process.
    """
    spawn: Any = Process._trySpawnInsteadOfFork

    def fork_or_spawn(
        process: Any,
        path: Any,
        uid: Any,
        gid: Any,
        executable: Any,
        args: Sequence[bytes],
        environment: Mapping[bytes, bytes],
        options: Mapping[str, Any],
    ) -> Any:
        words = [os.fsdecode(word) for word in args]
        if words[:2] != [sys.executable, "-m"] or words[2] not in programs:
            return spawn(process, path, uid, gid, executable, args, environment, options)
        request = {
            "program": words[2],
            "arguments": words[3:],
            "env": {os.fsdecode(name): os.fsdecode(environment[name]) for name in environment},
            "cwd": str(Path.cwd()),
            "session": False,
        }
        streams = [options["fdmap"][number] for number in range(STREAMS)]
        process.pid = request_child(server, request, streams)
        process.status = -1
        return True

    owner: Any = Process
    owner._trySpawnInsteadOfFork = fork_or_spawn


def name_process(*words: str) -> None:
    """Replace the command line that /proc shows for this process, as far as there is room."""
    line = "".join(f"{word}\0" for word in words).encode()
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    start, end = map(int, fields[ARGUMENT_BOUNDS])
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(line[: end - start - 1].ljust(end - start, b"\0"))
