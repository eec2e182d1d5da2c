"""Files that everybody may read: nothing else is opened, and nothing is done to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shiftergw.errors import BadRequest, NotAllowed
from shiftergw.sources.user_files.public_files import check_path, open_public_file


@pytest.fixture
def public() -> Path:
    """Return the path of a public file: `/etc/passwd`, which everybody may read."""
    return Path("/etc/passwd")


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
def test_a_file_that_some_user_may_not_read(directory: Path, mode: int) -> None:
    """Each of user, group and others needs the permission."""
    file = directory / "image.squashfs"
    file.touch()
    file.chmod(mode)
    with pytest.raises(NotAllowed, match="shiftergw import"):
        open_public_file(str(file))


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o705])
def test_a_directory_that_some_user_may_not_enter(directory: Path, mode: int) -> None:
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


def test_paths_that_are_not_files(directory: Path) -> None:
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


def test_paths_that_are_not_files_are_not_opened(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open that reads would release the writer of a pipe, and may rewind a tape."""
    os.mkfifo(directory / "pipe")
    (directory / "pipe").chmod(0o644)
    calls: list[tuple[object, int]] = []
    open_file = os.open

    def note(path: object, flags: int, **members: int) -> int:
        calls.append((path, flags))
        return open_file(path, flags, **members)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", note)
        for path in (directory / "pipe", Path("/dev/null")):
            with pytest.raises(NotAllowed):
                open_public_file(str(path))
    assert [path for path, flags in calls if not flags & os.O_PATH] == []
    assert {"pipe", "null"} <= {path for path, _ in calls}


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
