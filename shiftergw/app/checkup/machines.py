"""What `shiftergw check` says about the broker and the worker machines, if there is a broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shiftergw import __version__
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.config import Config
from shiftergw.config.checks import lock_trouble
from shiftergw.errors import Unavailable
from shiftergw.model import WorkerMachine
from shiftergw.plumbing.files import mount_of
from shiftergw.plumbing.timing import within

LOOK_SECONDS = 15.0


async def broker(config: Config, reactor: Any) -> list[Finding]:
    """Return what there is to say; nothing where the gateway has its workers itself."""
    if config.broker_url is None:
        return []
    from shiftergw.work.celery.inspection import inspect_broker  # noqa: PLC0415 - an extra

    try:
        found, queues = await within(
            LOOK_SECONDS,
            reactor,
            inspect_broker(reactor, config.broker_url, list(config.systems)),
            lambda: Unavailable(
                "The broker does not answer.", remedy="Look whether it hangs, and at the network."
            ),
        )
    except Unavailable as error:
        return [failure("BrokerURL", error), *_locks(config)]
    text = f"the broker answers; worker machines: {len(found)}"
    return [
        Finding("BrokerURL", Level.OK, text),
        *(failure(f"queue of {system}", error) for system, error in queues.items()),
        *_crew(config, found),
        *_locks(config),
    ]


def _crew(config: Config, machines: Sequence[WorkerMachine]) -> Iterator[Finding]:
    """Yield a warning for systems without a machine, and for machines of another version."""
    served = {system for one in machines for system in one.systems}
    for system in config.systems:
        if system not in served:
            yield Finding(
                f"workers of {system}",
                Level.WARNING,
                "no worker machine serves it: its pulls wait",
                f"Start one: celery -A shiftergw.work.celery worker -Q {system}",
            )
    for one in machines:
        if one.version != __version__:
            yield Finding(
                f"worker machine {one.name}",
                Level.WARNING,
                f"it runs version {one.version}, and this is {__version__}",
                "Install the same version on all machines.",
            )


def _locks(config: Config) -> Iterator[Finding]:
    """Yield a warning for directories that seem to be shared, where locks do not hold."""
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
