"""Signatures of images, the keys that a policy trusts, and what the policy decides.

The words are those of containers-policy.json(5): a policy holds *requirements*, and a signature
*claims* that its signer saw a manifest under a docker reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

SIGNATURES_LIMIT = 64
"""The most signatures of one image that are read."""

SIGNATURE_SIZE_LIMIT = 1 << 20
"""Bytes of one signature, of its payload, and of each document that leads to it."""

SIGNATURE_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
"""The predicate of a statement that signs an image; others attest something about it."""

SignatureKind = Literal["simple", "cosign", "bundle"]


@dataclass(frozen=True, slots=True)
class SignatureBlob:
    """A signature as it was fetched; nothing in it has been verified.

    * `simple`: `signature` is an OpenPGP message that contains the signed payload.
    * `cosign`: `payload` is the blob of a layer of the attachment, `annotations` are those of the
      layer, and `signature`, `certificate` and `chain` are the texts of its annotations (base64,
      PEM, PEM).
    * `bundle`: `payload` is the JSON document of a sigstore bundle, and nothing else is set.

    `place` says where it was found, for messages.
    """

    kind: SignatureKind
    payload: bytes = b""
    signature: bytes = b""
    certificate: bytes = b""
    chain: bytes = b""
    annotations: Mapping[str, str] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True, slots=True)
class SignatureStorage:
    """Where the signatures of an image are, by a section of containers-registries.d(5).

    `lookaside` is the URL of a storage of simple signatures, or empty. `uses_attachments` is None
    if the section does not say it; then attachments are read if a policy requires them.
    """

    lookaside: str = ""
    uses_attachments: bool | None = None


@dataclass(frozen=True, slots=True)
class GpgKeys:
    """The OpenPGP keys of a `signedBy` requirement: contents of keyrings, binary or armored."""

    keyrings: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FulcioAuthority:
    """The certificate authority of a `sigstoreSigned` requirement, and whom it must have certified.

    `ca` is a PEM file of certificates.
    """

    ca: bytes
    oidc_issuer: str
    subject_email: str


@dataclass(frozen=True, slots=True)
class SigstoreKeys:
    """The keys of a `sigstoreSigned` requirement, each the content of a PEM file.

    Either `public_keys` or `fulcio` is set. With `rekor_keys`, the transparency log of one of these
    keys must contain the signature; `fulcio` requires them.
    """

    public_keys: tuple[bytes, ...] = ()
    fulcio: FulcioAuthority | None = None
    rekor_keys: tuple[bytes, ...] = ()


TrustedKeys = GpgKeys | SigstoreKeys
"""The keys of one requirement. A verifier gets no other keys to trust."""


@dataclass(frozen=True, slots=True)
class VerifiedClaim:
    """What a signature says, after its cryptography was verified with a requirement's keys.

    `identity` names the signer for people: the fingerprint of a key, or `e-mail (issuer)` of a
    certificate. `docker_reference` is empty if the signature names none, as sigstore bundles do.
    Whether reference and `manifest_digest` (`sha256:…`) are the image's is for the policy to judge.
    """

    identity: str
    docker_reference: str
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class RejectedSignature:
    """A signature that does not hold for a requirement's keys.

    `reason` is a clause for messages, such as `it is signed by the unknown key 0123…`. `identity`
    names the signer if the signature tells it, unverified.
    """

    reason: str
    identity: str = ""


VerificationResult = VerifiedClaim | RejectedSignature


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """What the policy of a system decides about an image.

    `requirement` is the type of the requirement that decided, with its scope; `identity` names the
    signers, if there are any; `reason` is a sentence for the user. `policy` is the digest of the
    policy and of all keys that it names, `image` the image as the policy sees it: the verdict holds
    for these only.
    """

    is_accepted: bool
    requirement: str
    identity: str
    reason: str
    policy: str
    image: str

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | None) -> Self | None:
        """Parse a stored verdict; return None for anything else."""
        if document is None or document.get("is_accepted") not in {True, False}:
            return None
        names = ("requirement", "identity", "reason", "policy", "image")
        texts = {n: text for n in names if isinstance(text := document.get(n), str)}
        if len(texts) < len(names):
            return None
        return cls(document["is_accepted"], **texts)

    def to_document(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        return asdict(self)

    def to_answer(self) -> dict[str, str]:
        """Return what users see of the verdict that accepts an image, as a JSON object.

        An image may have several names: `image` is the one that was judged.
        """
        return {
            "requirement": self.requirement,
            "identity": self.identity,
            "reason": self.reason,
            "policy": self.policy,
            "image": self.image,
        }
