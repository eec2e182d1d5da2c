"""Attachments of cosign are accepted only for the policy's keys and logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from cryptography.hazmat.primitives import hashes

from shiftergw.errors import ConfigurationError
from shiftergw.model.signatures import (
    GpgKeys,
    RejectedSignature,
    SignatureBlob,
    SigstoreKeys,
    VerifiedClaim,
)
from shiftergw.plumbing.threads import Threads
from shiftergw.signatures.sigstore import SigstoreVerifier, verify_sigstore
from tests.signatures.signers import (
    DIGEST,
    NOW,
    REFERENCE,
    CertificateIssuer,
    CosignSigner,
    RekorLog,
    b64,
    compact,
    new_key,
    public_pem,
    sign,
    simple_signing,
)

SIGNATURE = "dev.cosignproject.cosign/signature"
ENTRY = "dev.sigstore.cosign/bundle"


@pytest.fixture(scope="module")
def signer() -> CosignSigner:
    """Return a signer with a key."""
    return CosignSigner()


def reason(blob: SignatureBlob, keys: SigstoreKeys) -> str:
    """Return the reason for the rejection of a signature."""
    result = verify_sigstore(blob, keys)
    assert isinstance(result, RejectedSignature), result
    return result.reason


def with_entry(blob: SignatureBlob, change: Callable[[dict[str, Any]], object]) -> SignatureBlob:
    """Return an attachment whose log entry was changed."""
    document = json.loads(blob.annotations[ENTRY])
    change(document)
    return replace(blob, annotations={**blob.annotations, ENTRY: json.dumps(document)})


# By key


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("P-256", None),
        ("P-384", None),
        ("P-384", hashes.SHA384()),
        ("P-521", hashes.SHA512()),
        ("RSA", None),
        ("Ed25519", None),
    ],
)
@pytest.mark.parametrize("needs_log", [False, True])
def test_right(kind: str, algorithm: Any, needs_log: bool) -> None:
    """A signature by a key of the policy claims the digest and the reference of its payload."""
    signer = CosignSigner(new_key(kind))
    blob = signer.attach(algorithm=algorithm)
    claim = verify_sigstore(blob, signer.keys(needs_log=needs_log))
    assert isinstance(claim, VerifiedClaim), claim
    assert (claim.manifest_digest, claim.docker_reference) == (DIGEST, REFERENCE)
    assert claim.identity.startswith("sha256:")


def test_several_keys(signer: CosignSigner) -> None:
    """One of the policy's keys is enough, and the claim names it; so does one of its logs."""
    keys = (public_pem(new_key()), public_pem(signer.key))
    logs = (RekorLog().pem, signer.log.pem)
    first = verify_sigstore(signer.attach(), SigstoreKeys(keys))
    second = verify_sigstore(signer.attach(), SigstoreKeys(keys, None, logs))
    assert first == second == verify_sigstore(signer.attach(), signer.keys())


def test_members_that_signers_add(signer: CosignSigner) -> None:
    """A payload may have members under `optional`."""
    payload = {**simple_signing(), "optional": {"creator": "skopeo", "timestamp": NOW}}
    assert isinstance(verify_sigstore(signer.attach(payload), signer.keys()), VerifiedClaim)


def test_a_key_of_someone_else(signer: CosignSigner) -> None:
    """A signature by another key is rejected, with and without a log."""
    stranger = CosignSigner(log=signer.log)
    assert reason(stranger.attach(), signer.keys()) == "none of the policy's keys signed it"
    assert "of a key that the policy does not name" in reason(
        stranger.attach(), signer.keys(needs_log=True)
    )


def test_a_changed_payload(signer: CosignSigner) -> None:
    """A signature is not valid for another payload, which has no log entry either."""
    blob = replace(signer.attach(), payload=compact(simple_signing(reference="evil")))
    assert reason(blob, signer.keys()) == "none of the policy's keys signed it"
    assert "a signature of other content" in reason(blob, signer.keys(needs_log=True))


def test_another_signature_of_the_entry(signer: CosignSigner) -> None:
    """The log must have recorded this signature, not another one of the same payload."""
    blob = signer.attach()
    fresh = b64(sign(signer.key, blob.payload)).encode()
    assert isinstance(verify_sigstore(replace(blob, signature=fresh), signer.keys()), VerifiedClaim)
    assert "another signature" in reason(
        replace(blob, signature=fresh), signer.keys(needs_log=True)
    )


def test_an_entry_does_not_replace_the_signature(signer: CosignSigner) -> None:
    """A log does not verify entries: a wrong signature with an entry is still wrong."""
    blob = signer.attach()
    signature = b64(b"forged").encode()
    body = signer.hashedrekord(blob.payload, b"forged")
    annotations = {ENTRY: signer.log.cosign_entry(body)}
    blob = replace(blob, signature=signature, annotations=annotations)
    assert reason(blob, signer.keys(needs_log=True)) == "none of the policy's keys signed it"


