"""Pools of the workers of `tests.work.workers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shiftergw.work.pool import WorkerPool

WORKERS = Path(__file__).with_name("workers.py")
Make = Callable[..., WorkerPool]


def pid_of(trace: Path) -> int:
    """Return the process that left a trace."""
    return int(trace.read_text(encoding="utf-8"))
