"""Tests of the watch on the reactor's thread: the calls that it records, and those it ignores."""

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
"""A directory in place of the program's, whose coverage fails for code without a file."""


@pytest.fixture(autouse=True)
def examples_as_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the watch treat the examples as code of the program."""
    monkeypatch.setattr(reactor_disk, "PROGRAM_DIRECTORY", EXAMPLES)


def program_functions(call: str) -> dict[str, Any]:
    """Return functions of the program: `work` blocks, and `run` calls it in a coroutine."""
    functions: dict[str, Any] = {}
    exec(compile(SOURCE.format(call=call), EXAMPLES + "blocking.py", "exec"), functions)
    return functions


def recorded_calls(run: Callable[[], None]) -> list[str]:
    """Return the calls that the watch has recorded during `run`, and clear its record."""
    WATCH.calls.clear()
    run()
    calls = [call.split(" of ")[0] for call in WATCH.calls]
    WATCH.calls.clear()
    return calls


@pytest.mark.parametrize("event", CALLS)
def test_file_work_in_a_coroutine_is_recorded(tmp_path: Path, event: str) -> None:
    """Each operation on a file below the directory of the tests is recorded."""
    file = tmp_path / "file"
    file.touch()
    functions = program_functions(CALLS[event])

    def run() -> None:
        coroutine: Coroutine[Deferred[Any], Any, None] = functions["run"](file)
        Deferred.fromCoroutine(coroutine)

    assert event in recorded_calls(run)


def test_a_callback_is_recorded(tmp_path: Path) -> None:
    """Twisted calls callbacks on the reactor's thread, too."""
    functions = program_functions("os.stat(path)")

    def run() -> None:
        Deferred[Path]().addCallback(functions["work"]).callback(tmp_path)

    assert recorded_calls(run) == ["os.stat"]


@pytest_twisted.ensureDeferred
async def test_a_thread_may_block(tmp_path: Path) -> None:
    """A thread, a test that calls a blocking function, and work on other files are not recorded."""
    functions = program_functions("os.stat(path)")
    await deferToThread(functions["work"], tmp_path)
    functions["work"](tmp_path)
    await functions["run"](Path(os.devnull))
    assert WATCH.calls == []
