"""Imports: public files, and files that a program reads as the user."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.errors import (
    ImageNotFound,
    ImageTooLarge,
    NoSpace,
    NotAllowed,
    PullError,
    TimedOut,
)
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing import disk_errors
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.user_files import imports as imports_module
from shiftergw.sources.user_files.imports import (
    STEPS,
    Imports,
    check_user,
    import_calls,
)
from shiftergw.sources.user_files.public_files import check_public_file
from tests.patience import patient
from tests.work.waiting import until

PRINT = [sys.executable, "-c", "import sys; print(*sys.argv[1:], end='')", "{user}", "{uid}"]


@pytest.mark.parametrize("user", ["", "-x", "a b", "a;b", "../x", "ä", "a" * 80, "$x"])
def test_users_that_are_refused(user: str) -> None:
    """No name of a user looks like an option, or like anything but a name."""
    with pytest.raises(NotAllowed):
        check_user(user)
    check_user("alice.b-c_1")


def _imports(threads: Threads, *command: str, limit: int = 1000, seconds: float = 60) -> Imports:
    calls = import_calls(threads)
    return Imports(command, os.environ, limit, patient(seconds), threads, calls, reactor)


FILE = ImageFile(kind="squashfs", path="/data/x;$(id) {user}", user="alice")


@pytest_twisted.ensureDeferred
async def test_the_command_gets_arguments(threads: Threads, tmp_path: Path) -> None:
    """Placeholders are replaced as whole arguments, and no shell sees them."""
    copy = tmp_path / "copy"
    await _imports(threads, *PRINT, "--", "{path}").read(FILE, 2001, copy, lambda _: None)
    assert copy.read_text() == "alice 2001 -- /data/x;$(id) {user}"
    assert copy.stat().st_mode & 0o777 == 0o600


@pytest_twisted.ensureDeferred
async def test_a_command_that_fails(threads: Threads, tmp_path: Path) -> None:
    """The user gets a sentence, the log the output of the command."""
    imports = _imports(threads, "sh", "-c", "echo no such secret >&2; exit 3")
    with pytest.raises(ImageNotFound) as caught:
        await imports.read(FILE, 2001, tmp_path / "copy", lambda _: None)
    assert "secret" not in str(caught.value)
    assert "secret" in caught.value.detail


@pytest.mark.parametrize("command", [["/absent/cat"], ["sh", "-c", "kill -9 $$"]])
@pytest_twisted.ensureDeferred
async def test_a_command_that_does_not_run(
    threads: Threads, tmp_path: Path, command: list[str]
) -> None:
    """The user's file is not to blame for a program of the site that is absent or was killed."""
    with pytest.raises(PullError, match="ImportCommand") as caught:
        await _imports(threads, *command).read(FILE, 2001, tmp_path / "copy", lambda _: None)
    assert not isinstance(caught.value, ImageNotFound)
    assert "support" in caught.value.remedy
    assert os.path.basename(command[0]) in caught.value.detail  # noqa: PTH119


@pytest.mark.parametrize("script", ["exec sleep 600", "echo x", "exit 1"])
@pytest_twisted.ensureDeferred
async def test_a_command_that_fills_the_disk(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """The command is ended before the disk is full: other jobs need room there as well."""
    monkeypatch.setattr(imports_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(disk_errors, "free_space", lambda _: 1 << 30)
    with pytest.raises(NoSpace, match="disk for uploads"):
        await _imports(threads, "sh", "-c", script).read(
            FILE, 2001, tmp_path / "copy", lambda _: None
        )


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_too_large(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command with too much output is killed, or ends with the same error."""
    monkeypatch.setattr(imports_module, "LOOK_SECONDS", 0.05)
    for script in ("head -c 5000 /dev/zero", "head -c 5000 /dev/zero; exec sleep 600"):
        with pytest.raises(ImageTooLarge, match="MaxUploadSize"):
            await _imports(threads, "sh", "-c", script).read(
                FILE, 2001, tmp_path / "copy", lambda _: None
            )


@pytest_twisted.ensureDeferred
async def test_a_command_that_hangs(threads: Threads, tmp_path: Path) -> None:
    """A command has a time limit."""
    calls = import_calls(threads)
    imports = Imports(["sleep", "600"], os.environ, 1000, 0.2, threads, calls, reactor)
    with pytest.raises(TimedOut):
        await imports.read(FILE, 2001, tmp_path / "copy", lambda _: None)


@pytest_twisted.ensureDeferred
async def test_a_public_file_is_copied(threads: Threads, directory: Path) -> None:
    """Without a command, a public file is copied, up to the limit; others are refused."""
    file = directory / "image.squashfs"
    file.write_bytes(b"squashfs")
    file.chmod(0o644)
    record = ImageFile(kind="squashfs", path=str(file), user="alice")
    calls = BoundedThreadCalls(threads, 1, patient(60), threads.clock, AssertionError)
    await check_public_file(str(file), calls)
    copy = directory / "copy"
    await _imports(threads).read(record, 2001, copy, lambda _: None)
    assert copy.read_bytes() == b"squashfs"
    with pytest.raises(ImageTooLarge):
        await _imports(threads, limit=7).read(record, 2001, copy, lambda _: None)
    file.chmod(0o600)
    with pytest.raises(NotAllowed):
        await _imports(threads).read(record, 2001, copy, lambda _: None)
    with pytest.raises(NotAllowed):
        await check_public_file(str(file), calls)


@pytest_twisted.ensureDeferred
async def test_a_public_file_that_fills_the_disk(
    threads: Threads, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy ends before the disk is full."""
    file = directory / "image.squashfs"
    file.write_bytes(b"squashfs")
    file.chmod(0o644)
    record = ImageFile(kind="squashfs", path=str(file), user="alice")
    monkeypatch.setattr(disk_errors, "free_space", lambda _: 1 << 30)
    with pytest.raises(NoSpace, match="disk for uploads"):
        await _imports(threads).read(record, 2001, directory / "copy", lambda _: None)


@pytest.mark.parametrize("step", ["open", "read"])
@pytest_twisted.ensureDeferred
async def test_a_file_system_that_hangs(
    threads: Threads, directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The pull ends; with two hanging steps the next pull ends at once. These write no more."""
    monkeypatch.setattr(imports_module, "STEP_SECONDS", 0.2)
    file = directory / "image.squashfs"
    file.write_bytes(b"squashfs")
    file.chmod(0o644)
    record = ImageFile(kind="squashfs", path=str(file), user="alice")
    answer = threading.Event()
    function = getattr(os, step)

    def hang(*arguments: Any, **members: Any) -> Any:
        name = arguments[0] if step == "open" else _path_of(arguments[0])
        if name in {file.name, str(file)}:
            answer.wait()
        return function(*arguments, **members)

    imports = _imports(threads)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, hang)
        for number in range(STEPS + 1):
            with pytest.raises(TimedOut, match="does not answer"):
                await imports.read(record, 2001, directory / str(number), lambda _: None)
        answer.set()
        await until(lambda: not any(path.startswith(str(directory)) for path in _open_paths()))
    assert {(directory / str(n)).read_bytes() for n in range(STEPS + 1)} == {b""}
    await imports.read(record, 2001, directory / "copy", lambda _: None)
    assert (directory / "copy").read_bytes() == b"squashfs"


def _path_of(descriptor: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    return ""


def _open_paths() -> set[str]:
    return {_path_of(int(path.name)) for path in Path("/proc/self/fd").iterdir()}
