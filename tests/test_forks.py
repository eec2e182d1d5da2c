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
from tests.images import entry, oci_layout, tar_of
from tests.matrices import LONG
from tests.parts import need
from tests.patience import patient
from tests.running_service import BIN, Service, until

SECONDS = 60.0
LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}}


@pytest.mark.parametrize(
    "arguments", [("--version",), ("lookup",), ("nonsense",), ("convert", "UPPER", "o")]
)
def test_a_command(arguments: tuple[str, ...]) -> None:
    """Exit code, output and errors are those of the executed command."""
    fork = forks.run("shiftergw", arguments, env=ENVIRONMENT, seconds=SECONDS)
    script = subprocess.run(
        [BIN / "shiftergw", *arguments],
        env=ENVIRONMENT,
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
    """It has its own directory, variables and descriptors; its end is reported with its cause."""
    monkeypatch.setenv("SHIFTERGW_TEST_MARK", "here")
    monkeypatch.setattr("tests.forks.LONG", False)
    with Service(tmp_path, LOCATIONS) as service:
        process = Path(f"/proc/{service.pid}")
        assert (process / "cwd").readlink() == tmp_path
        until(service.workers, SECONDS, "the first worker")
        variables = Path(f"/proc/{service.workers()[0]}/environ").read_bytes().split(b"\0")
        assert b"SHIFTERGW_TEST_MARK=here" in variables
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


def test_variables_of_the_loader() -> None:
    """A program whose environment changes how programs are executed is not forked."""
    environment = dict(os.environ)
    assert forks.can_fork(environment) is not LONG
    assert not forks.can_fork({**environment, "LD_PRELOAD": "libnss_wrapper.so"})
    assert not forks.can_fork({**environment, "PYTHONPATH": "/elsewhere"})
