"""A worker machine: Celery with one task, whose jobs run in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from types import FrameType
from typing import Any

from celery import Celery
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_after_setup,
    worker_shutting_down,
)

from shiftergw.errors import printable
from shiftergw.plumbing import log_lines
from shiftergw.plumbing.service_manager import ServiceManager
from shiftergw.work.celery.app import TASK, is_key, make_app
from shiftergw.work.celery.slot_gate import SlotGate, SlotGateStep
from shiftergw.work.celery.supervision import MachineSupervision, SupervisionStep
from shiftergw.work.subprocess_job import JobLimits, StartLimit, SubprocessJob


def make_worker(
    broker_url: str, slots: int | None, argv: Sequence[str], systems: Collection[str] | None = None
) -> Celery:
    """Return Celery for a machine with this many slots, which runs `argv` for each job.

    The machine does not start if its command line names a system that is not one of `systems`; if
    that is None, any name will do.
    """
    # This signal switches debug messages in worker processes; it would end Celery with all jobs.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    app = make_app(broker_url, slots)
    app.shiftergw_slot_gate = SlotGate()
    supervision = MachineSupervision(ServiceManager.from_environment(os.environ))
    app.shiftergw_supervision = supervision
    worker_shutting_down.connect(supervision.report_stop, weak=False)
    app.steps["consumer"].update((SlotGateStep, SupervisionStep))

    def check_systems(instance: Any, **_: Any) -> None:
        """Exit if the command line names a queue that is not the queue of a system."""
        queues = instance.app.amqp.queues.consume_from
        unknown = sorted(name for name in queues if systems is not None and name not in systems)
        if unknown:
            sys.exit(
                "shiftergw worker cannot start: no Platforms of the configuration:"
                f" {printable(', '.join(unknown))}; -Q names the systems that it serves:"
                f" {printable(', '.join(systems or ()))}"
            )

    celeryd_after_setup.connect(check_systems, weak=False)

    start_limit = StartLimit()

    def convert(key: str, soft: float | None = None, hard: float | None = None) -> None:
        """Run the job on a record in a process of its own, within time limits in seconds.

        The limits are enforced here because Celery forgets its own limits of a job when the
        connection to the broker breaks.
        """
        if not is_key(key):
            return
        old_sigterm = signal.signal(signal.SIGTERM, _raise_terminated)
        # Celery sends SIGUSR1 at the soft limit; the worker process gets its own notice from us.
        old_sigusr1 = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            SubprocessJob(argv, JobLimits(soft, hard), start_limit).run(key)
        except _Termination:
            # Celery has terminated this process itself, and replaces it.
            os._exit(128 + signal.SIGTERM)
        finally:
            signal.signal(signal.SIGUSR1, old_sigusr1)
            signal.signal(signal.SIGTERM, old_sigterm)

    app.task(
        convert,
        name=TASK,
        Strategy="shiftergw.work.celery.slot_gate:strategy",
        ignore_result=True,
        send_events=False,
    )
    return app


class JsonFormatter(logging.Formatter):
    """Formats records of Python's `logging` as the other processes do theirs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        message = record.getMessage()
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            message = " | ".join([message, *(line.strip() for line in lines)])
        level = {"WARNING": "warn"}.get(record.levelname, record.levelname.lower())
        fields = {"process": "machine", "pid": record.process, "machine": socket.gethostname()}
        return log_lines.write_line(record.created, level, record.name, message, fields)


def log_json() -> None:
    """Have Celery's own loggers write JSON, once it has set them up."""

    def set_formatter(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.setFormatter(JsonFormatter())

    for signal_of_log in (after_setup_logger, after_setup_task_logger):
        signal_of_log.connect(set_formatter, weak=False)


class _Termination(BaseException):
    """The job was cancelled: Celery has sent SIGTERM to the process that runs it."""


def _raise_terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _Termination
