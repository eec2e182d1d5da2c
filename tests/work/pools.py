"""Pools whose workers are those of `tests.work.workers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shiftergw.work.pool import WorkerPool

WORKERS = Path(__file__).with_name("workers.py")
StartPool = Callable[..., WorkerPool]


def pid_of(trace: Path) -> int:
    """Return the process id of the worker that left a trace."""
    return int(trace.read_text(encoding="utf-8"))
