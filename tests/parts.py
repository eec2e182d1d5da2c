"""Real parts that tests run against: programs of the machine, ports, waiting for a server."""

from __future__ import annotations

import os
import shutil
import socket
import time

import pytest


def need(program: str) -> str:
    """Return the path of a program; skip the test if it is missing, or fail where all must run."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed; `tests/run` installs it"
        if os.environ.get("SHIFTERGW_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, seconds: float = 15) -> None:
    """Return once something listens on a loopback port; raise `TimeoutError` otherwise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
