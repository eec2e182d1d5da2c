"""The directory for temporary files: gone at each end, and after a kill with the next command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shiftergw.cli.exits import Misuse
from shiftergw.cli.scratch_directory import LEFTOVER_SECONDS, scratch_directory


def grow_old(path: Path) -> None:
    """Have a directory look as if nothing had changed in it for long."""
    time = path.stat().st_mtime - LEFTOVER_SECONDS - 1
    os.utime(path, (time, time))


def test_it_is_removed_with_its_content(tmp_path: Path) -> None:
    """No file stays, also after an error."""
    path = tmp_path / ".out.0123abcd"

    def fail() -> None:
        with scratch_directory(path):
            (path / "archive.tar").touch()
            assert path.stat().st_mode & 0o777 == 0o700
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_killed_command(tmp_path: Path) -> None:
    """The next command for the same file removes them; those of other users, and new ones, stay."""
    leftover, young, stranger = (
        tmp_path / name for name in (".out.00000001", ".out.00000002", ".out.x.00000003")
    )
    for directory in (leftover, young, stranger):
        (directory / "below").mkdir(parents=True)
    for directory in (leftover, stranger):
        grow_old(directory)
    (tmp_path / ".out.00000004").symlink_to(stranger)
    with scratch_directory(tmp_path / ".out.0123abcd"):
        assert not leftover.exists()
    assert young.exists()
    assert (stranger / "below").exists()


def test_a_command_that_works(tmp_path: Path) -> None:
    """The directory of a running command stays, however old it is: the command holds its lock."""
    path = tmp_path / ".out.00000001"
    with scratch_directory(path):
        grow_old(path)
        with scratch_directory(tmp_path / ".out.0123abcd"):
            assert path.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names it."""
    with (
        pytest.raises(Misuse, match="Nothing can be written to"),
        scratch_directory(tmp_path / "absent" / ".out.0123abcd"),
    ):
        pass
