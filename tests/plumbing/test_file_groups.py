"""Groups of files: what a killed process has left of one is removed, though the group is used."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from twisted.logger import capturedLogs, formatEvent

from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.locks import try_share
from tests.plumbing.bad_inodes import bad_inode

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


@pytest.mark.parametrize("code", [errno.EIO, errno.EUCLEAN])
@pytest.mark.parametrize("name", ["ab.main", "ab.index", "ab.lock", ".ab.index.old"])
def test_a_damaged_inode_spoils_no_other_group(
    groups: FileGroups, tmp_path: Path, name: str, code: int
) -> None:
    """Room is made by the other groups, again and again, and the log names the file once."""
    paths = [make(tmp_path, f"{base}.main", 1) for base in ("ab", "cd", "ef")]
    make(tmp_path, "ab.index", 1)
    bad_file = tmp_path / name
    bad_file.touch()
    paths[0].write_bytes(b"123")
    with capturedLogs() as log, bad_inode(bad_file, code):
        removable = {files.main: files for files in groups.list_removable()}
        assert sorted(removable) == paths
        assert removable[paths[0]].size == (0 if name == "ab.main" else 3)
        assert removable[paths[1]].remove()
        assert groups.sweep(BEFORE) >= 1
        assert groups.sweep(BEFORE) <= 1
    assert not paths[1].exists()
    assert not paths[2].exists()
    texts = [formatEvent(event) or "" for event in log]
    assert len([text for text in texts if f"{bad_file} cannot be read or removed" in text]) == 1


def test_a_damaged_file_does_not_keep_the_rest_of_its_group(
    groups: FileGroups, tmp_path: Path
) -> None:
    """What can be removed of it makes room."""
    main, index = make(tmp_path, "ab.main", 1), make(tmp_path, "ab.index", 1)
    with bad_inode(index):
        assert groups.sweep(BEFORE) == 1
    assert (main.exists(), index.exists()) == (False, True)


def test_a_failure_that_says_nothing_of_a_file(groups: FileGroups, tmp_path: Path) -> None:
    """A process without descriptors does not pass over files."""
    with (
        bad_inode(make(tmp_path, "ab.main", 1), errno.EMFILE),
        pytest.raises(OSError, match="open"),
    ):
        groups.sweep(BEFORE)
