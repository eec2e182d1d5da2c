"""Verify sigstore signatures: cosign attachments and bundles, by key or by certificate.

Nothing is fetched: keys, authority and logs are those of the policy. Timestamps of authorities
(RFC 3161) and certificate transparency are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.errors import ConfigurationError
from shiftergw.model.signatures import (
    RejectedSignature,
    SignatureBlob,
    SigstoreKeys,
    TrustedKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.signatures.certificates import (
    FulcioTrust,
    identity_of,
    load_certificate,
    verify_certificate,
)
from shiftergw.signatures.documents import SignatureDefect
from shiftergw.signatures.log_bodies import LoggedSignature, read_body
from shiftergw.signatures.public_keys import PublicKey, encode_key, key_digest, read_public_key
from shiftergw.signatures.sigstore_documents import SigstoreSignature, read_signature
from shiftergw.signatures.transparency import LogEntry, verify_entry

if TYPE_CHECKING:
    from shiftergw.plumbing.threads import Threads


@dataclass(frozen=True, slots=True)
class SigstoreTrust:
    """The keys of a requirement, ready for use: `keys` or `fulcio`, and logs by their ids."""

    keys: tuple[PublicKey, ...]
    fulcio: FulcioTrust | None
    log_keys: Mapping[str, PublicKey]

    @classmethod
    def read(cls, keys: SigstoreKeys) -> SigstoreTrust:
        """Read the keys of a policy; raise `ConfigurationError` if one of them is unusable."""
        public_keys = tuple(_read_key(pem, "a public key") for pem in keys.public_keys)
        log_keys = [_read_key(pem, "a public key of Rekor") for pem in keys.rekor_keys]
        if bool(public_keys) == (keys.fulcio is not None):
            raise _unusable("the policy", "it must name either public keys or Fulcio")
        if keys.fulcio is not None and not log_keys:
            raise _unusable("the policy", "with Fulcio it must name public keys of Rekor too")
        fulcio = None
        if keys.fulcio is not None:
            try:
                fulcio = FulcioTrust.read(keys.fulcio)
            except ValueError as error:
                raise _unusable("the certificate authority", str(error)) from error
        return cls(public_keys, fulcio, {key_digest(key): key for key in log_keys})


def _read_key(pem: bytes, name: str) -> PublicKey:
    try:
        return read_public_key(pem)
    except ValueError as error:
        raise _unusable(name, str(error)) from error


def _unusable(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"The policy's keys cannot be used: {name}: {reason}.")


class SigstoreVerifier:
    """The `SignatureVerifier` of the kinds `cosign` and `bundle`; it works in a thread."""

    def __init__(self, threads: Threads) -> None:
        """Verify in these threads."""
        self._threads = threads

    async def verify(self, signature: SignatureBlob, keys: TrustedKeys) -> VerificationResult:
        """Return the claim of the signature, or why it does not hold for these keys."""
        return await self._threads.run(verify_sigstore, signature, keys)


def verify_sigstore(blob: SignatureBlob, keys: TrustedKeys) -> VerificationResult:
    """Return the claim of the signature, or why it does not hold; this takes milliseconds of CPU.

    Raises `ConfigurationError` if the keys are unusable.
    """
    if not isinstance(keys, SigstoreKeys) or blob.kind not in {"cosign", "bundle"}:
        return RejectedSignature("it is not a sigstore signature")
    trust = SigstoreTrust.read(keys)
    signer = ""
    try:
        signature = read_signature(blob)
        signer = _unverified_signer(signature)
        identity = _verify_signer(signature, trust)
        reference, digest = signature.read_claim()
    except SignatureDefect as defect:
        return RejectedSignature(str(defect), signer)
    return VerifiedClaim(identity, reference, digest)


def _unverified_signer(signature: SigstoreSignature) -> str:
    """Return the signer that the certificate names, if there is one."""
    try:
        return identity_of(load_certificate(signature.certificate)) if signature.certificate else ""
    except SignatureDefect:
        return ""


def _verify_signer(signature: SigstoreSignature, trust: SigstoreTrust) -> str:
    """Verify the signature of the content, and return the name of its signer."""
    if trust.fulcio is not None:
        key = _find_certified_key(signature, trust.fulcio, trust.log_keys)
        if not signature.content.is_signed_by(key, signature.signature):
            raise SignatureDefect("the key of its certificate did not sign it")
        return f"{trust.fulcio.subject_email} ({trust.fulcio.oidc_issuer})"
    keys = trust.keys
    if trust.log_keys:
        logged_signature, _ = _find_entry(signature, trust.log_keys, needs_time=False)
        keys = tuple(key for key in keys if encode_key(key) == logged_signature.verifier)
        if not keys:
            raise SignatureDefect("its log entry is of a key that the policy does not name")
    if not any(map(signature.content.can_verify, keys)):
        raise SignatureDefect("Ed25519 signatures of manifests are not supported")
    for key in keys:
        if signature.content.is_signed_by(key, signature.signature):
            return f"sha256:{key_digest(key)}"
    raise SignatureDefect("none of the policy's keys signed it")


def _find_certified_key(
    signature: SigstoreSignature, fulcio: FulcioTrust, log_keys: Mapping[str, PublicKey]
) -> PublicKey:
    if not signature.certificate:
        raise SignatureDefect("it has no certificate")
    certificate = load_certificate(signature.certificate)
    chain = [load_certificate(der) for der in signature.chain]
    logged_signature, time = _find_entry(signature, log_keys, needs_time=True)
    if logged_signature.verifier != signature.certificate:
        raise SignatureDefect("its log entry is of another certificate")
    return verify_certificate(certificate, chain, fulcio, time)


def _find_entry(
    signature: SigstoreSignature, log_keys: Mapping[str, PublicKey], *, needs_time: bool
) -> tuple[LoggedSignature, int]:
    """Return the first entry that a trusted log vouches for, and its time if that is needed."""
    if not signature.entries:
        raise SignatureDefect("it has no log entry, and the policy requires one")
    first_defect: SignatureDefect | None = None
    for entry in signature.entries:
        try:
            return _check_entry(signature, entry, log_keys, needs_time=needs_time)
        except SignatureDefect as defect:
            first_defect = first_defect or defect
    assert first_defect is not None
    raise first_defect


def _check_entry(
    signature: SigstoreSignature,
    entry: LogEntry,
    log_keys: Mapping[str, PublicKey],
    *,
    needs_time: bool,
) -> tuple[LoggedSignature, int]:
    logged_signature = read_body(entry.body)
    time = verify_entry(entry, log_keys)
    if time is None and needs_time:
        raise SignatureDefect("its log entry has no promise, so the time of signing is unproven")
    envelope_payload = signature.payload if signature.is_envelope else None
    logged_signature.check(signature.signature, signature.content, envelope_payload)
    return logged_signature, time or 0
