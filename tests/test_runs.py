"""Tests of how the tests are run: by the settings of this project, in several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patient, stretch
from tests.test_processes import CONFTEST

ROOT = Path(__file__).parent.parent

HANGS = """
import pytest, pytest_twisted
from twisted.internet.defer import Deferred

@pytest.mark.parametrize("n", range(20))
def test_before(n):
    pass

@pytest.mark.timeout({limit})
@pytest_twisted.ensureDeferred
async def test_hangs():
    await Deferred()

@pytest.mark.parametrize("n", range(20))
@pytest_twisted.ensureDeferred
async def test_behind(n):
    pass
"""


@pytest.mark.slow
def test_a_test_that_hangs(tmp_path: Path) -> None:
    """A test that hangs in the reactor fails, and all others are run and counted."""
    (tmp_path / "test_hangs.py").write_text(HANGS.format(limit=stretch(1)))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    argv = [sys.executable, "-m", "pytest", *settings, "-q"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*argv, str(tmp_path)],
        env=env | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert re.search(r"^1 failed, 40 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert "test_hangs.py::test_hangs" in done.stdout
