"""Policies: the requirements of an image, and the conditions under which they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.model.docker_references import DockerReference
from shiftergw.model.records import ImageRecord
from shiftergw.model.signatures import (
    GpgKeys,
    PolicyVerdict,
    RejectedSignature,
    SigstoreKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.rules.policy import ImageIdentity, Policy, judge, remembered_verdict
from shiftergw.rules.policy_document import parse_policy

DIGEST = "sha256:" + "a" * 64
INDEX = "sha256:" + "c" * 64
FOREIGN_DIGEST = "sha256:" + "b" * 64
ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
SIGNED_BY = {"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}
SIGSTORE_SIGNED = {"type": "sigstoreSigned", "keyData": "a2V5"}


def policy_of(
    default: Any = (REJECT,), transports: Any = None, files: dict[str, bytes] | None = None
) -> Policy:
    """Return a policy with these requirements; `files` are its key files."""
    document = {"default": list(default), "transports": transports or {}}
    return parse_policy(json.dumps(document).encode(), lambda path: (files or {})[path])


def image_of(text: str = "reg.example.org/n/app:1") -> ImageIdentity:
    """Return the image of a registry that this reference names."""
    return ImageIdentity("docker", frozenset({DIGEST, INDEX}), DockerReference.parse(text))


def claim_of(
    reference: str = "reg.example.org/n/app:1", digest: str = DIGEST, identity: str = "key 1"
) -> VerifiedClaim:
    """Return the claim of a verified signature."""
    return VerifiedClaim(identity, reference, digest)


SCOPES = {
    "": [{"type": "insecureAcceptAnything"}],
    "reg.example.org/n/app:1": [SIGNED_BY],
    "reg.example.org/n/app": [SIGSTORE_SIGNED],
    "reg.example.org/n": [REJECT],
    "reg.example.org": [SIGNED_BY, SIGSTORE_SIGNED],
    "reg.example.org:5000": [REJECT, SIGNED_BY],
    "*.example.org": [ACCEPT, SIGNED_BY],
    f"pinned.net/app@{DIGEST}": [SIGNED_BY],
    "docker.io/library": [SIGNED_BY],
}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("reg.example.org/n/app:1", "docker reg.example.org/n/app:1"),
        ("reg.example.org/n/app:2", "docker reg.example.org/n/app"),
        (f"reg.example.org/n/app:1@{DIGEST}", "docker reg.example.org/n/app"),
        ("reg.example.org/n/apple:1", "docker reg.example.org/n"),
        ("reg.example.org/nn/app:1", "docker reg.example.org"),
        ("reg.example.org:5000/n/app:1", "docker reg.example.org:5000"),
        ("reg.example.org:5001/n/app:1", "docker *.example.org"),
        ("a.b.example.org/x:1", "docker *.example.org"),
        ("example.org/x:1", "transport docker"),
        (f"pinned.net/app@{DIGEST}", f"docker pinned.net/app@{DIGEST}"),
        ("pinned.net/app:1", "transport docker"),
        ("ubuntu:24.04", "docker docker.io/library"),
        ("someone/ubuntu:24.04", "transport docker"),
    ],
)
def test_the_most_specific_scope_decides(text: str, name: str) -> None:
    """Only the requirements of the most specific scope count."""
    policy = policy_of(transports={"docker": SCOPES})
    assert policy.requirements_of("docker", image_of(text).scopes).name == name


def test_defaults() -> None:
    """A transport without a default, and an unknown transport, have the global default."""
    policy = policy_of([REJECT], {"docker": {"a.b": [ACCEPT]}, "oci-archive": {"": [ACCEPT]}})
    assert policy.requirements_of("docker", ["x.y"]).name == "default"
    assert policy.requirements_of("dir", []).name == "default"
    assert policy.requirements_of("oci-archive", []).name == "transport oci-archive"


def test_paths_are_scopes_of_directories() -> None:
    """Images in directories have paths as scopes, and no reference."""
    policy = policy_of([REJECT], {"oci": {"/srv/images": [ACCEPT]}})
    image = ImageIdentity(
        "oci", frozenset({DIGEST}), paths=("/srv/images/x:1", "/srv/images/x", "/srv/images")
    )
    verdict = judge(policy, image)
    assert verdict.is_accepted
    assert verdict.requirement == "insecureAcceptAnything (a path of the transport oci)"
    assert not judge(policy, ImageIdentity("oci", frozenset({DIGEST}), paths=("/srv",))).is_accepted


def judge_image(
    requirements: list[Any], *results: list[VerificationResult], text: str = ""
) -> PolicyVerdict:
    """Return the verdict of these requirements on an image whose signatures have these results."""
    policy = policy_of([REJECT], {"docker": {"reg.example.org": requirements}})
    return judge(policy, image_of(*([text] if text else [])), results)


def identity(kind: str, **members: str) -> dict[str, Any]:
    """Return the requirement of a signature with this identity."""
    return {**SIGNED_BY, "signedIdentity": {"type": kind, **members}}


REFUSALS = [
    ([REJECT], [], "reject", "The policy rejects such images."),
    ([ACCEPT, REJECT], [], "reject", "rejects"),
    ([SIGNED_BY], [], "signedBy", "no OpenPGP signature"),
    ([SIGNED_BY], [[]], "signedBy", "no OpenPGP signature"),
    ([SIGSTORE_SIGNED], [[]], "sigstoreSigned", "no sigstore signature"),
    ([ACCEPT, SIGNED_BY], [[]], "signedBy", "no OpenPGP signature"),
    ([SIGNED_BY, REJECT], [[claim_of()]], "reject", "rejects"),
    ([SIGNED_BY, SIGSTORE_SIGNED], [[claim_of()]], "sigstoreSigned", "no sigstore signature"),
    ([SIGNED_BY, SIGSTORE_SIGNED], [[], [claim_of()]], "signedBy", "no OpenPGP signature"),
    (
        [SIGNED_BY],
        [[claim_of(digest=FOREIGN_DIGEST)]],
        "signedBy",
        f"another image, {FOREIGN_DIGEST}",
    ),
    (
        [SIGNED_BY],
        [[claim_of("reg.example.org/n/app:2")]],
        "signedBy",
        "one for reg.example.org/n/app:2",
    ),
    ([SIGNED_BY], [[claim_of("reg.example.org/n/app")]], "signedBy", "matchRepoDigestOrExact"),
    ([SIGSTORE_SIGNED], [[claim_of("")]], "sigstoreSigned", "names no repository"),
    (
        [SIGNED_BY],
        [[RejectedSignature("the key has expired", "F1")]],
        "signedBy",
        "the key has expired",
    ),
    (
        [SIGNED_BY],
        [[RejectedSignature("a"), RejectedSignature("b"), RejectedSignature("a")]],
        "signedBy",
        "None of its 3 signatures is accepted: a; b.",
    ),
    (
        [SIGNED_BY],
        [[RejectedSignature(str(n)) for n in range(9)]],
        "signedBy",
        "accepted: 0; 1; 2; 3; and 5 more.",
    ),
    ([identity("matchRepository")], [[claim_of("reg.example.org/n/bad:1")]], "signedBy", "bad:1"),
    ([identity("matchExact")], [[claim_of("reg.example.org/n/app")]], "signedBy", "matchExact"),
    (
        [identity("exactReference", dockerReference="v.com/a:1")],
        [[claim_of()]],
        "signedBy",
        "exactReference",
    ),
    (
        [identity("exactRepository", dockerRepository="v.com/a")],
        [[claim_of("v.com/b:1")]],
        "signedBy",
        "exactRepository",
    ),
    (
        [identity("remapIdentity", prefix="reg.example.org/n", signedPrefix="v.com")],
        [[claim_of()]],
        "signedBy",
        "remapIdentity",
    ),
]


@pytest.mark.parametrize(("requirements", "results", "kind", "reason"), REFUSALS)
def test_refusals(requirements: Any, results: Any, kind: str, reason: str) -> None:
    """An image is refused by the first requirement that does not hold, with a reason."""
    verdict = judge_image(requirements, *results)
    assert not verdict.is_accepted
    assert verdict.requirement == f"{kind} (docker reg.example.org)"
    assert reason in verdict.reason


ACCEPTANCES = [
    ([ACCEPT], [], "insecureAcceptAnything", ""),
    ([SIGNED_BY], [[claim_of()]], "signedBy", "key 1"),
    ([SIGNED_BY], [[claim_of(digest=INDEX)]], "signedBy", "key 1"),
    ([SIGNED_BY], [[RejectedSignature("no"), claim_of()]], "signedBy", "key 1"),
    ([SIGNED_BY], [[claim_of(), claim_of(identity="key 2")]], "signedBy", "key 1, key 2"),
    (
        [SIGNED_BY, SIGSTORE_SIGNED],
        [[claim_of()], [claim_of(identity="key 2")]],
        "signedBy, sigstoreSigned",
        "key 1, key 2",
    ),
    ([ACCEPT, SIGNED_BY], [[claim_of()]], "insecureAcceptAnything, signedBy", "key 1"),
    ([identity("matchRepository")], [[claim_of("reg.example.org/n/app:2")]], "signedBy", "key 1"),
    ([identity("matchRepository")], [[claim_of("reg.example.org/n/app")]], "signedBy", "key 1"),
    ([identity("matchExact")], [[claim_of()]], "signedBy", "key 1"),
    (
        [identity("exactReference", dockerReference="v.com/a:1")],
        [[claim_of("v.com/a:1")]],
        "signedBy",
        "key 1",
    ),
    (
        [identity("exactRepository", dockerRepository="v.com/a")],
        [[claim_of("v.com/a:7")]],
        "signedBy",
        "key 1",
    ),
    (
        [identity("remapIdentity", prefix="reg.example.org/n", signedPrefix="v.com")],
        [[claim_of("v.com/app:1")]],
        "signedBy",
        "key 1",
    ),
]


@pytest.mark.parametrize(("requirements", "results", "kind", "signer"), ACCEPTANCES)
def test_acceptance(requirements: Any, results: Any, kind: str, signer: str) -> None:
    """An image is accepted if all requirements hold, each by one signature at least."""
    verdict = judge_image(requirements, *results)
    assert verdict.is_accepted, verdict.reason
    assert verdict.requirement == f"{kind} (docker reg.example.org)"
    assert verdict.identity == signer
    assert verdict.image == "reg.example.org/n/app:1"
    assert (signer in verdict.reason) if signer else ("without a signature" in verdict.reason)


def test_a_digest_needs_the_repository_only() -> None:
    """An image that is referenced by its digest may be signed under any tag."""
    text = f"reg.example.org/n/app@{DIGEST}"
    assert judge_image([SIGNED_BY], [claim_of("reg.example.org/n/app:9")], text=text).is_accepted
    assert not judge_image(
        [SIGNED_BY], [claim_of("reg.example.org/n/bad:9")], text=text
    ).is_accepted
    exact = judge_image([identity("matchExact")], [claim_of("reg.example.org/n/app:9")], text=text)
    assert not exact.is_accepted


@pytest.mark.parametrize("reference", ["", "elsewhere.org/b:2", "not a name"])
def test_a_digest_alone(reference: str) -> None:
    """If `signedIdentity` is `matchDigest`, the name in a signature does not matter."""
    requirement = {**SIGSTORE_SIGNED, "signedIdentity": {"type": "matchDigest"}}
    assert judge_image([requirement], [claim_of(reference)]).is_accepted
    assert judge_image([requirement], [claim_of(reference, INDEX)]).is_accepted
    assert not judge_image([requirement], [claim_of(reference, FOREIGN_DIGEST)]).is_accepted
    assert not judge_image([requirement], [RejectedSignature("bad")]).is_accepted
    assert not judge_image([requirement], []).is_accepted
    assert not judge_image([SIGSTORE_SIGNED], [claim_of(reference)]).is_accepted


@pytest.mark.parametrize(
    ("requirement", "is_accepted"),
    [
        (SIGNED_BY, False),
        (identity("matchExact"), False),
        (identity("matchRepository"), False),
        (identity("remapIdentity", prefix="v.com", signedPrefix="w.com"), False),
        (identity("exactRepository", dockerRepository="v.com/a"), True),
        (identity("exactReference", dockerReference="v.com/a:1"), True),
    ],
)
def test_archives_have_no_reference(requirement: Any, is_accepted: bool) -> None:
    """Only the exact identities accept images that come from no registry."""
    policy = policy_of([REJECT], {"oci-archive": {"": [requirement]}})
    image = ImageIdentity("oci-archive", frozenset({DIGEST}))
    assert judge(policy, image, [[claim_of("v.com/a:1")]]).is_accepted is is_accepted


def test_foreign_text_is_printable() -> None:
    """The text of a signature cannot break a line of the log."""
    verdict = judge_image([SIGNED_BY], [claim_of("x\ny"), RejectedSignature("a\nb", "k\ne")])
    assert verdict.reason.isprintable()
    assert verdict.identity.isprintable()


def test_kinds_of_signatures() -> None:
    """`signedBy` needs OpenPGP, `sigstoreSigned` needs cosign's signatures or bundles."""
    policy = policy_of([SIGNED_BY, SIGSTORE_SIGNED])
    by_gpg, by_sigstore = policy.requirements_of("docker", []).signature_requirements
    assert set(by_gpg.kinds) == {"simple"}
    assert set(by_sigstore.kinds) == {"cosign", "bundle"}
    assert isinstance(by_gpg.keys, GpgKeys)
    assert isinstance(by_sigstore.keys, SigstoreKeys)
    assert policy.needs_gpg
    assert not policy_of([SIGSTORE_SIGNED]).needs_gpg
    assert policy_of(transports={"docker": {"a.b": [SIGNED_BY]}}).needs_gpg


