"""Check the broker and the worker machines, if there is a broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from shiftergw import __version__
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.config import Config
from shiftergw.config.file_systems import lock_trouble
from shiftergw.errors import Unavailable
from shiftergw.model.records import WorkerMachine
from shiftergw.plumbing.files import mount_of
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

LOOK_SECONDS = 15.0
"""The time limit for the answers of the broker and the machines."""


async def broker(config: Config, reactor: Reactor) -> list[Finding]:
    """Return the findings about the broker; none if the gateway runs its own workers."""
    if config.broker_url is None:
        return []
    from shiftergw.work.celery.inspection import inspect_broker  # noqa: PLC0415 - an extra

    try:
        machines, queues = await within(
            LOOK_SECONDS,
            reactor,
            inspect_broker(reactor, config.broker_url, list(config.systems)),
            lambda: Unavailable(
                "The broker does not answer.", remedy="Look whether it hangs, and at the network."
            ),
        )
    except Unavailable as error:
        return [failure("BrokerURL", error), *_locks(config)]
    text = f"the broker answers; worker machines: {len(machines)}"
    return [
        Finding("BrokerURL", Level.OK, text),
        *(failure(f"queue of {system}", error) for system, error in queues.items()),
        *_machines(config, machines),
        *_locks(config),
    ]


def _machines(config: Config, machines: Sequence[WorkerMachine]) -> Iterator[Finding]:
    """Yield a warning for systems without a machine, and for machines of another version."""
    systems_with_machine = {system for machine in machines for system in machine.systems}
    for system in config.systems:
        if system not in systems_with_machine:
            yield Finding(
                f"workers of {system}",
                Level.WARNING,
                "no worker machine serves it: its pulls wait",
                f"Start one: celery -A shiftergw.work.celery worker -Q {system}",
            )
    for machine in machines:
        if machine.version != __version__:
            yield Finding(
                f"worker machine {machine.name}",
                Level.WARNING,
                f"it runs version {machine.version}, and this is {__version__}",
                "Install the same version on all machines.",
            )


def _locks(config: Config) -> Iterator[Finding]:
    """Yield a warning for directories that seem to be shared without working file locks."""
    for name, path in (
        ("CacheDirectory", config.cache_directory),
        ("ExpandDirectory", config.expand_directory),
    ):
        trouble = lock_trouble(*mount_of(path))
        if trouble is not None:
            yield Finding(
                f"locks in {name}",
                Level.WARNING,
                trouble,
                "Mount it so that locks hold on all machines, or give each machine its own.",
            )
