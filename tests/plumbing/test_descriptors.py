"""The limit on open descriptors, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.patience import patient

PROGRAM = "from shiftergw.plumbing.descriptors import raise_limit; print(raise_limit())"


@pytest.mark.parametrize(
    ("limits", "limit"), [("ulimit -n 300; ulimit -Sn 100", 300), ("ulimit -n 200", 200)]
)
def test_the_soft_limit_becomes_the_hard_one(limits: str, limit: int) -> None:
    """The soft limit is raised as far as the system allows."""
    process = subprocess.run(
        ["sh", "-c", f'{limits}; exec "$@"', "sh", sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=patient(60),
    )
    assert int(process.stdout) == limit