def test_no_entry_where_a_log_is_required(signer: CosignSigner) -> None:
    """A signature without a log entry is rejected if the policy names keys of logs."""
    assert "no log entry" in reason(signer.attach(has_entry=False), signer.keys(needs_log=True))


def test_an_entry_of_another_log(signer: CosignSigner) -> None:
    """An entry of a log that the policy does not name is rejected."""
    relocated_signer = CosignSigner(signer.key)
    keys = signer.keys(needs_log=True)
    assert "a log that the policy does not name" in reason(relocated_signer.attach(), keys)
    forgery = with_entry(
        relocated_signer.attach(), lambda entry: entry["Payload"].update(logID=signer.log.id.hex())
    )
    assert "the log did not sign the promise" in reason(forgery, keys)


def test_an_entry_of_another_signature(signer: CosignSigner) -> None:
    """The entry of another payload by the same signer is rejected."""
    blob = signer.attach()
    entry = signer.attach(simple_signing(reference="b")).annotations[ENTRY]
    blob = replace(blob, annotations={**blob.annotations, ENTRY: entry})
    assert "another signature" in reason(blob, signer.keys(needs_log=True))


@pytest.mark.parametrize("name", ["integratedTime", "logIndex"])
def test_a_changed_entry(signer: CosignSigner, name: str) -> None:
    """The promise covers time and index of the entry."""
    blob = with_entry(signer.attach(), lambda entry: entry["Payload"].update({name: 5}))
    assert "did not sign the promise" in reason(blob, signer.keys(needs_log=True))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "rekord", "apiVersion": "0.0.1", "spec": {}}, "unsupported kind `rekord 0.0.1`"),
        ({"kind": "hashedrekord", "apiVersion": "0.0.2", "spec": {}}, "`hashedrekord 0.0.2`"),
        ({"kind": "hashedrekord", "apiVersion": "0.0.1"}, "`spec` is absent"),
        ({"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": {"signature": {}}}, "`data`"),
        ({"kind": "dsse", "apiVersion": "0.0.1", "spec": {"signatures": []}}, "no signature"),
    ],
)
def test_bodies_that_are_not_read(signer: CosignSigner, body: dict[str, Any], words: str) -> None:
    """Entries of other kinds, and incomplete ones, are rejected with a reason."""
    blob = signer.attach()
    entry = signer.log.cosign_entry(compact(body))
    blob = replace(blob, annotations={ENTRY: entry})
    assert words in reason(blob, signer.keys(needs_log=True))


def test_an_envelope_in_the_log(signer: CosignSigner) -> None:
    """An entry of an envelope is no proof for an attachment, which has no envelope."""
    blob = signer.attach()
    signature = sign(signer.key, blob.payload)
    for payload in (b"", blob.payload):
        entry = signer.log.cosign_entry(signer.dsse_body(payload, signature))
        logged_blob = replace(blob, signature=b64(signature).encode(), annotations={ENTRY: entry})
        assert "other content" in reason(logged_blob, signer.keys(needs_log=True))


@pytest.mark.parametrize("hash_name", ["md5", "sha1", "sha384", ""])
def test_a_body_with_another_hash(signer: CosignSigner, hash_name: str) -> None:
    """A digest by a weak, unknown or wrong hash does not match."""
    blob = signer.attach()
    signature = sign(signer.key, blob.payload)
    body = signer.hashedrekord(blob.payload, signature, algorithm=hash_name, value="00" * 16)
    blob = replace(
        blob,
        signature=b64(signature).encode(),
        annotations={ENTRY: signer.log.cosign_entry(body)},
    )
    assert "other content" in reason(blob, signer.keys(needs_log=True))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"critical": {}, "critical": {}}', "not JSON"),
        (b'{"critical": NaN}', "not JSON"),
        (b'{"critical": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
        (compact(simple_signing(type="atomic container signature")), "of the type"),
        (compact(simple_signing(type=7)), "`type` has the wrong type"),
        (compact(simple_signing(image={})), "unknown critical members"),
        (compact(simple_signing(extra={})), "unknown critical members"),
        (compact({**simple_signing(), "more": 1}), "unknown members"),
        (compact({"critical": {}, "optional": None}), "unknown critical members"),
        (compact(simple_signing("sha256:5A")), "by a digest"),
        (compact(simple_signing("../../etc")), "by a digest"),
        (compact(simple_signing(identity={"docker-reference": None})), "wrong type"),
    ],
)
def test_odd_payloads(signer: CosignSigner, payload: bytes, words: str) -> None:
    """A malformed payload is rejected, although its signature is right."""
    assert words in reason(signer.attach(payload), signer.keys())


