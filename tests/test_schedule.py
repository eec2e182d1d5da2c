"""Tests of the order in which the tests run."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import conftest
from tests.conftest import deal_slow_tests


def _shares(order: list[Any], processes: int) -> list[list[Any]]:
    """Return the first share of each process, as the schedule `worksteal` of xdist forms them."""
    shares: list[list[Any]] = []
    for process in range(processes):
        size = (len(order) - sum(map(len, shares))) // (processes - process)
        begin = sum(map(len, shares))
        shares.append(order[begin : begin + size])
    return shares


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


@pytest.mark.parametrize(
    ("slow_tests", "other_tests", "processes"),
    [(3, 20, 1), (7, 93, 6), (12, 40, 4), (0, 9, 2), (8, 0, 4), (5, 1003, 6), (6, 94, 8)],
)
def test_each_process_begins_with_slow_tests(
    slow_tests: int, other_tests: int, processes: int
) -> None:
    """Each share begins with its slow tests, and no share has two more of them than another."""
    slow, rest = _tests("slow", slow_tests, slow=slow_tests), _tests("rest", other_tests)
    order = deal_slow_tests([[test] for test in slow], rest, processes)
    assert len(order) == len(set(order)) == slow_tests + other_tests
    counts = []
    for share in _shares(order, processes):
        kinds = [test in slow for test in share]
        assert kinds == sorted(kinds, reverse=True), share
        counts.append(sum(kinds))
    assert max(counts) - min(counts) <= 1
    assert [test for test in order if test in rest] == rest


def test_more_slow_tests_than_a_share_holds() -> None:
    """No test is lost or repeated, even if the slow tests fill all shares."""
    slow, rest = _tests("slow", 10, slow=10), _tests("rest", 1)
    order = deal_slow_tests([[test] for test in slow], rest, 4)
    assert len(order) == 11
    assert set(order) == {*slow, *rest}


def test_a_group_stays_together() -> None:
    """The tests of a group are the beginning of one share; other shares begin with slow tests."""
    group, slow = _tests("group", 20, fixture="broker"), _tests("slow", 9, slow=9)
    order = deal_slow_tests([[test] for test in slow] + [group], _tests("rest", 200), 4)
    shares = _shares(order, 4)
    assert shares[0][:20] == group
    assert [sum(test in slow for test in share) for share in shares] == [0, 3, 3, 3]


def test_few_processes_start_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of six processes begin with the tests of the broker; those of a file stay together."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "6")
    items = _tests("d", 600, slow=4)
    for file, count in (("a", 5), ("b", 3), ("c", 2)):
        items += _tests(file, count, slow=1, fixture="broker")
    conftest.pytest_collection_modifyitems(items)
    assert len(items) == 610
    begins = [[test.file for test in share[:5]] for share in _shares(items, 6)]
    assert begins == [["b", "b", "b", "c", "c"], ["a"] * 5, *[["d"] * 5] * 4]


def test_tests_with_programs_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of files whose tests start programs begin a share, with those that are slow."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    files = _tests("end_to_end/x", 9, slow=2), _tests("end_to_end/y", 8, slow=1)
    items = [*_tests("d", 100), *files[0], *files[1]]
    conftest.pytest_collection_modifyitems(items)
    first, second = _shares(items, 2)
    assert (first[:9], second[:8]) == files


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
