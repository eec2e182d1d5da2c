"""Inspect the broker for `shiftergw check`: whether it serves, and which machines there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Timer
from typing import TYPE_CHECKING, Any

from celery import Celery
from twisted.internet.threads import deferToThread

from shiftergw.errors import Unavailable
from shiftergw.model.records import WorkerMachine
from shiftergw.work.celery.app import connect_once, make_app
from shiftergw.work.celery.broker_connections import StatusListener
from shiftergw.work.celery.broker_errors import translate_error
from shiftergw.work.celery.worker_registry import STATUS_SECONDS, MachineStatus, WorkerRegistry

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

LISTEN_SECONDS = STATUS_SECONDS * 1.5
"""Every machine has published its status within this time."""


async def inspect_broker(
    reactor: Reactor, broker_url: str, systems: Sequence[str]
) -> tuple[Sequence[WorkerMachine], Mapping[str, Unavailable]]:
    """Return the machines that publish a status, and the errors of systems' queues, by system.

    Raises `Unavailable` with the reason if the broker does not serve.
    """
    documents, changes, queue_errors = await deferToThread(_inspect, broker_url, systems)
    if not changes or changes[-1] is not None:
        raise (changes and changes[-1]) or Unavailable("The broker does not answer.")
    registry = WorkerRegistry()
    for document in documents:
        status = MachineStatus.parse(document, reactor.seconds())
        if status is not None:
            registry.record(status)
    machines = [status.to_machine() for status in registry.machines(reactor.seconds())]
    return machines, queue_errors


def _inspect(
    broker_url: str, systems: Sequence[str]
) -> tuple[list[Any], list[Unavailable | None], dict[str, Unavailable]]:
    """Listen for `LISTEN_SECONDS`, or until the broker fails; then try the systems' queues.

    Returns the statuses that arrived, the changes of the listener, and the errors of the queues.
    """
    documents: list[Any] = []
    changes: list[Unavailable | None] = []
    app = make_app(broker_url)

    def on_change(trouble: Unavailable | None) -> None:
        changes.append(trouble)
        if trouble is not None:
            listener.stop()

    listener = StatusListener(app, documents.append, on_change)
    timer = Timer(LISTEN_SECONDS, listener.stop)
    timer.start()
    try:
        listener.run()
    finally:
        timer.cancel()
    is_serving = bool(changes) and changes[-1] is None
    return documents, changes, _declare_queues(app, systems) if is_serving else {}


def _declare_queues(app: Celery, systems: Sequence[str]) -> dict[str, Unavailable]:
    """Declare the queue of each system, as an offer does; return the errors by system."""
    errors = {}
    for system in systems:
        connection = app.connection_for_write()
        try:
            connect_once(connection)
            app.amqp.queues[system](connection.default_channel).declare()
        except Exception as error:  # noqa: BLE001 - each error is reported
            errors[system] = translate_error(error)
        finally:
            with suppress(Exception):
                connection.collect()
    return errors
