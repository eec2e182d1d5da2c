"""A look at the broker, for `shiftergw check`: whether it lets us in, and who works there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Timer
from typing import Any

from celery import Celery
from twisted.internet.threads import deferToThread

from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.work.celery.app import make_app, reach
from shiftergw.work.celery.broker_connections import StatusListener
from shiftergw.work.celery.faults import fault
from shiftergw.work.celery.worker_registry import STATUS_SECONDS, MachineStatus, WorkerRegistry

LISTEN_SECONDS = STATUS_SECONDS * 1.5
"""Every machine has told something by then."""


async def inspect_broker(
    reactor: Any, broker_url: str, systems: Sequence[str]
) -> tuple[Sequence[WorkerMachine], Mapping[str, Unavailable]]:
    """Return the machines that tell something within a moment, and which queues cannot be used.

    Raises `Unavailable` with what keeps the broker from serving.
    """
    told, changes, queues = await deferToThread(_look, broker_url, systems)
    if not changes or changes[-1] is not None:
        raise (changes and changes[-1]) or Unavailable("The broker does not answer.")
    crew = WorkerRegistry()
    for one in told:
        machine = MachineStatus.parse(one, reactor.seconds())
        if machine is not None:
            crew.told(machine)
    return [one.seen() for one in crew.machines(reactor.seconds())], queues


def _look(
    broker_url: str, systems: Sequence[str]
) -> tuple[list[Any], list[Unavailable | None], dict[str, Unavailable]]:
    told: list[Any] = []
    changes: list[Unavailable | None] = []
    app = make_app(broker_url)

    def changed(trouble: Unavailable | None) -> None:
        changes.append(trouble)
        if trouble is not None:
            listener.stop()

    listener = StatusListener(app, told.append, changed)
    end = Timer(LISTEN_SECONDS, listener.stop)
    end.start()
    try:
        listener.run()
    finally:
        end.cancel()
    well = bool(changes) and changes[-1] is None
    return told, changes, _queues(app, systems) if well else {}


def _queues(app: Celery, systems: Sequence[str]) -> dict[str, Unavailable]:
    """Declare each system's queue, as whoever offers a job does; return what is wrong with it."""
    wrong = {}
    for system in systems:
        connection = app.connection_for_write()
        try:
            reach(connection)
            app.amqp.queues[system](connection.default_channel).declare()
        except Exception as error:  # noqa: BLE001 - whatever it is, it can be said
            wrong[system] = fault(error)
        finally:
            with suppress(Exception):
                connection.collect()
    return wrong
