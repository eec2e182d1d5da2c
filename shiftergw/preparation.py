"""What must be there before anything else starts: directories, the key, a fit machine."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.files import file_system_of, private_directory
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.squash import mksquashfs

_log = Logger()


class Preparation(Service):
    """Makes the private directories and the key, and refuses a machine that cannot do the work."""

    def __init__(self, config: Config, threads: Threads, reactor: Any) -> None:
        """Prepare for `config`."""
        self._config = config
        self._threads = threads
        self._reactor = reactor
        self._seal: Seal | None = None

    def startService(self) -> Deferred[None]:
        """Fire when everything is there; fail with `ConfigurationError`."""
        super().startService()
        return Deferred.fromCoroutine(self._prepare())

    async def _prepare(self) -> None:
        config = self._config
        config.check_kept()
        version = await mksquashfs.version(config.mksquashfs, self._reactor, self._reactor)
        warning = mksquashfs.check_version(version)
        if warning:
            _log.warn("{warning}", warning=warning)
        self._seal = await self._threads.run(_prepare_disk, config)

    def seal(self) -> Seal:
        """Return what seals logins."""
        assert self._seal is not None, "the service has not started"
        return self._seal


def _prepare_disk(config: Config) -> Seal:
    config.check_state_file_system(file_system_of(config.state_directory))
    _check_shared(config)
    for directory in (config.state_directory, config.cache_directory, config.expand_directory):
        private_directory(directory)
    return Seal.from_file(config.secret_key_file)


def _check_shared(config: Config) -> None:
    """Refuse one image directory under two names: leases, readers and blocks go by the name."""
    names: dict[tuple[int, int], str] = {}
    for system in config.systems.values():
        if system.access_type != "local" or not system.image_dir.exists():
            continue
        found = system.image_dir.stat()
        name = names.setdefault((found.st_dev, found.st_ino), system.directory_name)
        if name != system.directory_name:
            raise ConfigurationError(
                f"Platforms.{system.name}.local.imageDir: {system.directory_name} and {name} are"
                " the same directory.",
                remedy="Write it the same way for all systems that share it.",
            )
