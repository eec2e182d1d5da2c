"""Decide by a policy whether an image may be used: containers-policy.json(5), as pure functions.

`policy_document` reads policies. What signatures claim has been verified before, with the keys of
each requirement; here the claims are compared with the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shiftergw.errors import printable
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.records import ImageRecord
from shiftergw.model.signatures import (
    GpgKeys,
    PolicyVerdict,
    RejectedSignature,
    SignatureKind,
    TrustedKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.rules.signed_identity import SignedIdentity

MOST_REASONS = 4
"""Signatures whose rejections a verdict names."""


@dataclass(frozen=True, slots=True)
class AcceptAnything:
    """The requirement `insecureAcceptAnything`, which holds for every image."""

    type: str = "insecureAcceptAnything"


@dataclass(frozen=True, slots=True)
class RejectEverything:
    """The requirement `reject`, which holds for no image."""

    type: str = "reject"


@dataclass(frozen=True, slots=True)
class SignatureRequirement:
    """The requirement `signedBy` or `sigstoreSigned`: a signature by one of these keys."""

    keys: TrustedKeys = field(repr=False)
    identity: SignedIdentity

    @property
    def type(self) -> str:
        """Return the type as policies name it."""
        return "signedBy" if isinstance(self.keys, GpgKeys) else "sigstoreSigned"

    @property
    def format(self) -> str:
        """Return the name of the format of its signatures, for people."""
        return "OpenPGP" if isinstance(self.keys, GpgKeys) else "sigstore"

    @property
    def kinds(self) -> frozenset[SignatureKind]:
        """Return the kinds of signatures that can fulfill the requirement."""
        if isinstance(self.keys, GpgKeys):
            return frozenset({"simple"})
        return frozenset({"cosign", "bundle"})


Requirement = AcceptAnything | RejectEverything | SignatureRequirement


@dataclass(frozen=True, slots=True)
class ScopeRequirements:
    """The requirements of one scope, all of which must hold; `name` is for messages."""

    name: str
    requirements: tuple[Requirement, ...]

    @property
    def signature_requirements(self) -> tuple[SignatureRequirement, ...]:
        """Return the requirements that only signatures fulfill."""
        return tuple(r for r in self.requirements if isinstance(r, SignatureRequirement))

    @property
    def rejects(self) -> bool:
        """Return whether no signature can help."""
        return any(isinstance(r, RejectEverything) for r in self.requirements)


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy; `digest` is that of its file and of all keys that it names."""

    digest: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]]

    def requirements_of(self, transport: str, scopes: Sequence[str]) -> ScopeRequirements:
        """Return the requirements of an image: those of the first of its scopes that has any."""
        table = self.transports.get(transport, {})
        for scope in scopes:
            if scope in table:
                return ScopeRequirements(f"{transport} {scope}", table[scope])
        if "" in table:
            return ScopeRequirements(f"transport {transport}", table[""])
        return ScopeRequirements("default", self.default)

    def all_scopes(self) -> Iterator[ScopeRequirements]:
        """Yield the requirements of all scopes."""
        yield ScopeRequirements("default", self.default)
        for transport, table in self.transports.items():
            for scope, requirements in table.items():
                name = f"{transport} {scope}" if scope else f"transport {transport}"
                yield ScopeRequirements(name, requirements)

    @property
    def needs_signatures(self) -> bool:
        """Return whether any requirement needs signatures."""
        return any(scope.signature_requirements for scope in self.all_scopes())

    @property
    def needs_gpg(self) -> bool:
        """Return whether any requirement needs OpenPGP."""
        return any(
            isinstance(requirement.keys, GpgKeys)
            for scope in self.all_scopes()
            for requirement in scope.signature_requirements
        )


@dataclass(frozen=True, slots=True)
class ImageIdentity:
    """How a policy sees an image.

    `transport` is that of containers-transports(5), such as `docker` or `oci-archive`. `reference`
    names an image of a registry: by the location that the user named, whichever mirror serves it.
    `paths` are the scopes of other images. `digests` are those of the manifest, and of the index
    that led to it: a signature of the index is one of all that the index names.
    """

    transport: str
    digests: frozenset[str]
    reference: DockerReference | None = None
    paths: tuple[str, ...] = ()

    @property
    def scopes(self) -> tuple[str, ...]:
        """Return the scopes that contain the image, the most specific first."""
        return self.paths if self.reference is None else tuple(self.reference.scopes())

    def __str__(self) -> str:
        """Return the image as messages and verdicts name it."""
        return self.transport if self.reference is None else str(self.reference)


