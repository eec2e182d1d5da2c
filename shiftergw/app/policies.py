"""Check at the start that the policies of the systems can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.config.registries_directory import read_registries_directory
from shiftergw.errors import ConfigurationError, PolicyInvalid
from shiftergw.job.policy import read_policy
from shiftergw.signatures.gpg import GpgVerifier

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads

_log = Logger()


class PolicyPreparation(Service):
    """Keeps a process that pulls images from starting if it could not verify their signatures.

    A policy that is invalid does not keep it from starting: it refuses the images of its system,
    and other systems go on.
    """

    def __init__(self, config: Config, threads: Threads, reactor: Reactor) -> None:
        """Read files in `threads`."""
        self._config = config
        self._threads = threads
        self._reactor = reactor

    def startService(self) -> Deferred[None]:
        """Fire when the policies were read; fail with `ConfigurationError` without `gpgv`."""
        super().startService()
        return Deferred.fromCoroutine(self._prepare())

    async def _prepare(self) -> None:
        needs_gpg = False
        for system in self._config.systems.values():
            if system.policy_file is None:
                continue
            try:
                policy = await self._threads.run(read_policy, system.policy_file)
                needs_gpg = needs_gpg or policy.needs_gpg
            except PolicyInvalid as error:
                _log.error(
                    "Platforms.{system}.policy_file: every image is refused: {error}",
                    system=system.name,
                    error=error,
                )
        if needs_gpg:
            await GpgVerifier(self._reactor, self._reactor).check_program()
            try:
                directory = self._config.registries_directory
                await self._threads.run(read_registries_directory, directory)
            except ConfigurationError as error:
                _log.error("images that need signatures are refused: {error}", error=error)
