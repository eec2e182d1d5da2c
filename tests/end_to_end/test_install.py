"""`twistd` and `twist` find the service of an editable install, and report why it cannot start."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shiftergw.store.sqlite.database import open_database
from tests import forks
from tests.patience import patient


@pytest.mark.parametrize("program", ["twistd", "twist"])
def test_an_editable_install_brings_the_plugin(tmp_path: Path, program: str) -> None:
    """After an editable install, as in the README, the service is listed."""
    result = subprocess.run(
        [Path(sys.executable).parent / program, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(
        r"^ +shiftergw +The image gateway", result.stdout + result.stderr, re.MULTILINE
    )


def test_a_faulty_configuration_ends_the_start_with_a_text(tmp_path: Path) -> None:
    """`twistd shiftergw` names the fault of its configuration and exits with an error."""
    config = tmp_path / "imagemanager.json"
    config.write_text('{"Platforms": 3}')
    twistd = Path(sys.executable).parent / "twistd"
    result = subprocess.run(
        [twistd, "--nodaemon", "--pidfile=", "shiftergw", "--config", config],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    assert result.returncode != 0
    assert "Platforms" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "--help" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "program", [["twistd", "--nodaemon", "--pidfile="], ["twist", "--log-format", "text"]]
)
def test_the_log_level_counts(tmp_path: Path, program: list[str]) -> None:
    """With `LogLevel` `warn`, both programs log only warnings from the start to the end."""
    socket_path = tmp_path / "socket"
    changes = {"Listen": f"unix:{socket_path}", "LogLevel": "warn", "Oddity": 1}
    name, *options = program
    running = subprocess.Popen(
        [Path(sys.executable).parent / name, *options, "shiftergw",
         "--config", configuration(tmp_path, **changes)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        for path in ("/livez", "/nowhere"):
            send_request(socket_path, path)
        running.terminate()
        output, _ = running.communicate(timeout=patient(60))
    finally:
        running.kill()
    lines = [line for line in output.splitlines() if "[shiftergw" in line]
    assert len(lines) == 1
    assert "#warn] configuration: Oddity: unknown key" in lines[0]
    assert "[-]" not in output


def send_request(socket_path: Path, path: str) -> None:
    """Send a request to a gateway once it listens; wait for an answer."""
    deadline = time.monotonic() + patient(60)
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            with suppress(OSError):
                client.connect(str(socket_path))
                client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                if client.recv(1):
                    return
            assert time.monotonic() < deadline
            time.sleep(0.05)


def configuration(root: Path, **changes: Any) -> Path:
    """Write a configuration with mock authentication; return its file."""
    (root / "images").mkdir()
    document = {
        "Authentication": "mock",
        "StateDirectory": str(root / "state"),
        "CacheDirectory": str(root / "cache"),
        "ExpandDirectory": str(root / "expand"),
        "DefaultImageLocation": "r",
        "Locations": {"r": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}},
        "Platforms": {"s": {"accesstype": "local", "local": {"imageDir": str(root / "images")}}},
    }
    config = root / "imagemanager.json"
    config.write_text(json.dumps(document | changes))
    return config


def start(root: Path, listen: str, **changes: Any) -> str:
    """Start a gateway that cannot start; return its output after its exit with code 1."""
    config = configuration(root, **{"Listen": listen, **changes})
    result = forks.run(
        "twistd",
        ("--nodaemon", "--pidfile=", "shiftergw", "--config", str(config)),
        env=os.environ,
        seconds=60,
        cwd=root,
    )
    output = (result.stdout + result.stderr).decode()
    assert result.returncode == 1, output
    assert "shiftergw cannot start: " in output
    assert "Traceback" not in output
    return output


def test_a_port_in_use_ends_the_start_with_an_error(tmp_path: Path) -> None:
    """A gateway that cannot listen exits and names the reason."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        output = start(tmp_path, f"tcp:{port}:interface=127.0.0.1")
    assert "Address already in use" in output
    assert "change Listen" in output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Listen": "unix"}, ("Listen", "unix", "tcp:5000:interface=127.0.0.1")),
        ({"CacheDirectory": "/proc/version/cache"}, ("/proc/version/cache", "CacheDirectory")),
        (
            {"Locations": {"r": {"remotetype": "dockerv2", "sslcacert": "/nosuch.pem"}}},
            ("/nosuch.pem",),
        ),
    ],
)
def test_a_failed_start_names_the_fault(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    """A fault that appears only at the start is logged before any worker starts."""
    output = start(tmp_path, **({"listen": "tcp:0:interface=127.0.0.1", **changes}))
    for word in words:
        assert word in output
    assert "worker" not in output


def test_a_damaged_database_ends_the_start_with_an_error(tmp_path: Path) -> None:
    """The gateway exits before it answers a request, and `shiftergw check` names the reason."""
    database = tmp_path / "state" / "shiftergw.sqlite"
    database.parent.mkdir()
    open_database(database).close()
    content = database.read_bytes()
    database.write_bytes(content[:4096] + bytes(len(content) - 4096))
    output = start(tmp_path, "tcp:0:interface=127.0.0.1")
    assert f"The database {database} is damaged." in output
    assert "restore the backup" in output
    check = forks.run(
        "shiftergw",
        ("check", "--config", str(tmp_path / "imagemanager.json")),
        env=os.environ,
        seconds=60,
    )
    assert check.returncode == 1
    assert b"is damaged" in check.stdout