def judge(
    policy: Policy,
    image: ImageIdentity,
    results: Sequence[Sequence[VerificationResult]] = (),
) -> PolicyVerdict:
    """Return the verdict of a policy on an image.

    `results` are those of the image's signatures, for each of the scope's `signature_requirements`
    in their order. A requirement without results is not fulfilled.
    """
    scope = policy.requirements_of(image.transport, image.scopes)
    scope_name = printable(scope.name)
    if image.reference is None and scope.name.startswith(f"{image.transport} "):
        # A verdict is for users, too, who need not know paths of the site.
        scope_name = f"a path of the transport {image.transport}"
    remaining = iter(results)
    identities: list[str] = []

    def verdict(
        kind: str, reason: str, names: Sequence[str], *, is_accepted: bool
    ) -> PolicyVerdict:
        identity = printable(", ".join(dict.fromkeys(filter(None, names))))
        requirement = f"{kind} ({scope_name})"
        return PolicyVerdict(is_accepted, requirement, identity, reason, policy.digest, str(image))

    if scope.rejects:
        return verdict("reject", "The policy rejects such images.", (), is_accepted=False)
    for requirement in scope.signature_requirements:
        outcomes = [_compare(requirement, image, result) for result in next(remaining, ())]
        claims = [outcome for outcome in outcomes if isinstance(outcome, VerifiedClaim)]
        if not claims:
            rejections = [o for o in outcomes if isinstance(o, RejectedSignature)]
            signers = [rejection.identity for rejection in rejections]
            reason = _reason(requirement, image, rejections)
            return verdict(requirement.type, reason, signers, is_accepted=False)
        identities += [claim.identity for claim in claims]
    kinds = ", ".join(dict.fromkeys(requirement.type for requirement in scope.requirements))
    reason = "The policy accepts such images without a signature."
    if identities:
        reason = f"It is signed by {printable(', '.join(dict.fromkeys(identities)))}."
    return verdict(kinds, reason, identities, is_accepted=True)


def remembered_verdict(
    policy: Policy, image: ImageIdentity, record: ImageRecord
) -> PolicyVerdict | None:
    """Return the verdict on a delivered image if that needs no signatures, otherwise None.

    Without requirements of signatures it is known at once, and so is that of an image from no
    registry, which has none. Otherwise it is the record's, if it is one of the same policy on the
    same image.
    """
    scope = policy.requirements_of(image.transport, image.scopes)
    if scope.rejects or not scope.signature_requirements or image.reference is None:
        return judge(policy, image)
    verdict = PolicyVerdict.from_document(record.verdict)
    is_current = verdict is not None and (verdict.policy, verdict.image) == (
        policy.digest,
        str(image),
    )
    return verdict if is_current else None


def _compare(
    requirement: SignatureRequirement, image: ImageIdentity, result: VerificationResult
) -> VerificationResult:
    """Return a claim if it is one for this image, otherwise why it is not."""
    if isinstance(result, RejectedSignature):
        return result
    if result.manifest_digest not in image.digests:
        reason = f"it is one for another image, {printable(result.manifest_digest, 80)}"
        return RejectedSignature(reason, result.identity)
    if not requirement.identity.accepts(image.reference, result.docker_reference):
        kind = requirement.identity.type
        reason = f"it is one for {printable(result.docker_reference)}, which {kind} does not accept"
        if not result.docker_reference:
            reason = f"it names no repository, which {kind} requires; only matchDigest does not"
        return RejectedSignature(reason, result.identity)
    return result


def _reason(
    requirement: SignatureRequirement,
    image: ImageIdentity,
    rejections: Sequence[RejectedSignature],
) -> str:
    """Return why none of the signatures fulfills a requirement."""
    if image.reference is None:
        return "It comes from files, which have no signatures."
    if not rejections:
        return f"The image has no {requirement.format} signature."
    reasons = list(dict.fromkeys(printable(rejection.reason) for rejection in rejections))
    if len(reasons) == 1:
        noun = "Its signature" if len(rejections) == 1 else "None of its signatures"
        return f"{noun} is not accepted: {reasons[0]}."
    rest = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    first = "; ".join(reasons[:MOST_REASONS])
    return f"None of its {len(rejections)} signatures is accepted: {first}{rest}."
