"""A worker machine for tests, whose jobs are those of `tests.work.workers`.

`celery -A tests.work.machine worker`, with the broker in BROKER and the traces of jobs in TRACES.
There is the system in SYSTEMS, and one more with `-b` behind it.
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
    begin = os.environ.get("SYSTEMS")
    known = None if begin is None else [begin, f"{begin}-b"]
    app = make_worker(os.environ["BROKER"], 1, argv, known)
