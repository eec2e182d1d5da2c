"""One order of removal for the files of a disk, whatever their kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shiftergw.plumbing.disk_budget import DiskBudget, RemovableFiles
from shiftergw.plumbing.files import free_space
from tests.parts import small_disk

SIZE = 100_000


@dataclass
class Kind:
    """Files in a directory, some of which are in use."""

    directory: Path
    files: list[RemovableFiles] = field(default_factory=list)

    def add(self, use_time: float, *, is_redundant: bool = False, is_in_use: bool = False) -> Path:
        """Make a file of `SIZE` bytes; return its path."""
        path = self.directory / f"{use_time}"
        path.write_bytes(bytes(SIZE))

        def remove() -> bool:
            if not is_in_use:
                path.unlink()
            return not is_in_use

        self.files.append(RemovableFiles(path, SIZE, use_time, remove, is_redundant))
        return path

    def list_removable(self) -> list[RemovableFiles]:
        """Return the files that exist."""
        return [files for files in self.files if files.main.exists()]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 1 MiB."""
    with small_disk(tmp_path / "disk", "size=1m"):
        yield tmp_path / "disk"


def test_the_least_recently_used_files_go_first(disk: Path) -> None:
    """Redundant files go before all others; files in use and named ones stay."""
    kinds = Kind(disk), Kind(disk)
    paths = [
        kinds[0].add(1, is_in_use=True),
        kinds[0].add(2),
        kinds[1].add(3),
        kinds[1].add(4),
        kinds[0].add(5, is_redundant=True),
        kinds[1].add(6),
    ]
    budget = DiskBudget(kinds)
    free = free_space(disk)
    for enough in (math.inf, free + 1):
        assert budget.room(disk, {paths[1]}, enough) == free + 5 * SIZE
    assert budget.room(disk, enough=free) == free
    assert budget.make_room(disk, free + 2 * SIZE, {paths[1]})
    assert [path.exists() for path in paths] == [True, True, False, True, False, True]
    assert not budget.make_room(disk, free)


@pytest.mark.parametrize("is_estimate", [False, True])
def test_files_that_cannot_make_enough_room(disk: Path, is_estimate: bool) -> None:
    """Nothing is removed in vain, unless the room that is needed is an estimate."""
    kind = Kind(disk)
    path = kind.add(1)
    assert DiskBudget((kind,)).make_room(disk, 1 << 60, is_estimate=is_estimate) is is_estimate
    assert path.exists() is not is_estimate


def test_files_on_another_disk_count_for_nothing(disk: Path, tmp_path: Path) -> None:
    """Their removal would make no room."""
    kinds = Kind(tmp_path), Kind(disk)
    paths = kinds[0].add(1), kinds[1].add(2)
    budget = DiskBudget(kinds)
    assert budget.room(disk / "absent") == free_space(disk) + SIZE
    assert budget.make_room(disk / "absent", 1 << 19, is_estimate=True) is False
    assert budget.make_room(disk / "absent", free_space(disk) + SIZE)
    assert [path.exists() for path in paths] == [True, False]


def test_a_part_of_the_disk_stays_free(disk: Path) -> None:
    """A growing file leaves a fiftieth of the disk to other programs, if that is possible."""
    kind = Kind(disk)
    paths = [kind.add(number) for number in range(3)]
    budget = DiskBudget((kind,))
    assert budget.make_room_for_growth(disk, free_space(disk) - 10_000, set(), is_full=False)
    assert [path.exists() for path in paths] == [False, True, True]
    assert budget.make_room_for_growth(disk, free_space(disk) + 2 * SIZE, set(), is_full=False)
    assert not any(path.exists() for path in paths)
    assert not budget.make_room_for_growth(disk, 1, set(), is_full=True)


def test_a_full_quota_is_made_free_by_removals_alone(disk: Path) -> None:
    """What `statvfs` calls free does not help a write that has failed."""
    kind = Kind(disk)
    paths = [kind.add(number) for number in range(3)]
    assert DiskBudget((kind,)).make_room(disk, SIZE + 1, is_full=True)
    assert [path.exists() for path in paths] == [False, False, True]
