"""Ask the policy of a system about images: before a download, and at each reuse.

The policy and its keys are read anew for each image, so that a change applies at once. A policy
that cannot be read refuses every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError, ImageRefused, PolicyInvalid, TimedOut
from shiftergw.job.attempt import Attempt
from shiftergw.job.watcher import Watcher
from shiftergw.model.images import ResolvedImage
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import (
    SIGNATURE_SIZE_LIMIT,
    PolicyVerdict,
    SignatureBlob,
    SignatureKind,
    VerificationResult,
)
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import SignatureSource, SignatureVerifier
from shiftergw.rules.attempts import describe_attempt, describe_work
from shiftergw.rules.image_identity import identify_image, identify_record
from shiftergw.rules.policy import (
    ImageIdentity,
    Policy,
    SignatureRequirement,
    judge,
    remembered_verdict,
)
from shiftergw.rules.policy_document import parse_policy
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

POLICY_LIMIT = 4 << 20
"""Bytes of a policy."""

FILE_SECONDS = 30.0
"""The time limit for reading a policy and its keys, whose disk may hang."""

SLOTS = 2
"""Reads of policies that may hang at the same time; each occupies a thread."""

VERIFICATION_SECONDS = 300.0
"""The time limit for the verification of all signatures of one image."""

Verifiers = Mapping[SignatureKind, SignatureVerifier]


def read_policy(path: Path) -> Policy:
    """Return the policy in a file; raise `PolicyInvalid` if it cannot be used. Blocks."""
    try:
        content, _ = read_whole(path, POLICY_LIMIT)
    except OSError as error:
        raise PolicyInvalid(f"The policy {path} cannot be read: {error.strerror}.") from error
    try:
        return parse_policy(content, _read_key)
    except PolicyInvalid as error:
        raise PolicyInvalid(f"{path}: {error.what}") from error


def _read_key(path: str) -> bytes:
    return read_whole(Path(path), SIGNATURE_SIZE_LIMIT)[0]


class ImagePolicies:
    """The policies of all systems; a system without `policy_file` accepts every image."""

    _log = Logger()

    def __init__(
        self,
        config: Config,
        source: SignatureSource,
        verifiers: Verifiers,
        threads: Threads,
        clock: IReactorTime,
    ) -> None:
        """Read files in `threads`; `verifiers` has one for each kind of signature."""
        self._config = config
        self._source = source
        self._verifiers = verifiers
        self._reads = BoundedThreadCalls(threads, SLOTS, FILE_SECONDS, clock, _no_answer)
        self._clock = clock

    async def recall(
        self, request: ImageRecord, reference: ImageReference, record: ImageRecord
    ) -> PolicyVerdict | None:
        """Return the verdict on a delivered image if no signature must be read for it.

        `request` is the record of the pull, `record` that of the image. The verdict is the stored
        one if the same policy has given it for the same reference. Returns None if the image must
        be judged anew, or if the system has no policy. Raises `ImageRefused` if the policy refuses
        the image whatever its signatures are.
        """
        policy = await self._policy(request.system)
        if policy is None:
            return None
        url = self._url(record.origin.location) if record.origin is not None else ""
        identity = identify_record(record, reference, url)
        if identity is None:
            return None
        verdict = remembered_verdict(policy, identity, record)
        if verdict is not None and not verdict.is_accepted:
            raise refusal_of(request.system, self._policy_file(request.system), identity, verdict)
        return verdict

    def is_required(self, system: str) -> bool:
        """Return whether the system has a policy."""
        return self._policy_file(system) is not None

    def _policy_file(self, system: str) -> Path | None:
        return self._config.systems[system].policy_file

    async def check(
        self,
        attempt: Attempt,
        reference: ImageReference,
        image: ResolvedImage,
        login: RegistryLogin | None,
    ) -> PolicyVerdict | None:
        """Return the verdict that accepts an image, or None if the system has no policy.

        Raises `ImageRefused` if the policy does not accept it, and the errors of `judge`.
        """
        system = attempt.record.system
        verdict = await self.judge(system, reference, image, login, attempt)
        if verdict is None:
            return None
        if not verdict.is_accepted:
            raise self.refusal(system, reference, image, verdict)
        self._log.info(
            "{work}: the policy accepts {image} by {requirement}, signed by {signers}; {trace}",
            image=verdict.image,
            requirement=verdict.requirement,
            signers=verdict.identity or "nobody",
            work=describe_work(attempt.record),
            trace=describe_attempt(attempt.record),
        )
        return verdict

    async def judge(
        self,
        system: str,
        reference: ImageReference,
        image: ResolvedImage,
        login: RegistryLogin | None,
        watcher: Watcher,
    ) -> PolicyVerdict | None:
        """Return the verdict of a system's policy on an image, or None if there is no policy.

        Raises `ImageRefused` if the policy cannot be used, and the errors of the source of the
        signatures if it is unknown which there are.
        """
        policy = await self._policy(system)
        if policy is None:
            return None
        identity = self._identify(image, reference)
        scope = policy.requirements_of(identity.transport, identity.scopes)
        requirements = () if scope.rejects else scope.signature_requirements
        signatures: Sequence[SignatureBlob] = ()
        if requirements and identity.reference is not None:
            watcher.enter_stage(State.PULLING, "Checking signatures")
            kinds = frozenset[SignatureKind]().union(*(r.kinds for r in requirements))
            try:
                signatures = await self._source.signatures(
                    image, identity.reference, kinds, login, watcher.notify
                )
            except ConfigurationError as error:  # of registries.d
                raise unusable_policy(error) from error
        verification = self._verify(requirements, signatures)
        results = await within(VERIFICATION_SECONDS, self._clock, verification, _too_slow)
        return judge(policy, identity, results)

    def _identify(self, image: ResolvedImage, reference: ImageReference) -> ImageIdentity:
        return identify_image(image, reference, self._url(image.location))

    async def _verify(
        self, requirements: Sequence[SignatureRequirement], signatures: Sequence[SignatureBlob]
    ) -> list[list[VerificationResult]]:
        """Return the results of all signatures that can fulfill each requirement."""
        results = []
        for requirement in requirements:
            candidates = [s for s in signatures if s.kind in requirement.kinds]
            try:
                results.append(
                    [
                        await self._verifiers[candidate.kind].verify(candidate, requirement.keys)
                        for candidate in candidates
                    ]
                )
            except ConfigurationError as error:
                raise unusable_policy(error) from error
        return results

    async def _policy(self, system: str) -> Policy | None:
        path = self._policy_file(system)
        if path is None:
            return None
        try:
            return await self._reads.run(read_policy, path)
        except PolicyInvalid as error:
            raise unusable_policy(error) from error

    def _url(self, location: str) -> str:
        section = self._config.locations.get(location)
        return section.url if section is not None else ""

    def refusal(
        self,
        system: str,
        reference: ImageReference,
        image: ResolvedImage,
        verdict: PolicyVerdict,
    ) -> ImageRefused:
        """Return the error for a verdict that does not accept an image."""
        identity = self._identify(image, reference)
        return refusal_of(system, self._policy_file(system), identity, verdict)


def refusal_of(
    system: str, policy_file: Path | None, identity: ImageIdentity, verdict: PolicyVerdict
) -> ImageRefused:
    """Return the error for an image that the policy of a system does not accept."""
    image = str(identity)
    if identity.reference is None:
        image = f"an image of the transport {identity.transport}"
    return ImageRefused(
        f"The policy of {system} does not accept {image}, by {verdict.requirement}:"
        f" {verdict.reason}",
        detail=f"policy_file {policy_file}",
    )


def unusable_policy(error: ConfigurationError) -> ImageRefused:
    """Return the error for all images of a system whose policy cannot be used."""
    return ImageRefused(
        "The policy of this system cannot be used, so every image is refused.",
        remedy="Tell the site's support; `shiftergw check` and the gateway's log say more.",
        detail=error.what,
    )


def _no_answer() -> TimedOut:
    return TimedOut(
        f"The policy of this system was not read within {FILE_SECONDS:.0f} s.",
        remedy="Try again later; if it lasts, tell the site's support: a disk does not answer.",
    )


def _too_slow() -> ImageRefused:
    return ImageRefused(
        f"The signatures of the image were not verified within {VERIFICATION_SECONDS:.0f} s.",
        remedy="Tell the site's support.",
    )
