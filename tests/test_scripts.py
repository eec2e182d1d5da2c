"""The scripts of the README's two commands: what they say, and that saying it changes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.patience import patient

CHECKOUT = Path(__file__).parent.parent


def run(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where whatever it installed, made or started would be seen; wait for its end."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg-query", "sudo", "python3", "twistd"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/used-{name}\nexit 1\n")
        (programs / name).chmod(0o755)
    return subprocess.run(
        [CHECKOUT / script, *arguments],
        cwd=tmp_path,
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SHIFTERGW_VENV": str(tmp_path / "venv"),
            "SHIFTERGW_QUICKSTART": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.parametrize("script", ["conf/quickstart", "tests/run"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_changes_nothing(tmp_path: Path, script: str, option: str) -> None:
    """Asked for help, a script prints it and does nothing else."""
    done = run(tmp_path, script, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {script}  " in done.stdout
    assert "#" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("arguments", [["--stpo"], ["-x"], ["alpine", "busybox"], ["--stop", "x"]])
def test_an_unknown_argument_changes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    """An argument that the script does not know is named, with the help, and nothing is done."""
    done = run(tmp_path, "conf/quickstart", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"does not know {arguments[-1]}" in done.stderr
    assert "conf/quickstart --stop" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_stop_installs_nothing(tmp_path: Path) -> None:
    """Where nothing was ever started there is nothing to stop, and nothing to install for it."""
    done = run(tmp_path, "conf/quickstart", "--stop")
    assert done.returncode == 1
    assert "nothing to stop" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
