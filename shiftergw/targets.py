"""Where the images of a system go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shiftergw.access import of
from shiftergw.image import Platform, SquashOptions
from shiftergw.model import ImageRecord
from shiftergw.oci.meta import MetaFile, write_meta
from shiftergw.ports import ImageDirectory


@dataclass(frozen=True, slots=True)
class Target:
    """Where a system's images go, and how they are made.

    `systems` are all systems that share the directory, this one included; `name` is the same for
    all of them.
    """

    name: str
    directory: ImageDirectory
    platform: Platform
    options: SquashOptions
    systems: Collection[str]

    async def holds(self, record: ImageRecord) -> bool:
        """Say whether the files of a READY record lie in the image directory as recorded."""
        image = await self.directory.exists(f"{record.id}.squashfs")
        meta = await self.directory.exists(f"{record.id}.meta")
        return (
            image is not None
            and meta is not None
            and (record.size is None or record.size == image.size)
        )

    async def remove(self, image_id: str) -> None:
        """Remove an image's files, the metadata first: without it no runtime starts the image."""
        await self.directory.remove(f"{image_id}.meta")
        await self.directory.remove(f"{image_id}.squashfs")


def meta_of(record: ImageRecord) -> MetaFile:
    """Return the metadata of a record; raise `AclTooLong`."""
    access = of(record)
    return write_meta(
        env=record.env or (),
        entry=record.entry or (),
        cmd=record.cmd or (),
        workdir=record.workdir or "",
        private=access.restricted,
        user_acl=access.user_acl,
        group_acl=access.group_acl,
    )
