"""Where the images of a system go."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from shiftergw.image import ImageConfig, Platform, SquashOptions
from shiftergw.model import ImageRecord
from shiftergw.oci.meta import Meta, MetaFile, Unusable, read_meta, write_meta
from shiftergw.ports import ImageDirectory, InstalledFile, Say
from shiftergw.rules.access import of

FILE_FACTS = ("size", "sha256", "modified", "options", "report", "ostcount")
"""What a record says of the delivered file, as it was made and as it lies there."""

_SETTINGS = ("env", "entry", "cmd", "workdir")
"""What a runtime is told of an image besides its readers."""

META_LIMIT = 1 << 20
"""Bytes of a metadata file that is read."""

_SUPERBLOCK = 96
"""Bytes of the superblock of squashfs."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a system's images go, and how they are made.

    `systems` are all systems that share the directory, this one included; `name` is the same for
    all of them. `ost_count` is over how many OSTs new images are laid out; 0: as it comes, -1: all.
    `names_readers` is false where the runtime is too old to read of them in the metadata.
    """

    name: str
    directory: ImageDirectory
    platform: Platform
    options: SquashOptions
    systems: Collection[str]
    ost_count: int = 0
    names_readers: bool = True

    def meta_of(self, record: ImageRecord) -> MetaFile:
        """Return the metadata of a record as it is written here; raise `AclTooLong`."""
        return meta_of(record, names_readers=self.names_readers)

    async def found(
        self, held: ImageRecord, records: Sequence[ImageRecord], say: Say
    ) -> ImageRecord | None:
        """Return what is known of a READY record's image file as it lies there now.

        None if it is not there as recorded. `records` are all READY ones of the same files: each
        system that shares the directory has its own, and only the one of the last delivery knows
        the file at first sight. That is by its size and its `modified`; a file that differs in the
        latter, touched or restored from a backup, is known by its digest, which may take minutes:
        `say` is told. Of a file of the original gateway nothing is recorded: it only has to exist,
        and to be as long as its superblock says, other than what a full disk has left there.
        """
        name = f"{held.id}.squashfs"
        there = await self.directory.exists(name)
        if there is None or await self._is_cut(there, held):
            return None
        if held.sha256 is None:
            return held if held.size in {None, there.size} else None
        fitting = [one for one in (held, *records) if one.sha256 and one.size == there.size]
        for one in fitting:
            if one.modified == there.modified is not None:
                return _of_file(held, one, there)
        if fitting:
            say("Checking the image that is there")
            sha256 = await self.directory.digest(name)
            for one in fitting:
                if one.sha256 == sha256:
                    return _of_file(held, one, there)
        _log.warn(
            "{name} in {directory} is not the file that was delivered there",
            name=name,
            directory=self.name,
        )
        return None

    async def _is_cut(self, file: InstalledFile, record: ImageRecord) -> bool:
        """Return whether a file is empty or, if its record does not say its size, cut short.

        The superblock (squashfs 4.0) begins with "hsqs"; the length of the file system, which the
        file may exceed by padding, is at offset 40.
        """
        is_cut = file.size == 0
        if not is_cut and record.size is None:
            head = await self.directory.head(file.name, _SUPERBLOCK)
            length = int.from_bytes(head[40:48], "little")
            is_cut = head.startswith(b"hsqs") and max(length, _SUPERBLOCK) > file.size
        if is_cut:
            what = "{name} in {directory} is cut short or empty"
            _log.warn(what, name=file.name, directory=self.name)
        return is_cut

    async def describes(self, held: ImageRecord) -> bool:
        """Say whether the metadata of a READY record lies there, and says what the record says.

        What the original gateway wrote only has to exist.
        """
        name = f"{held.id}.meta"
        there = await self.directory.exists(name)
        if there is None or held.sha256 is None:
            return there is not None
        content = self.meta_of(held).content
        if there.size != len(content):
            return False
        return await self.directory.digest(name) == hashlib.sha256(content).hexdigest()

    async def completed(
        self, record: ImageRecord, config: ImageConfig | None
    ) -> ImageRecord | None:
        """Return a record with the settings of its image that the original did not store.

        Its database has no CMD, and lacks other members in places. They are taken from the metadata
        that lies there, else from `config`, which is what the registry says. Returns None if there
        is neither.
        """
        lacking = [name for name in _SETTINGS if getattr(record, name) is None]
        if record.sha256 is not None or not lacking:
            return record
        meta = _readable_meta(await self.directory.read(f"{record.id}.meta", META_LIMIT))
        if meta is None and config is not None:
            meta = Meta(
                entry=config.entrypoint, cmd=config.cmd, workdir=config.workdir, env=config.env
            )
        if meta is None:
            return None
        settings: dict[str, Any] = {name: getattr(meta, name) for name in lacking}
        return replace(record, **settings)

    async def remove(self, image_id: str) -> None:
        """Remove an image's files, the metadata first: without it no runtime starts the image."""
        await self.directory.remove(f"{image_id}.meta")
        await self.directory.remove(f"{image_id}.squashfs")


def meta_of(record: ImageRecord, *, names_readers: bool = True) -> MetaFile:
    """Return the metadata of a record; raise `AclTooLong`."""
    access = of(record)
    return write_meta(
        env=record.env or (),
        entry=record.entry or (),
        cmd=record.cmd or (),
        workdir=record.workdir or "",
        private=access.restricted and names_readers,
        user_acl=access.user_acl,
        group_acl=access.group_acl,
    )


def _readable_meta(content: bytes | None) -> Meta | None:
    if content is None:
        return None
    try:
        return read_meta(content)
    except Unusable:
        return None


def _of_file(held: ImageRecord, one: ImageRecord, there: InstalledFile) -> ImageRecord:
    """Return a record with what another one says of the file, and the time that it has now."""
    facts = {name: getattr(one, name) for name in FILE_FACTS}
    return replace(held, **{**facts, "modified": there.modified})
