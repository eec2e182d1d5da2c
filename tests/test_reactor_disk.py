"""The watch on the reactor's thread: what it hears, and what it lets pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests import reactor_disk
from tests.reactor_disk import WATCH

SOURCE = """
import fcntl
import os

def work(path):
    {call}

async def run(path):
    work(path)
"""

CALLS = {
    "open": "os.close(os.open(path, os.O_RDONLY))",
    "os.close": "os.close(os.open(path, os.O_RDONLY))",
    "fcntl.flock": "with open(path) as file: fcntl.flock(file, fcntl.LOCK_EX)",
    "os.stat": "os.path.exists(path)",
    "os.lstat": "os.lstat(path)",
    "os.fsync": "with open(path) as file: os.fsync(file.fileno())",
    "os.remove": "os.unlink(path)",
    "os.rename": "os.replace(path, path)",
    "os.mkdir": "os.mkdir(path / 'new') if path.is_dir() else os.mkdir(path.parent / 'new')",
    "os.scandir": "list(os.scandir(path.parent))",
    "os.listdir": "os.listdir(path.parent)",
}


EXAMPLES = "/examples/"
"""The directory that stands for ours. Code below ours without a file would break the coverage."""


@pytest.fixture(autouse=True)
def examples_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the watch take the examples for code of ours."""
    monkeypatch.setattr(reactor_disk, "OURS", EXAMPLES)


def ours(call: str) -> dict[str, Any]:
    """Return functions that pass for code of ours; `work` blocks, `run` runs it in a coroutine."""
    functions: dict[str, Any] = {}
    exec(compile(SOURCE.format(call=call), EXAMPLES + "blocking.py", "exec"), functions)
    return functions


def heard_by(run: Callable[[], None]) -> list[str]:
    """Return what the watch has heard of a call, and have it forget that."""
    WATCH.calls.clear()
    run()
    heard = [call.split(" of ")[0] for call in WATCH.calls]
    WATCH.calls.clear()
    return heard


@pytest.mark.parametrize("event", CALLS)
def test_file_work_in_a_coroutine_is_heard(tmp_path: Path, event: str) -> None:
    """Whatever it does to a file below the directory of the tests."""
    file = tmp_path / "file"
    file.touch()
    functions = ours(CALLS[event])

    def run() -> None:
        coroutine: Coroutine[Deferred[Any], Any, None] = functions["run"](file)
        Deferred.fromCoroutine(coroutine)

    assert event in heard_by(run)


def test_a_callback_is_heard(tmp_path: Path) -> None:
    """What Twisted calls is on the reactor's thread too."""
    functions = ours("os.stat(path)")

    def run() -> None:
        Deferred[Path]().addCallback(functions["work"]).callback(tmp_path)

    assert heard_by(run) == ["os.stat"]


@pytest_twisted.ensureDeferred
async def test_a_thread_may_block(tmp_path: Path) -> None:
    """So may a test that calls a function which blocks, and whoever reads other files."""
    functions = ours("os.stat(path)")
    await deferToThread(functions["work"], tmp_path)
    functions["work"](tmp_path)
    await functions["run"](Path(os.devnull))
    assert WATCH.calls == []
