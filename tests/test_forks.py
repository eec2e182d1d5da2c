"""Forks of the process that has imported the program behave as programs that were script."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests import forks
from tests.cli.command import ENVIRONMENT
from tests.cli.signaled import silent_server
from tests.cli.terminals import Terminal
from tests.images import entry, oci_layout, tar_of
from tests.matrices import LONG
from tests.parts import need
from tests.patience import patient
from tests.running_service import BIN, Service, until

SECONDS = 60.0
LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}}


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("lookup",), ("nonsense",), ("convert", "UPPER", "o"), ("images",)],
)
def test_a_command(arguments: tuple[str, ...]) -> None:
    """Exit code, output and errors are those of the executed command with these variables."""
    env = {**ENVIRONMENT, "SHIFTERGW_GATEWAY": "gopher://here", "SHIFTERGW_SYSTEM": "a"}
    fork = forks.run("shiftergw", arguments, env=env, seconds=SECONDS)
    script = subprocess.run(
        [BIN / "shiftergw", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=patient(SECONDS),
        check=False,
    )
    assert (fork.returncode, fork.stdout, fork.stderr) == (
        script.returncode,
        script.stdout,
        script.stderr,
    )


def test_standard_input_and_the_directory(tmp_path: Path) -> None:
    """A command reads its standard input to the end, and relative paths begin in its directory."""
    oci_layout(tmp_path / "layout", [tar_of([entry("etc"), entry("etc/motd", b"x" * 300_000)])])
    need("mksquashfs")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(tmp_path / "layout", ".")
    done = forks.run(
        "shiftergw",
        ("convert", "-", "o.squashfs"),
        env=ENVIRONMENT,
        seconds=SECONDS,
        stdin=archive.getvalue(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.squashfs").read_bytes().startswith(b"hsqs")


def test_a_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its own directory and descriptors; its end is reported with its cause."""
    monkeypatch.setattr("tests.forks.LONG", False)
    with Service(tmp_path, LOCATIONS) as service:
        process = Path(f"/proc/{service.pid}")
        assert (process / "cwd").readlink() == tmp_path
        targets = [str(path.readlink()) for path in (process / "fd").iterdir()]
        assert targets.count(str(service.log)) == 2
        assert not [target for target in targets if "memfd" in target or "pidfd" in target]
        fork = service._process
        assert isinstance(fork, forks.Fork)
        assert fork.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            fork.wait(0)
        fork.kill()
        assert fork.wait(patient(SECONDS)) == -signal.SIGKILL
        assert fork.poll() == -signal.SIGKILL
        fork.send_signal(signal.SIGTERM)  # to no other process that has its id now
        assert not process.exists()


def test_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a gateway is its child, looks like an executed one, and is replaced."""
    monkeypatch.setattr("tests.forks.LONG", False)
    with Service(tmp_path, LOCATIONS) as service:

        def leaders() -> list[int]:
            return [pid for pid in service.workers() if os.getpgid(pid) == pid]

        (pid,) = until(leaders, SECONDS, "the first worker")
        process = Path(f"/proc/{pid}")
        assert (process / "cmdline").read_bytes().startswith(b"python\0-m\0shiftergw.runner\0")
        assert (process / "cwd").readlink() == tmp_path
        streams = [str((process / "fd" / name).readlink()) for name in "012"]
        assert all(stream.startswith("pipe:") for stream in streams)
        os.kill(pid, signal.SIGKILL)
        (successor,) = until(lambda: set(leaders()) - {pid}, SECONDS, "the next worker")
        service.log_with("was killed by signal 9")
    until(lambda: not Path(f"/proc/{successor}").exists(), SECONDS, "the end of the worker")


def test_a_child() -> None:
    """A child is waited for, signaled and read as a program that was executed."""
    command = ["shiftergw", "lookup", "x:1"]
    with silent_server() as (host, server):
        env = {**ENVIRONMENT, "SHIFTERGW_GATEWAY": f"http://{host}", "SHIFTERGW_SYSTEM": "a"}
        with forks.ChildFork(
            command,
            env={**env, "SHIFTERGW_CREDENTIAL": "x"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            server.settimeout(patient(SECONDS))
            server.accept()[0].close()
            out, errors = process.communicate(timeout=patient(SECONDS))
        assert (process.returncode, out) == (3, ""), errors
        with forks.ChildFork(command, env=env, stderr=subprocess.DEVNULL) as process:
            process.kill()
        assert process.returncode == -signal.SIGKILL


def test_a_terminal() -> None:
    """With `terminal` a child asks at its terminal, which is no stream of the tests."""
    env = {**ENVIRONMENT, "SHIFTERGW_SYSTEM": "a"}
    terminal = Terminal(env, "login", "-u", "ann")
    try:
        assert isinstance(terminal.process, forks.ChildFork) is not LONG
        terminal.expect(b"assword")
        assert not terminal.echoes()
    finally:
        terminal.close()


def test_variables_of_the_loader() -> None:
    """A program whose environment changes how programs are executed is not forked."""
    environment = dict(os.environ)
    assert forks.can_fork(environment) is not LONG
    assert not forks.can_fork({**environment, "LD_PRELOAD": "libnss_wrapper.so"})
    assert not forks.can_fork({**environment, "PYTHONPATH": "/elsewhere"})
