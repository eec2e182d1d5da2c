"""The work of kind expire: remove the files of an image unless another record needs them."""

from __future__ import annotations

from collections.abc import Mapping

from shiftergw.errors import DeliveryFailed
from shiftergw.job.attempt import Attempt
from shiftergw.job.targets import Target
from shiftergw.model.records import Expired
from shiftergw.ports import ImageStore


class Removal:
    """Removes the files of records that are EXPIRING."""

    def __init__(self, store: ImageStore, targets: Mapping[str, Target]) -> None:
        """Work on the image directories of `targets` (system name → target)."""
        self._store = store
        self._targets = targets

    async def run(self, attempt: Attempt) -> Expired:
        """Remove the files while holding their lease; deliveries of the same image wait for it.

        The files stay if another READY record needs them: that of another image type, or of a
        system that shares the directory. If the image was pulled again meanwhile, its record is no
        longer EXPIRING and `Attempt.confirm` raises `Superseded`.
        """
        record = attempt.record
        target = self._targets[record.system]
        if record.id is not None:
            await target.directory.reach()
            await attempt.lease(target.name, record.id)
            if not await self._store.find_id(target.systems, record.id):
                await self._check_mounted(target)
                await attempt.confirm()
                await target.remove(record.id)
        return Expired()

    async def _check_mounted(self, target: Target) -> None:
        """Raise `DeliveryFailed` if the directory is empty although it should contain images.

        Its file system is probably not mounted. Once it is, the files would be back, and no record
        would be left to remove them.
        """
        if await target.directory.list():
            return
        for system in target.systems:
            if await self._store.list(system, limit=1):
                raise DeliveryFailed(
                    "The system's image directory is empty.",
                    remedy="Tell the site's support: is its file system mounted?",
                )