@pytest.mark.parametrize("kind", ["matchExact", "matchRepoDigestOrExact"])
def test_a_name_alone_names_no_image(kind: str) -> None:
    """A signature without tag and digest does not identify an image, whatever its name."""
    verdict = judge_image(
        [identity(kind)], [claim_of("reg.example.org/n/app")], text="reg.example.org/n/app"
    )
    assert not verdict.is_accepted


def record_with(verdict: PolicyVerdict | None) -> ImageRecord:
    """Return the record of a delivered image with this verdict."""
    return ImageRecord(verdict=None if verdict is None else verdict.to_document())


def test_verdicts_that_need_no_signatures() -> None:
    """Without signatures to verify, a delivered image is judged at once."""
    accepting = policy_of([ACCEPT])
    assert remembered_verdict(accepting, image_of(), record_with(None)) == judge(
        accepting, image_of()
    )
    rejecting = policy_of([SIGNED_BY, REJECT])
    verdict = remembered_verdict(rejecting, image_of(), record_with(None))
    assert verdict is not None
    assert not verdict.is_accepted


def test_delivered_images_of_no_registry() -> None:
    """Images of no registry have no signatures, so the present policy decides at once."""
    image = ImageIdentity("docker-archive", frozenset({DIGEST}))
    for requirement, is_accepted in ((ACCEPT, True), (REJECT, False), (SIGNED_BY, False)):
        policy = policy_of([REJECT], {"docker-archive": {"": [requirement]}})
        verdict = remembered_verdict(policy, image, record_with(None))
        assert verdict is not None
        assert verdict.is_accepted is is_accepted


def test_remembered_verdicts() -> None:
    """A stored verdict counts for the same policy and the same image."""
    policy, image = policy_of([SIGNED_BY]), image_of()
    verdict = judge(policy, image, [[claim_of()]])
    assert verdict.is_accepted
    assert remembered_verdict(policy, image, record_with(verdict)) == verdict
    assert remembered_verdict(policy, image, record_with(None)) is None
    other_policy = policy_of([SIGNED_BY, ACCEPT])
    assert remembered_verdict(other_policy, image, record_with(verdict)) is None
    other_image = image_of("reg.example.org/n/app:2")
    assert remembered_verdict(policy, other_image, record_with(verdict)) is None
