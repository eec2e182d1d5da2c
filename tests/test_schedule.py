"""Tests of the order in which the tests run."""

from __future__ import annotations

import gc
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


@pytest.mark.parametrize(
    ("slow_tests", "other_tests", "processes"),
    [(3, 20, 1), (7, 93, 6), (12, 40, 4), (0, 9, 2), (8, 0, 4), (5, 1003, 6), (6, 94, 8)],
)
def test_each_process_begins_with_slow_tests(
    slow_tests: int, other_tests: int, processes: int
) -> None:
    """Each share begins with its slow tests, and no share has two more of them than another."""
    slow: list[Any] = [f"slow {number}" for number in range(slow_tests)]
    rest: list[Any] = [f"test {number}" for number in range(other_tests)]
    order: list[Any] = [*deal_slow_tests(slow, rest, processes)]
    assert sorted(order) == sorted(slow + rest)
    counts = []
    for share in _shares(order, processes):
        kinds = [test in slow for test in share]
        assert kinds == sorted(kinds, reverse=True), share
        counts.append(sum(kinds))
    assert max(counts) - min(counts) <= 1
    assert [test for test in order if test in rest] == rest


def test_more_slow_tests_than_a_share_holds() -> None:
    """No test is lost or repeated, even if the slow tests fill all shares."""
    slow: list[Any] = [f"slow {number}" for number in range(10)]
    rest: list[Any] = ["test"]
    order: list[Any] = [*deal_slow_tests(slow, rest, 4)]
    assert sorted(order) == sorted(slow + rest)


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
