"""Answer the requests that only admins of a system may make.

They expire what is due, take images down, and see the look-ups and the worker machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shiftergw.config import Config
from shiftergw.errors import NotAllowed
from shiftergw.model.records import WorkerMachine
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore, JobQueue
from shiftergw.service.housekeeping import expire_due
from shiftergw.service.named_images import find_any_id, find_blocked_id

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class AdminRequests:
    """Answers the requests of admins; each raises `NotAllowed` for another session."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        wake: Callable[[], None],
        clock: IReactorTime,
        queue: JobQueue,
    ) -> None:
        """Call `wake` when there is new work for the `queue`."""
        self._config = config
        self._store = store
        self._wake = wake
        self._clock = clock
        self._queue = queue

    async def autoexpire(self, session: Session) -> Sequence[str]:
        """Expire the images of the session's system that are due; return their ids."""
        _check_admin(session)
        records = await expire_due(self._store, self._clock.seconds(), {session.system})
        if records:
            self._wake()
        return [record.id or record.unusable_id for record in records]

    async def take_down(self, session: Session, prefix: str) -> tuple[str, Sequence[str]]:
        """Remove an image with all its tags, and refuse to pull it from now on.

        `prefix` is its id, or the first digits of the id of an image that is READY. This concerns
        all systems that share the image directory: the files are the same. Returns the id, and the
        removed tags as `type:tag`.
        """
        _check_admin(session)
        directory, systems = self._config.directory_of(session.system)
        image_id = await find_any_id(self._store, systems, prefix)
        await self._store.block(directory, image_id, session.uid, self._clock.seconds())
        names: list[str] = []
        for record in await self._store.find_id(systems, image_id):
            if await self._store.expire(record.key) is not None:
                names += [f"{record.itype}:{tag}" for tag in record.tags]
        self._wake()
        return image_id, names

    async def allow(self, session: Session, prefix: str) -> str:
        """Allow an image again that `take_down` blocked, and return its id; raise `NotFound`.

        `prefix` is the id, or its first digits.
        """
        _check_admin(session)
        directory, _ = self._config.directory_of(session.system)
        image_id = await find_blocked_id(self._store, directory, prefix)
        await self._store.allow(directory, image_id)
        return image_id

    async def metrics(self, session: Session, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return the last `limit` look-ups of the session's system, oldest first."""
        _check_admin(session)
        if not self._config.metrics or limit <= 0:
            return []
        return await self._store.lookups(session.system, limit)

    async def workers(self, session: Session) -> Sequence[tuple[WorkerMachine, Sequence[str]]]:
        """Return the worker machines of the session's system, with the images each works on.

        The names of images of other systems are hidden.
        """
        _check_admin(session)
        machines = [
            machine for machine in self._queue.machines() if session.system in machine.systems
        ]
        return [
            (machine, [await self._name_of_job(key, session.system) for key in machine.jobs])
            for machine in machines
        ]

    async def _name_of_job(self, key: str, system: str) -> str:
        record = await self._store.get(key)
        if record is None or record.system != system:
            return "(of another system)"
        return record.pulltag or ""


def _check_admin(session: Session) -> None:
    if not session.admin:
        raise NotAllowed(f"Only admins of {session.system} may do this.")
