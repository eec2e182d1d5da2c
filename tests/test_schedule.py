"""Tests of the order in which the tests run."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import conftest
from tests.schedule import form_groups


@dataclass(frozen=True)
class FakeTest:
    """The parts of a collected test on which the order depends."""

    file: str
    number: int
    mark: str = ""
    fixturenames: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return Path(conftest.__file__).parent / self.file

    def get_closest_marker(self, name: str) -> str | None:
        """Return the mark of the test, if it has this name."""
        return name if name == self.mark else None


def _tests(file: str, count: int, *, slow: int = 0, fixture: str = "") -> list[Any]:
    """Return the tests of a file, of which the first ones are slow."""
    return [
        FakeTest(file, number, "slow" if number < slow else "", (fixture,))
        for number in range(count)
    ]


def test_slow_tests_come_first() -> None:
    """Each slow test is a group of its own; the others follow in their order, a few at a time."""
    slow, rest = _tests("slow", 3, slow=3), _tests("rest", 60)
    groups = form_groups([*rest[:30], *slow, *rest[30:]])
    assert groups[:3] == [[test] for test in slow]
    assert [test for group in groups[3:] for test in group] == rest
    assert [len(group) for group in groups[3:]] == [50, 10]


def test_small_files_are_not_split() -> None:
    """Tests of several files are in one group while they fit; the next file begins another."""
    files = [_tests(name, count) for name, count in (("a", 20), ("b", 20), ("c", 20), ("d", 5))]
    groups = form_groups([test for tests in files for test in tests])
    assert groups == [files[0] + files[1], files[2] + files[3]]


def test_few_processes_start_a_broker() -> None:
    """The tests that use it form two groups of about the same duration; files stay together."""
    items = _tests("d", 600, slow=4)
    for file, count in (("a", 5), ("b", 3), ("c", 2)):
        items += _tests(file, count, slow=1, fixture="broker")
    groups = form_groups(items)
    assert sum(map(len, groups)) == 610
    files = [[test.path.name for test in group] for group in groups[:2]]
    assert files == [["b", "b", "b", "c", "c"], ["a"] * 5]


def test_tests_with_programs_stay_together() -> None:
    """The tests of a file that start programs form a group; the longest group is the first."""
    files = _tests("end_to_end/x", 8, slow=1), _tests("end_to_end/y", 9, slow=2)
    groups = form_groups([*_tests("d", 20), *files[0], *files[1]])
    assert groups[:2] == [files[1], files[0]]


def test_garbage_is_collected_after_the_collection_of_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The garbage collector is off only until all tests are collected."""
    assert gc.isenabled()
    monkeypatch.setattr(gc, "freeze", lambda: None)
    gc.disable()
    try:
        conftest.pytest_collection_finish()
        assert gc.isenabled()
    finally:
        gc.enable()
