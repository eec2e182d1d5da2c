"""A worker machine: Celery with our one task, whose jobs run in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Sequence
from types import FrameType
from typing import Any

from celery import Celery
from celery.signals import celeryd_after_setup

from shiftergw.errors import printable
from shiftergw.work.celery.app import TASK, is_key, make_app
from shiftergw.work.celery.slot_gate import SlotGate, SlotGateStep
from shiftergw.work.subprocess_job import StartLimit, SubprocessJob


def make_worker(
    broker_url: str, slots: int | None, argv: Sequence[str], systems: Collection[str] | None = None
) -> Celery:
    """Return Celery for a machine with so many slots that runs `argv` for each job.

    A machine that is to serve another system than one of these (None: any) does not start.
    """
    app = make_app(broker_url, slots)
    app.shiftergw_slot_gate = SlotGate()
    app.steps["consumer"].add(SlotGateStep)

    def look(instance: Any, **_: Any) -> None:
        """Look at the queues that the command line names."""
        named = instance.app.amqp.queues.consume_from
        strange = sorted(name for name in named if systems is not None and name not in systems)
        if strange:
            sys.exit(
                "shiftergw worker cannot start: no Platforms of the configuration:"
                f" {printable(', '.join(strange))}; -Q names the systems that it serves:"
                f" {printable(', '.join(systems or ()))}"
            )

    celeryd_after_setup.connect(look, weak=False)

    start = StartLimit()

    def convert(key: str, soft: float | None = None, hard: float | None = None) -> None:
        """Do the work of a record in a process of its own, within the limits of this machine.

        Celery forgets its own limits for a job as soon as the connection is lost.
        """
        if not is_key(key):
            return
        before = signal.signal(signal.SIGTERM, _terminated)
        told = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Celery's word at the soft limit
        try:
            SubprocessJob(argv, soft, hard, start).run(key)
        except _Terminated:
            # Celery knows why, and replaces this process.
            os._exit(128 + signal.SIGTERM)
        finally:
            signal.signal(signal.SIGUSR1, told)
            signal.signal(signal.SIGTERM, before)

    app.task(
        convert,
        name=TASK,
        Strategy="shiftergw.work.celery.slot_gate:strategy",
        ignore_result=True,
        send_events=False,
    )
    return app


class _Terminated(BaseException):
    """The job was revoked."""


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _Terminated
