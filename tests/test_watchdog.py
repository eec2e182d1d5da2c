"""The watchdog: the limit of the current test counts, and no other."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from tests.patience import patient, stretch
from tests.watchdog import Watchdog, watch

HANGS = """
import time
import pytest

def test_before():
    pass

@pytest.mark.timeout(0.3)
def test_hangs():
    time.sleep(600)
"""

CONFTEST = """
from tests.watchdog import watch

pytest_timeout_set_timer = watch
"""


def test_a_limit_that_passes() -> None:
    """The function is called, in another thread; the next limit is watched too."""
    watchdog = Watchdog()
    for _ in range(2):
        event = threading.Event()
        watchdog.set(0.01, event.set)
        assert event.wait(patient(10))


def test_a_shorter_limit_after_a_longer_one() -> None:
    """The thread that sleeps until the limit of an earlier test notices the next test's limit."""
    watchdog = Watchdog()
    short_event, long_event = threading.Event(), threading.Event()
    watchdog.set(600, long_event.set)
    watchdog.cancel()
    watchdog.set(0.01, short_event.set)
    assert short_event.wait(patient(10))
    assert not long_event.is_set()


def test_a_cancelled_limit() -> None:
    """Nothing is called after a test has ended in time, also when its limit passes."""
    watchdog = Watchdog()
    first_event, second_event = threading.Event(), threading.Event()
    watchdog.set(stretch(0.5), first_event.set)
    watchdog.cancel()
    watchdog.set(stretch(0.6), second_event.set)
    assert second_event.wait(patient(10))
    assert not first_event.is_set()


def test_all_limits_have_one_thread() -> None:
    """A thousand tests start one thread."""
    threads = threading.active_count()
    watchdog = Watchdog()
    for _ in range(1000):
        watchdog.set(600, threading.Event().set)
        watchdog.cancel()
    assert threading.active_count() <= threads + 1


def test_a_signal_is_left_to_the_plugin() -> None:
    """A test whose limit is watched by a signal keeps that."""
    assert watch(SimpleNamespace(), SimpleNamespace(method="signal", timeout=1)) is None


def test_a_test_that_hangs(tmp_path: Path) -> None:
    """The process shows the stacks of its threads and ends."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hangs.py").write_text(HANGS)
    root = Path(__file__).parent.parent
    settings = ["-c", str(root / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout" in done.stdout + done.stderr
    assert "time.sleep(600)" in done.stdout + done.stderr
