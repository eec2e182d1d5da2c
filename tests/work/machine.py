"""A worker machine for tests, which runs the workers of `tests.work.workers`.

Start it by `celery -A tests.work.machine worker`. The environment variable BROKER has the URL of
the broker, TRACES the directory for the traces of jobs, and SYSTEMS (if set) the name of a system:
the configuration then has this system and another, whose name ends in `-b`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shiftergw.work.celery.worker import make_worker

WORKERS = Path(__file__).with_name("workers.py")

if "BROKER" in os.environ:
    kind = os.environ.get("KIND", "group-polite")
    argv = [sys.executable, str(WORKERS), kind, os.environ["TRACES"]]
    name = os.environ.get("SYSTEMS")
    systems = None if name is None else [name, f"{name}-b"]
    app = make_worker(os.environ["BROKER"], 1, argv, systems)
