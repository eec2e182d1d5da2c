"""Help and errors of the README's two commands and of the bench change nothing on the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.patience import patient

CHECKOUT = Path(__file__).parent.parent


def run(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script with programs that leave a file in `tmp_path` when it calls them."""
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


@pytest.mark.parametrize("script", ["conf/quickstart", "tests/run", "tests/bench/run"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_changes_nothing(tmp_path: Path, script: str, option: str) -> None:
    """With an option for help a script prints its usage and changes nothing."""
    done = run(tmp_path, script, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {script}  " in done.stdout
    assert "#" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("arguments", [["--stpo"], ["-x"], ["alpine", "busybox"], ["--stop", "x"]])
def test_an_unknown_argument_changes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    """The script names an unknown argument, prints its usage, and changes nothing."""
    done = run(tmp_path, "conf/quickstart", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"does not know {arguments[-1]}" in done.stderr
    assert "conf/quickstart --stop" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_stop_installs_nothing(tmp_path: Path) -> None:
    """Without an earlier run, `--stop` reports that and installs nothing."""
    done = run(tmp_path, "conf/quickstart", "--stop")
    assert done.returncode == 1
    assert "nothing to stop" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
