"""Files are read and written as a whole, and file systems are described."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shiftergw.plumbing.files import (
    file_system_of,
    free_space,
    mount_of,
    nearest_existing,
    private_directory,
    read_whole,
    removed_on_error,
    replace_durably,
    sync_directory,
    write_private,
)
from tests.parts import small_disk


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "Not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "Not a regular file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.write_bytes(bytes(101)), "More than 100 bytes"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
)
def test_unsuitable_files_are_not_read(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    """A file that may block or is too long raises an error at once."""
    make(tmp_path / "key")
    with pytest.raises(OSError, match=why):
        read_whole(tmp_path / "key", 100)


def test_a_file_is_read_with_its_state(tmp_path: Path) -> None:
    """Content and status belong to the same file; `/dev/null` is empty."""
    path = tmp_path / "key"
    path.write_bytes(bytes(100))
    path.chmod(0o600)
    content, state = read_whole(path, 100)
    assert (content, state.st_mode & 0o777) == (bytes(100), 0o600)
    assert read_whole(Path("/dev/null"))[0] == b""


def test_a_private_directory_is_closed(tmp_path: Path) -> None:
    """A directory is created with its parents, or made private if it exists."""
    directory = tmp_path / "a" / "b"
    private_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    private_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_replace_durably(tmp_path: Path) -> None:
    """The new file replaces the old one."""
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    replace_durably(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "new"


def test_only_directories_are_synced_as_such(tmp_path: Path) -> None:
    """A file instead of a directory raises an error, and no descriptor stays open."""
    (tmp_path / "file").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
    sync_directory(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_is_removed_on_an_error(tmp_path: Path) -> None:
    """If the block raises, the file is removed and the error passes on."""
    path = tmp_path / "file"
    with removed_on_error(path):
        path.touch()
    assert path.exists()
    with pytest.raises(KeyError), removed_on_error(path):
        raise KeyError
    assert not path.exists()
    with pytest.raises(KeyError), removed_on_error(path):
        raise KeyError


def test_a_private_file_replaces_an_older_one(tmp_path: Path) -> None:
    """A file appears with mode 0600 and replaces an older one."""
    path = tmp_path / "secret"
    write_private(path, b"old")
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_mode_and_group_are_copied(tmp_path: Path) -> None:
    """A new file gets mode and group of another file, whatever the umask."""
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(0o664)
    group = max(os.getgroups(), default=os.getgid()) if os.geteuid() else 12345
    os.chown(file, -1, group)
    before = file.stat()
    write_private(file, b"new", before)
    after = file.stat()
    assert file.read_bytes() == b"new"
    assert (after.st_mode, after.st_gid) == (before.st_mode, group)
    assert after.st_ino != before.st_ino


def test_a_private_file_that_cannot_be_placed_leaves_nothing(tmp_path: Path) -> None:
    """If the rename fails, the temporary file is removed."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "taken", b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_the_file_system_of_a_path(tmp_path: Path) -> None:
    """The type is that of the innermost mount, also for a path that does not exist."""
    assert file_system_of(Path("/proc/self/status")) == "proc"
    assert file_system_of(Path("/proc/no/such/thing")) == "proc"
    argv = ["df", "--output=fstype", str(tmp_path)]
    output = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert file_system_of(tmp_path / "new") == output.split()[-1]
    kind, options = mount_of(tmp_path / "new")
    assert kind == output.split()[-1]
    assert options & {"rw", "ro"}


def test_mount_points_may_have_any_name(tmp_path: Path) -> None:
    """Mount points may have blanks and non-ASCII letters in their names."""
    place = tmp_path / "a b é"
    with small_disk(place, "size=1m"):
        assert file_system_of(place / "x") == "tmpfs"


def test_free_space_of_a_missing_directory(tmp_path: Path) -> None:
    """A missing directory has the free space of its nearest existing parent."""
    status = os.statvfs(tmp_path)
    missing = tmp_path / "not" / "yet"
    assert nearest_existing(missing) == tmp_path
    assert nearest_existing(tmp_path / ("x" * 300) / "y") == tmp_path, (
        "what cannot be looked at is absent"
    )
    assert 0 < free_space(nearest_existing(missing)) <= status.f_blocks * status.f_frsize
    with pytest.raises(FileNotFoundError):
        free_space(missing)
