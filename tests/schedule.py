"""Group the tests that run in the same process, and order the groups."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

COSTLY_FIXTURES = {"broker": 2}
"""Fixtures whose set-up takes seconds of processor time, and the number of processes with them."""

ROOM_SECONDS = {
    "end_to_end": 5.0,
    "work": 1.5,
    "delivery": 0.7,
    "sftp": 0.6,
    "cli": 0.35,
    "ssh": 0.3,
}
"""The average duration of a test in rooms whose tests start programs.

Tests of a file often share a gateway, a registry or a machine.
"""

OTHER_SECONDS = 0.1
COSTLY_SECONDS = 7.0
SLOW_SECONDS = 12.0

SMALL_TESTS = 50
"""The largest number of tests in a group of those that start no programs."""

Group = list[pytest.Item]


def form_groups(items: Sequence[pytest.Item]) -> list[Group]:
    """Return groups of tests, the longest first, so that the run does not end with a wait for one.

    The tests of a group run in one process. Tests that share a costly fixture form few groups,
    since each process sets it up. So do the tests of a file that start programs.
    """
    groups: list[Group] = []
    for name, count in COSTLY_FIXTURES.items():
        users = [item for item in items if costly_fixture(item) == name]
        groups += merge(group_by_file(users), count)
    independent = [item for item in items if costly_fixture(item) is None]
    groups += group_by_file(item for item in independent if room_of(item) in ROOM_SECONDS)
    independent = [item for item in independent if room_of(item) not in ROOM_SECONDS]
    groups += [[item] for item in independent if is_slow(item)]
    small = [item for item in independent if not is_slow(item)]
    groups.sort(key=seconds_of, reverse=True)
    return groups + form_small_groups(small)


def form_small_groups(items: Sequence[pytest.Item]) -> list[Group]:
    """Return groups that split no file without need, since its tests may share fixtures."""
    groups: list[Group] = [[]]
    for tests in group_by_file(items):
        for start in range(0, len(tests), SMALL_TESTS):
            part = tests[start : start + SMALL_TESTS]
            if len(groups[-1]) + len(part) > SMALL_TESTS:
                groups.append([])
            groups[-1] += part
    return [group for group in groups if group]


def merge(groups: Iterable[Group], count: int) -> list[Group]:
    """Return at most `count` groups of about the same duration, made of whole groups."""
    bundles: list[Group] = [[] for _ in range(count)]
    for group in sorted(groups, key=seconds_of, reverse=True):
        min(bundles, key=seconds_of).extend(group)
    return [group for group in bundles if group]


def group_by_file(items: Iterable[pytest.Item]) -> list[Group]:
    """Return a group for each file."""
    return [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]


def seconds_of(group: Iterable[pytest.Item]) -> float:
    """Return about how long a group of tests takes."""
    return sum(map(_seconds, group))


def _seconds(item: pytest.Item) -> float:
    if is_slow(item):
        return SLOW_SECONDS
    if costly_fixture(item) is not None:
        return COSTLY_SECONDS
    return ROOM_SECONDS.get(room_of(item), OTHER_SECONDS)


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test is marked as slow."""
    return item.get_closest_marker("slow") is not None


def costly_fixture(item: pytest.Item) -> str | None:
    """Return the first of `COSTLY_FIXTURES` that a test uses, directly or not."""
    names = getattr(item, "fixturenames", ())
    return next((name for name in COSTLY_FIXTURES if name in names), None)


def room_of(item: pytest.Item) -> str:
    """Return the directory below `tests/` in which a test is."""
    return _room_of_file(item.path)


@functools.cache
def _room_of_file(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).parts[0]