@pytest.mark.parametrize(
    "text", ["", "MEQ", "MEQC*IG==", "MEQCIG==\n", " MEQCIA==", "MEQCIB==", "ME-_", "\u00e4"]
)
def test_odd_base64(signer: CosignSigner, text: str) -> None:
    """A signature must be canonical base64 of the right bytes."""
    blob = replace(signer.attach(), signature=text.encode())
    words = "base64" if text else "no signature in its annotations"
    assert words in reason(blob, signer.keys())


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "{}",
        "[]",
        '{"SignedEntryTimestamp": "", "Payload": {}}',
        '{"SignedEntryTimestamp": "", "Payload": {}, "More": 1}',
        '{"SignedEntryTimestamp": 1, "Payload": []}',
        "{" * 200_000,
        " " * (1 << 20) + "{}",
        "\ud800",
    ],
)
def test_odd_entries(signer: CosignSigner, entry: str) -> None:
    """A malformed log entry is rejected if the policy needs an entry."""
    blob = replace(signer.attach(), annotations={ENTRY: entry})
    assert isinstance(verify_sigstore(blob, signer.keys(needs_log=True)), RejectedSignature)


@pytest.mark.parametrize(
    "change",
    [
        {"integratedTime": -1},
        {"integratedTime": 1.5},
        {"integratedTime": True},
        {"integratedTime": 2**53},
        {"logID": "zz"},
        {"logIndex": "01"},
        {"body": "?"},
        {"more": 1},
    ],
)
def test_odd_members_of_entries(signer: CosignSigner, change: dict[str, Any]) -> None:
    """Members of an entry in another form are rejected."""
    blob = with_entry(signer.attach(), lambda entry: entry["Payload"].update(change))
    assert "the policy" not in reason(blob, signer.keys(needs_log=True))
    assert "sign" not in reason(blob, signer.keys(needs_log=True))


def every_shorter(text: bytes) -> Iterator[bytes]:
    """Yield some beginnings of a text."""
    return (text[:size] for size in range(0, len(text), 1 + len(text) // 20))


def test_truncated(signer: CosignSigner) -> None:
    """A truncated payload, signature or entry is rejected."""
    blob = signer.attach()
    keys = signer.keys(needs_log=True)
    candidates = [replace(blob, payload=part) for part in every_shorter(blob.payload)]
    candidates += [replace(blob, signature=part) for part in every_shorter(blob.signature)]
    entry = blob.annotations[ENTRY].encode()
    candidates += [
        replace(blob, annotations={ENTRY: part.decode()}) for part in every_shorter(entry)
    ]
    assert len(candidates) > 50
    for candidate in candidates:
        assert isinstance(verify_sigstore(candidate, keys), RejectedSignature)


# Keys of the policy


@pytest.mark.parametrize("kind", ["RSA-1024", "secp256k1"])
def test_weak_keys(kind: str) -> None:
    """Keys of too few bits, and of other curves, make the policy unusable."""
    signer = CosignSigner(new_key(kind))
    with pytest.raises(ConfigurationError, match="a public key: "):
        verify_sigstore(signer.attach(), signer.keys())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (SigstoreKeys(), "either public keys or Fulcio"),
        (SigstoreKeys((b"garbage",)), "not a public key in PEM"),
        (SigstoreKeys((b"",)), "not a public key in PEM"),
    ],
)
def test_unusable_keys(signer: CosignSigner, keys: SigstoreKeys, words: str) -> None:
    """Keys that cannot be used are an error of the policy, never a rejected signature."""
    with pytest.raises(ConfigurationError, match=words):
        verify_sigstore(signer.attach(), keys)


def test_fulcio_beside_keys(signer: CosignSigner) -> None:
    """A policy names keys or Fulcio, not both; and Fulcio needs a log."""
    trust = CertificateIssuer().trust
    keys = signer.keys(needs_log=True)
    with pytest.raises(ConfigurationError, match="either public keys or Fulcio"):
        verify_sigstore(signer.attach(), replace(keys, fulcio=trust))
    with pytest.raises(ConfigurationError, match="keys of Rekor too"):
        verify_sigstore(signer.attach(), SigstoreKeys((), trust))


def test_another_key_of_rekor(signer: CosignSigner) -> None:
    """A certificate is refused as the public key of a log."""
    keys = replace(signer.keys(), rekor_keys=(CertificateIssuer().chain,))
    with pytest.raises(ConfigurationError, match="a public key of Rekor"):
        verify_sigstore(signer.attach(), keys)


def test_other_kinds(signer: CosignSigner) -> None:
    """Signatures and keys of OpenPGP are refused by this verifier."""
    assert "not a sigstore" in reason(SignatureBlob("simple", b""), signer.keys())
    result = verify_sigstore(signer.attach(), GpgKeys((b"",)))
    assert isinstance(result, RejectedSignature)


# The port


@pytest_twisted.ensureDeferred
async def test_verifier(signer: CosignSigner, threads: Threads) -> None:
    """The verifier gives the same answers from a thread, and errors of the policy, too."""
    verifier = SigstoreVerifier(threads)
    claim = await verifier.verify(signer.attach(), signer.keys(needs_log=True))
    assert isinstance(claim, VerifiedClaim)
    stranger = await verifier.verify(CosignSigner().attach(), signer.keys())
    assert isinstance(stranger, RejectedSignature)
    with pytest.raises(ConfigurationError):
        await verifier.verify(signer.attach(), SigstoreKeys())
