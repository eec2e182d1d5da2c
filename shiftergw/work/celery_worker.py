"""A worker machine: Celery with our one task, whose jobs run in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from shiftergw.work.celery_app import TASK, is_key, make_app
from shiftergw.work.celery_gate import Gate, GateStep
from shiftergw.work.errand import Errand


def make_worker(broker_url: str, slots: int | None, argv: Sequence[str]) -> Celery:
    """Return Celery for a machine with so many slots that runs `argv` for each job."""
    app = make_app(broker_url, slots)
    app.shiftergw_gate = Gate()
    app.steps["consumer"].add(GateStep)

    def convert(key: str) -> None:
        """Do the work of a record in a process of its own."""
        if not is_key(key):
            return
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            Errand(argv, SoftTimeLimitExceeded).run(key)
        except _Terminated:
            # Celery knows why, and replaces this process.
            os._exit(128 + signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)

    app.task(
        convert,
        name=TASK,
        Strategy="shiftergw.work.celery_gate:strategy",
        ignore_result=True,
        send_events=False,
    )
    return app


class _Terminated(BaseException):
    """The job was revoked."""


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _Terminated
