"""A look at the broker, for `shiftergw check`: whether it lets us in, and who works there."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Timer
from typing import Any

from twisted.internet.threads import deferToThread

from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.work.celery_app import make_app
from shiftergw.work.celery_link import Listener
from shiftergw.work.crew import TELL_SECONDS, Machine

LISTEN_SECONDS = TELL_SECONDS * 1.5
"""Every machine has told something by then."""


async def look_at(reactor: Any, broker_url: str) -> Sequence[WorkerMachine]:
    """Return the machines that tell something within a moment; raise `Unavailable`."""
    told, changes = await deferToThread(_listen, broker_url)
    if None not in changes:
        raise Unavailable("The broker cannot be used.", detail=changes[0] or "" if changes else "")
    machines = [Machine.parse(one, reactor.seconds()) for one in told]
    seen = {one.name: one.seen() for one in machines if one is not None}
    return [seen[name] for name in sorted(seen)]


def _listen(broker_url: str) -> tuple[list[Any], list[str | None]]:
    told: list[Any] = []
    changes: list[str | None] = []
    listener = Listener(make_app(broker_url), told.append, changes.append)
    end = Timer(LISTEN_SECONDS, listener.stop)
    end.start()
    try:
        listener.run()
    finally:
        end.cancel()
    return told, changes
