"""Imports: public files, and files that a program reads as the user."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.errors import BadRequest, ImageNotFound, ImageTooLarge, NotAllowed, TimedOut
from shiftergw.model import ImageFile
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.user_files import imports as imports_module
from shiftergw.sources.user_files.imports import (
    STEPS,
    Imports,
    check_path,
    check_public_file,
    check_user,
    import_calls,
    open_public_file,
)
from tests.patience import patient
from tests.work.waiting import until

PRINT = [sys.executable, "-c", "import sys; print(*sys.argv[1:], end='')", "{user}", "{uid}"]


@pytest.fixture
def public() -> Path:
    """Return the path of a public file: `/etc/passwd`, which everybody may read."""
    return Path("/etc/passwd")


@pytest_twisted.async_yield_fixture()
async def threads() -> AsyncIterator[Threads]:
    """Yield a running pool."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    await pool.stopService()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that everybody may enter, though those of pytest are private."""
    check = imports_module._check_mode
    above = {path.stat().st_ino for path in tmp_path.parents}

    def check_below(descriptor: int, bits: int, *, regular: bool = False) -> None:
        if os.fstat(descriptor).st_ino not in above:
            check(descriptor, bits, regular=regular)

    monkeypatch.setattr(imports_module, "_check_mode", check_below)
    tmp_path.chmod(0o755)
    return tmp_path


def test_a_public_file_is_opened(directory: Path, public: Path) -> None:
    """A public file below directories that all users may enter is opened."""
    file = directory / "image.squashfs"
    file.write_bytes(b"squashfs")
    file.chmod(0o444)
    for path in (file, public):
        descriptor = open_public_file(str(path))
        assert os.pread(descriptor, 100, 0) == path.read_bytes()[:100]
        os.close(descriptor)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o044, 0o000])
def test_a_file_that_somebody_may_not_read(directory: Path, mode: int) -> None:
    """Each of user, group and others needs the permission."""
    file = directory / "image.squashfs"
    file.touch()
    file.chmod(mode)
    with pytest.raises(NotAllowed, match="shiftergw import"):
        open_public_file(str(file))


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o705])
def test_a_directory_that_somebody_may_not_enter(directory: Path, mode: int) -> None:
    """A public file in a private directory is private."""
    below = directory / "private" / "below"
    below.mkdir(parents=True)
    file = below / "image.squashfs"
    file.touch(0o644)
    file.chmod(0o644)
    os.close(open_public_file(str(file)))
    (directory / "private").chmod(mode)
    with pytest.raises(NotAllowed):
        open_public_file(str(file))


def test_links_are_not_followed(directory: Path) -> None:
    """Neither the file nor a directory above it may be a link."""
    (directory / "target").mkdir(0o755)
    file = directory / "target" / "image"
    file.touch()
    file.chmod(0o644)
    os.close(open_public_file(str(file)))
    (directory / "link").symlink_to(directory / "target")
    (directory / "target" / "other").symlink_to(file)
    for path in (directory / "link" / "image", directory / "target" / "other"):
        with pytest.raises(NotAllowed):
            open_public_file(str(path))


def test_what_is_no_file(directory: Path) -> None:
    """A pipe does not block; a directory, a device and an absent file have the same words."""
    os.mkfifo(directory / "pipe")
    (directory / "pipe").chmod(0o644)
    words = set()
    for path in ("pipe", "absent", ".."):
        try:
            open_public_file(str(directory / path))
        except (NotAllowed, BadRequest) as error:
            words.add(type(error))
    with pytest.raises(NotAllowed):
        open_public_file("/dev/null")
    with pytest.raises(NotAllowed):
        open_public_file(str(directory))
    assert words == {NotAllowed, BadRequest}


def test_an_access_control_list_excludes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with an access control list may exclude users, so it is not imported."""
    file = directory / "image"
    file.touch()
    file.chmod(0o644)
    monkeypatch.setattr(os, "getxattr", lambda *_: b"")
    with pytest.raises(NotAllowed):
        open_public_file(str(file))


def test_an_access_control_list_that_cannot_be_read_excludes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose list cannot be read is not imported, since the list may exclude somebody."""

    def fail(*_: str) -> bytes:
        raise OSError(errno.EIO, "an error of the disk")

    file = directory / "image"
    file.touch()
    file.chmod(0o644)
    monkeypatch.setattr(os, "getxattr", fail)
    with pytest.raises(NotAllowed):
        open_public_file(str(file))


@pytest.mark.parametrize(
    "path",
    ["", "x", "./x", "/a/../b", "/a//b", "/a/./b", "/a/", "/", "/a\nb", "/a\0b", "/" + "x" * 5000],
)
def test_paths_that_are_refused(path: str) -> None:
    """Only an absolute path in its plain form is a path."""
    with pytest.raises(BadRequest):
        check_path(path)


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
