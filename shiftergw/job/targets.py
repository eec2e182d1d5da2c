"""The image directory of a system: what lies in it, and the metadata that is written into it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from shiftergw.errors import NoSpace, amount
from shiftergw.model.build_options import SquashOptions
from shiftergw.model.images import ImageConfig, Platform, ResolvedImage
from shiftergw.model.records import ImageRecord
from shiftergw.oci.meta import Meta, MetaFile, MetaRejected, read_meta, write_meta
from shiftergw.ports import FileAccess, ImageDirectory, InstalledFile, Notify
from shiftergw.rules.access import Access
from shiftergw.squashfs import superblock
from shiftergw.squashfs.superblock import Superblock

FILE_FACTS = ("size", "sha256", "modified", "options", "report", "ostcount")
"""Members of a record that describe the delivered file."""

_SETTINGS = ("env", "entry", "cmd", "workdir")
"""Members of a record that a runtime reads from the metadata, besides the readers."""

CLOSED = 0o600
"""The mode of a file that only root and the gateway's account read."""

META_LIMIT = 1 << 20
"""Bytes of a metadata file that are read at most."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Target:
    """The image directory of a system, and how the images for it are made.

    `systems` are all systems that share the directory, this one included; `name` is the same for
    all of them. New files are striped over `ost_count` OSTs (Lustre; 0: the directory's default,
    -1: all). `names_readers` is false where the runtime is too old to read access lists from the
    metadata. `file_mode` is the mode of public image files, whose users read them themselves; None
    leaves files to root and the gateway.
    """

    name: str
    directory: ImageDirectory
    platform: Platform
    options: SquashOptions
    systems: Collection[str]
    ost_count: int = 0
    names_readers: bool = True
    file_mode: int | None = None

    def meta_of(self, record: ImageRecord) -> MetaFile:
        """Return the metadata file of a record for this system; raise `AclTooLong`."""
        return meta_of(record, names_readers=self.names_readers)

    async def set_access(self, image_id: str, readers: Access) -> bool:
        """Let the readers of an image open its file, if users read images themselves.

        A system without access lists keeps no private image: raises `DeliveryFailed`. Returns False
        if the file must be delivered anew; see the port.
        """
        if self.file_mode is None:
            return True
        access = FileAccess(self.file_mode)
        if readers.is_restricted and self.file_mode != CLOSED:
            access = FileAccess(CLOSED, readers.user_acl, readers.group_acl)
        return await self.directory.set_access(f"{image_id}.squashfs", access)

    async def check_space(self, image: ResolvedImage) -> None:
        """Raise `NoSpace` if an image surely does not fit into the directory.

        As in `ImageBuilder.check_space`, an image needs at least half of its layers' size.
        """
        free = await self.directory.free_space()
        if free < image.download_size // 2:
            raise NoSpace(
                f"The image needs about {amount(image.download_size)} and the system's image"
                f" directory has {amount(free)} left."
            )

    async def verify_file(
        self, record: ImageRecord, records: Sequence[ImageRecord], notify: Notify
    ) -> ImageRecord | None:
        """Return a READY record with the current facts of its image file.

        Returns None if the file is absent or differs from what was delivered. `records` are all
        READY records of the same file: each system that shares the directory has its own, and only
        that of the last delivery has the file's current size and time. If they match, the file is
        not read. If only the time differs (the file was touched, or restored from a backup), the
        digest decides; computing it may take minutes, and `notify` gets a line for the user. The
        original gateway recorded nothing of a file: it must exist, and be as long as its superblock
        says, because a full disk leaves shorter ones.
        """
        name = f"{record.id}.squashfs"
        file = await self.directory.exists(name)
        if file is None or await self._is_cut_short(file, record):
            return None
        if record.sha256 is None:
            return record if record.size in {None, file.size} else None
        same_size = [
            candidate
            for candidate in (record, *records)
            if candidate.sha256 and candidate.size == file.size
        ]
        for candidate in same_size:
            if candidate.modified == file.modified is not None:
                return _with_file_facts(record, candidate, file)
        if same_size:
            notify("Checking the image that is there")
            sha256 = await self.directory.digest(name)
            for candidate in same_size:
                if candidate.sha256 == sha256:
                    return _with_file_facts(record, candidate, file)
        _log.warn(
            "{name} in {directory} is not the file that was delivered there",
            name=name,
            directory=self.name,
        )
        return None

    async def _is_cut_short(self, file: InstalledFile, record: ImageRecord) -> bool:
        """Return whether a file is empty or, if its record does not say its size, too short.

        The superblock says the length of the file system, which the file may exceed by padding.
        """
        is_short = file.size == 0
        if not is_short and record.size is None:
            head = await self.directory.head(file.name, superblock.SIZE)
            if head.startswith(superblock.MAGIC):
                is_short = (
                    len(head) < superblock.SIZE or Superblock.unpack(head).bytes_used > file.size
                )
        if is_short:
            text = "{name} in {directory} is cut short or empty"
            _log.warn(text, name=file.name, directory=self.name)
        return is_short

    async def has_metadata_of(self, record: ImageRecord) -> bool:
        """Return whether the metadata file of a READY record exists and agrees with the record.

        Metadata that the original gateway wrote only has to exist.
        """
        name = f"{record.id}.meta"
        file = await self.directory.exists(name)
        if file is None or record.sha256 is None:
            return file is not None
        content = self.meta_of(record).content
        if file.size != len(content):
            return False
        return await self.directory.digest(name) == hashlib.sha256(content).hexdigest()

    async def add_missing_settings(
        self, record: ImageRecord, config: ImageConfig | None
    ) -> ImageRecord | None:
        """Return a record with the settings of its image that the original did not store.

        The original's database has no CMD, and lacks other members in places. They come from the
        metadata file, or else from `config`, the image's configuration at the registry. Returns
        None if there is neither.
        """
        missing = [name for name in _SETTINGS if getattr(record, name) is None]
        if record.sha256 is not None or not missing:
            return record
        meta = _parse_meta(await self.directory.read(f"{record.id}.meta", META_LIMIT))
        if meta is None and config is not None:
            meta = Meta(
                entry=config.entrypoint, cmd=config.cmd, workdir=config.workdir, env=config.env
            )
        if meta is None:
            return None
        settings: dict[str, Any] = {name: getattr(meta, name) for name in missing}
        return replace(record, **settings)

    async def remove(self, image_id: str) -> None:
        """Remove an image's files, the metadata first: without it no runtime starts the image."""
        await self.directory.remove(f"{image_id}.meta")
        await self.directory.remove(f"{image_id}.squashfs")


def meta_of(record: ImageRecord, *, names_readers: bool = True) -> MetaFile:
    """Return the metadata file of a record; raise `AclTooLong`."""
    access = Access.from_record(record)
    return write_meta(
        env=record.env or (),
        entry=record.entry or (),
        cmd=record.cmd or (),
        workdir=record.workdir or "",
        private=access.is_restricted and names_readers,
        user_acl=access.user_acl,
        group_acl=access.group_acl,
    )


def _parse_meta(content: bytes | None) -> Meta | None:
    """Return the parsed metadata file, or None if it is absent or unusable."""
    if content is None:
        return None
    try:
        return read_meta(content)
    except MetaRejected:
        return None


def _with_file_facts(
    record: ImageRecord, delivery: ImageRecord, file: InstalledFile
) -> ImageRecord:
    """Return `record` with what `delivery` says of the file, and with the file's current time."""
    facts = {name: getattr(delivery, name) for name in FILE_FACTS}
    return replace(record, **{**facts, "modified": file.modified})
