"""Check the policies of the systems at the start, and compare them with records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.config.registries_directory import read_registries_directory
from shiftergw.errors import ConfigurationError, PolicyInvalid, TimedOut
from shiftergw.job.policy import read_policy, refusal_of, unusable_policy
from shiftergw.model.records import ImageRecord
from shiftergw.model.signatures import PolicyVerdict
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.rules.image_identity import identify_file
from shiftergw.rules.policy import judge
from shiftergw.signatures.gpg import GpgVerifier

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads

READ_SECONDS = 5.0
"""The time limit for reading a policy before a request is answered."""

SLOTS = 2
"""Reads of policies that may hang at the same time; each occupies a thread."""

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


class PresentPolicies:
    """Knows which records the present policies of their systems have judged."""

    def __init__(self, config: Config, threads: Threads, clock: IReactorTime) -> None:
        """Read policies in `threads`."""
        self._config = config
        self._reads = BoundedThreadCalls(threads, SLOTS, READ_SECONDS, clock, _no_answer)

    async def is_judged(self, record: ImageRecord) -> bool:
        """Return whether the present policy has given a record its verdict, or there is no policy.

        A policy that cannot be read has judged nothing: a worker then says what is wrong. An image
        of a user's file is judged here, since it has no signatures: raises `ImageRefused` if the
        policy does not accept its transport, or cannot be read.
        """
        system = self._config.systems.get(record.system)
        if system is None or system.policy_file is None:
            return True
        if record.upload is not None:
            return await self._accepts_file(record, system.policy_file)
        verdict = PolicyVerdict.from_document(record.verdict)
        if verdict is None:
            return False
        try:
            policy = await self._reads.run(read_policy, system.policy_file)
        except (PolicyInvalid, TimedOut):
            return False
        return verdict.is_accepted and verdict.policy == policy.digest

    async def _accepts_file(self, record: ImageRecord, policy_file: Path) -> bool:
        identity = identify_file(record)
        if identity is None:
            return False
        try:
            policy = await self._reads.run(read_policy, policy_file)
        except PolicyInvalid as error:
            raise unusable_policy(error) from error
        verdict = judge(policy, identity)
        if not verdict.is_accepted:
            raise refusal_of(record.system, policy_file, identity, verdict)
        return True


def _no_answer() -> TimedOut:
    return TimedOut("The policy was not read in time.")
