"""Groups of files: what a killed process has left of one is removed, though the group is used."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.locks import try_share

BEFORE = 1_000_000.0


@pytest.fixture
def groups(tmp_path: Path) -> FileGroups:
    """Return the groups of a directory; the base of a name has hexadecimal digits."""
    return FileGroups(tmp_path, re.compile("[0-9a-f]+"), ".main", (".index",))


def make(directory: Path, name: str, age: float) -> Path:
    """Make a file that was last written `age` seconds before `BEFORE`."""
    path = directory / name
    path.write_bytes(b"")
    os.utime(path, (BEFORE - age, BEFORE - age))
    return path


def test_temporary_files_of_a_group_that_is_often_used(groups: FileGroups, tmp_path: Path) -> None:
    """They are removed by their own time; those that may yet be written stay, and other files."""
    paths = [
        make(tmp_path, name, age)
        for name, age in (
            ("ab.main", 50),
            ("ab.index", -50),
            (".ab.index.new", -1),
            (".ab.index.old", 1),
            (".foreign.index.old", 1),
        )
    ]
    assert groups.sweep(BEFORE) == 0
    assert [path.exists() for path in paths] == [True, True, True, False, True]


def test_temporary_files_of_a_group_that_a_process_uses(groups: FileGroups, tmp_path: Path) -> None:
    """Its other files stay until the process has ended."""
    main, temporary = make(tmp_path, "ab.main", 2), make(tmp_path, ".ab.index.old", 1)
    descriptor = try_share(main)
    assert descriptor is not None
    assert groups.sweep(BEFORE) == 0
    assert (main.exists(), temporary.exists()) == (True, False)
    os.close(descriptor)
    assert groups.sweep(BEFORE) == 1
    assert not main.exists()
