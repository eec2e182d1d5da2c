"""Signatures that cosign and other clients made, with the keys of the public log and authority.

The files and their origins are described in `vectors/NOTICE`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

from shiftergw.model.signatures import (
    FulcioAuthority,
    RejectedSignature,
    SignatureBlob,
    SigstoreKeys,
    VerifiedClaim,
)
from shiftergw.signatures.sigstore import verify_sigstore

VECTORS = Path(__file__).parent / "vectors"
LOG = (VECTORS / "log-key.pem").read_bytes()
KEY = (VECTORS / "key.pem").read_bytes()
LOGGED_KEY = (VECTORS / "logged-key.pem").read_bytes()
BUNDLE_KEY = (VECTORS / "bundle-key.pem").read_bytes()
AUTHORITY = (VECTORS / "authority.pem").read_bytes()
ISSUER = "https://github.com/login/oauth"
IMAGE = "sha256:0489474da8ea22426ece86ace6c1c0026ab2fd3cdfbbd62b7e94650266c37d9a"


def attachment(name: str) -> SignatureBlob:
    """Return an attachment in the form of a fetched one."""
    document = json.loads((VECTORS / f"attachment-{name}.json").read_bytes())
    annotations = document["annotations"]
    return SignatureBlob(
        "cosign",
        base64.b64decode(document["payload"]),
        annotations["dev.cosignproject.cosign/signature"].encode(),
        annotations.get("dev.sigstore.cosign/certificate", "").encode(),
        annotations.get("dev.sigstore.cosign/chain", "").encode(),
        annotations,
    )


def bundle(name: str) -> SignatureBlob:
    """Return a bundle in the form of a fetched one."""
    return SignatureBlob("bundle", (VECTORS / f"bundle-{name}.json").read_bytes())


def keyless(email: str, issuer: str = ISSUER, ca: bytes = AUTHORITY) -> SigstoreKeys:
    """Return the keys of a policy for a keyless signer."""
    return SigstoreKeys((), FulcioAuthority(ca, issuer, email), (LOG,))


def test_by_key() -> None:
    """A signature of `cosign sign --key` without a log is accepted."""
    claim = verify_sigstore(attachment("by-key"), SigstoreKeys((LOGGED_KEY, KEY)))
    assert isinstance(claim, VerifiedClaim)
    assert claim.docker_reference == "192.168.64.2:5000/cosign-signed-single-sample"
    assert claim.manifest_digest.startswith("sha256:634a8f35b5f16dcf")


def test_by_logged_key() -> None:
    """A signature of `cosign sign --key` with the public log is accepted."""
    blob = attachment("by-logged-key")
    claim = verify_sigstore(blob, SigstoreKeys((KEY, LOGGED_KEY), None, (LOG,)))
    assert isinstance(claim, VerifiedClaim)
    assert claim.docker_reference == "192.168.64.2:5000/cosign-signed/key-1"
    assert claim.manifest_digest == IMAGE
    assert isinstance(verify_sigstore(blob, SigstoreKeys((KEY,), None, (LOG,))), RejectedSignature)


def test_keyless() -> None:
    """A keyless signature is accepted by its log entry, although its certificate has expired."""
    blob = attachment("keyless")
    claim = verify_sigstore(blob, keyless("mitr@redhat.com"))
    reference = "192.168.64.2:5000/cosign-signed/fulcio-rekor-1"
    assert claim == VerifiedClaim(f"mitr@redhat.com ({ISSUER})", reference, IMAGE)
    result = verify_sigstore(blob, keyless("someone@redhat.com"))
    assert isinstance(result, RejectedSignature)
    assert result.identity == f"mitr@redhat.com ({ISSUER})"


def test_bundle_by_key() -> None:
    """A bundle of version 0.3 that signs a file, with promise and proof of the public log."""
    claim = verify_sigstore(bundle("by-key"), SigstoreKeys((BUNDLE_KEY,), None, (LOG,)))
    assert isinstance(claim, VerifiedClaim)
    assert claim.manifest_digest.startswith("sha256:a0cfc71271d6e278")
    assert claim.docker_reference == ""


def test_bundle_of_an_attestation() -> None:
    """A keyless attestation is valid except for the signer, who has no e-mail address."""
    blob, issuer = bundle("of-attestation"), "https://token.actions.githubusercontent.com"
    ca = AUTHORITY + attachment("keyless").chain
    result = verify_sigstore(blob, keyless("someone@example.org", issuer, ca))
    assert isinstance(result, RejectedSignature)
    assert result.reason.startswith("its signer is `https://github.com/sigstore-conformance/")
    document = json.loads(blob.payload)
    (entry,) = document["verificationMaterial"]["tlogEntries"]
    entry["inclusionProof"]["hashes"][3] = entry["inclusionProof"]["hashes"][4]
    forgery = replace(blob, payload=json.dumps(document).encode())
    result = verify_sigstore(forgery, keyless("someone@example.org", issuer, ca))
    assert isinstance(result, RejectedSignature)
    assert "does not lead to the root" in result.reason
