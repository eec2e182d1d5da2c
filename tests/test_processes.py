"""Tests of test runs in several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patient

CONFTEST = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parents[1])!r})

from tests import schedule
from tests.processes import run_in_processes

schedule.room_of = lambda item: "rules"


def pytest_runtestloop(session):
    run_in_processes(session, 3)
    return True
"""

TESTS = """
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

PIDS = Path(__file__).parent / "pids"


@pytest.fixture(scope="session")
def pids():
    yield PIDS
    (PIDS / f"{os.getpid()}.ended").touch()


@pytest.mark.parametrize("number", range(100))
@pytest_twisted.ensureDeferred
async def test_passes(number, pids, tmp_path):
    await deferLater(reactor, 0.01)
    (tmp_path / "file").touch()
    (pids / str(os.getpid())).touch()


def test_fails():
    print("a clue")
    assert 1 == 2, "wrong sum"


def test_warns():
    warnings.warn("old fashion")


def test_dies(pids):
    os.kill(os.getpid(), signal.SIGKILL)


def test_after_a_death():
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Run tests in three processes, one of which dies; return the output and the directory."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "pids").mkdir()
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_any.py").write_text(TESTS)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert process.returncode == 1, process.stdout + process.stderr
    return process.stdout, directory / "pids"


def test_each_test_runs_once(run: tuple[str, Path]) -> None:
    """All results are counted, also of the tests after the one in which a process died."""
    output, _ = run
    assert "2 failed, 102 passed" in output


def test_failures_are_shown(run: tuple[str, Path]) -> None:
    """The output shows where a test failed, what it printed, and which test ended a process."""
    output, _ = run
    assert "wrong sum" in output
    assert "a clue" in output
    assert "old fashion" in output
    assert "the process ended while it ran this test: exit code -9" in output


def test_processes_share_the_tests(run: tuple[str, Path]) -> None:
    """Several processes run tests; each removes its fixtures at the end, unless it dies."""
    _, directory = run
    pids = {file.name for file in directory.iterdir()}
    running = {name for name in pids if not name.endswith(".ended")}
    clean_exits = {name.removesuffix(".ended") for name in pids - running}
    assert len(running) > 1
    assert clean_exits
    assert clean_exits <= running
