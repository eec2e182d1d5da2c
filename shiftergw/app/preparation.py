"""Prepare the machine before anything else starts: directories, the secret key, mksquashfs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.build import mksquashfs
from shiftergw.config import Config, System
from shiftergw.errors import ConfigurationError, TimedOut
from shiftergw.plumbing.files import file_system_of, private_directory
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

PLACE_SECONDS = 10.0
"""Seconds within which a system's file system must answer at the start."""

_log = Logger()


class Preparation(Service):
    """Creates the private directories and the key, and checks that this machine can do the work."""

    def __init__(self, config: Config, threads: Threads, reactor: Reactor) -> None:
        """Prepare this machine for `config`; call the file system in `threads`."""
        self._config = config
        self._threads = threads
        self._reactor = reactor
        self._seal: Seal | None = None

    def startService(self) -> Deferred[None]:
        """Fire when the machine is prepared; fail with `ConfigurationError` if it cannot be."""
        super().startService()
        return Deferred.fromCoroutine(self._prepare())

    async def _prepare(self) -> None:
        config = self._config
        config.check_supported()
        version = await mksquashfs.version(config.mksquashfs, self._reactor, self._reactor)
        warning = mksquashfs.check_version(version)
        if warning:
            _log.warn("{warning}", warning=warning)
        self._seal = await self._threads.run(_prepare_disk, config)
        await self._check_shared()

    async def _check_shared(self) -> None:
        """Raise `ConfigurationError` for one image directory under two names.

        Leases, access lists and blocks of images refer to the directory by its name.
        """
        local = [system for system in self._config.systems.values() if system.delivery.is_mounted]
        places = await gather_or_cancel(self._place_of(system) for system in local)
        directories = zip(local, places, strict=True)
        check_one_name((system, place) for system, place in directories if place is not None)

    async def _place_of(self, system: System) -> tuple[int, int] | None:
        """Return the identity of a system's image directory; log an error and return None.

        A file system that hangs must not keep the other systems from work.
        """
        identifying = self._threads.begin(identity, system.image_dir)
        try:
            return await within(PLACE_SECONDS, self._reactor, identifying, _too_late)
        except (OSError, TimedOut) as error:
            _log.warn(
                "the image directory of {system}, {path}: {error}",
                system=system.name,
                path=str(system.image_dir),
                error=error,
            )
            return None

    def seal(self) -> Seal:
        """Return the key that encrypts logins; only after the start of this service."""
        assert self._seal is not None, "the service has not started"
        return self._seal


def _prepare_disk(config: Config) -> Seal:
    config.check_state_file_system(file_system_of(config.state_directory))
    for key, directory in (
        ("StateDirectory", config.state_directory),
        ("CacheDirectory", config.cache_directory),
        ("ExpandDirectory", config.expand_directory),
    ):
        try:
            private_directory(directory)
        except OSError as error:
            raise ConfigurationError(
                f"{key}: {directory} cannot be made, or closed to others: {error.strerror}.",
                remedy="Make it a directory that belongs to the gateway's user, or name another"
                " one.",
            ) from error
    return Seal.from_file(config.secret_key_file)


def check_one_name(places: Iterable[tuple[System, tuple[int, int]]]) -> None:
    """Raise `ConfigurationError` if two systems name the same image directory differently."""
    names: dict[tuple[int, int], str] = {}
    for system, place in places:
        name = names.setdefault(place, system.directory_name)
        if name != system.directory_name:
            raise ConfigurationError(
                f"Platforms.{system.name}.local.imageDir: {system.directory_name} and {name}"
                " are the same directory.",
                remedy="Write it the same way for all systems that share it.",
            )


def identity(directory: Path) -> tuple[int, int]:
    """Return device and inode of a directory, the same under all its names. Blocks."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _too_late() -> TimedOut:
    return TimedOut(f"It did not answer within {PLACE_SECONDS:.0f} s.")
