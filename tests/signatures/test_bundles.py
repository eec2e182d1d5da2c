"""Sigstore bundles claim the image of their statement, or the manifest that they sign."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from shiftergw.model.signatures import RejectedSignature, SigstoreKeys, VerifiedClaim
from shiftergw.signatures.sigstore import verify_sigstore
from tests.signatures.signers import (
    DIGEST,
    NOW,
    CosignSigner,
    RekorLog,
    as_blob,
    b64,
    compact,
    new_key,
    pre_authentication,
    sign,
    statement,
)

SIGNER = CosignSigner()
FURTHER_ENTRIES = [SIGNER.log.add(SIGNER.dsse_body(b"{}", bytes([i]))) for i in range(6)]
"""Entries of the log besides the one of a test: its proofs have several steps."""

MANIFEST = b'{"schemaVersion": 2}'


def reason(bundle: dict[str, Any] | bytes, keys: SigstoreKeys | None = None) -> str:
    """Return the reason for the rejection of a bundle by a policy with a key and a log."""
    result = verify_sigstore(as_blob(bundle), keys or SIGNER.keys(needs_log=True))
    assert isinstance(result, RejectedSignature), result
    return result.reason


def claim_of(bundle: dict[str, Any], keys: SigstoreKeys | None = None) -> VerifiedClaim:
    """Return the claim of an accepted bundle."""
    result = verify_sigstore(as_blob(bundle), keys or SIGNER.keys(needs_log=True))
    assert isinstance(result, VerifiedClaim), result
    return result


def change_value(bundle: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a bundle with another value at a path such as `dsseEnvelope/payload`."""
    document = copy.deepcopy(bundle)
    *parents, name = (int(part) if part.isdecimal() else part for part in path.split("/"))
    holder: Any = document
    for parent in parents:
        holder = holder[parent]
    if value is None:
        del holder[name]
    else:
        holder[name] = value
    return document


ENTRY = "verificationMaterial/tlogEntries/0"


@pytest.mark.parametrize("kind", ["dsse", "intoto", "hashedrekord"])
@pytest.mark.parametrize("missing", ["", "inclusionPromise", "inclusionProof"])
def test_right(kind: str, missing: str) -> None:
    """Each kind of log entry counts, with a promise, an inclusion proof, or both."""
    bundle = SIGNER.bundle(kind=kind)
    if missing:
        bundle = change_value(bundle, f"{ENTRY}/{missing}", None)
    claim = claim_of(bundle)
    assert (claim.manifest_digest, claim.docker_reference) == (DIGEST, "")


@pytest.mark.parametrize("suffix", ["+json;version=0.1", "+json;version=0.2", "+json;version=0.3"])
def test_older_versions(suffix: str) -> None:
    """The media types of all versions up to 0.3 are read."""
    media_type = f"application/vnd.dev.sigstore.bundle{suffix}"
    assert claim_of({**SIGNER.bundle(), "mediaType": media_type}).manifest_digest == DIGEST


def test_a_signature_of_the_manifest() -> None:
    """A bundle may sign the manifest itself: its digest is the claim."""
    claim = claim_of(SIGNER.message_bundle(MANIFEST))
    assert claim.manifest_digest == f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
    for kind in ("RSA", "P-384"):
        signer = CosignSigner(new_key(kind))
        assert claim_of(signer.message_bundle(MANIFEST), signer.keys()) == claim_of(
            signer.message_bundle(MANIFEST), signer.keys(needs_log=True)
        )


def test_a_signature_of_another_manifest() -> None:
    """The digest that the bundle names must be the one that was signed."""
    digest = b64(hashlib.sha256(b"another").digest())
    bundle = change_value(
        SIGNER.message_bundle(MANIFEST), "messageSignature/messageDigest/digest", digest
    )
    assert "other content" in reason(bundle)
    assert reason(bundle, SIGNER.keys()) == "none of the policy's keys signed it"


def test_ed25519_signs_no_digests() -> None:
    """An Ed25519 key signs the manifest instead of its digest, so its signature is refused."""
    signer = CosignSigner(new_key("Ed25519"))
    assert "Ed25519 signatures of manifests are not supported" in reason(
        signer.message_bundle(MANIFEST), signer.keys()
    )
    assert claim_of(signer.bundle(), signer.keys()).manifest_digest == DIGEST


def test_one_entry_of_several() -> None:
    """A bundle may have an entry of an unknown log beside the right one, in any order."""
    bundle = SIGNER.bundle()
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    foreign = RekorLog().add(b'{"kind": "dsse", "apiVersion": "0.0.1", "spec": {}}')
    for entries in ([foreign, entry], [entry, foreign]):
        two_entries = change_value(bundle, "verificationMaterial/tlogEntries", entries)
        assert claim_of(two_entries).manifest_digest == DIGEST


def with_payload(payload: bytes, payload_type: str | None = None) -> dict[str, Any]:
    """Return a bundle whose envelope has this payload, correctly signed and logged."""
    if payload_type is None:
        return SIGNER.bundle(payload)
    signature = sign(SIGNER.key, pre_authentication(payload, payload_type))
    bundle = change_value(SIGNER.bundle(payload), "dsseEnvelope/payloadType", payload_type)
    return change_value(bundle, "dsseEnvelope/signatures/0/sig", b64(signature))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"[]", "not a JSON object"),
        (compact(statement(predicateType="https://slsa.dev/provenance/v1")), "attestation, `https"),
        (compact(statement(_type="https://in-toto.io/Statement/v2")), "not an in-toto statement"),
        (compact(statement(subject=[])), "names no image"),
        (compact(statement(subject=[{"digest": {"sha512": "00"}}])), "`sha256` is absent"),
        (compact(statement(subject=[{"digest": {"sha256": "00"}}])), "by a digest"),
        (compact(statement(subject=[{}, {}])), "more than 1"),
        (compact(statement(subject={})), "wrong type"),
    ],
)
def test_odd_statements(payload: bytes, words: str) -> None:
    """A statement must name exactly one image, by its digest."""
    assert words in reason(with_payload(payload))
    assert words in reason(with_payload(payload), SIGNER.keys())


def test_another_payload_type() -> None:
    """An envelope of another type of payload is rejected, even with a valid signature."""
    assert "its envelope holds `text/plain`" in reason(
        with_payload(compact(statement()), "text/plain"), SIGNER.keys()
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle.v0.4+json", "unsupported type"),
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.3\n", "unsupported"),
        ("mediaType", None, "`mediaType` is absent"),
        ("verificationMaterial", None, "`verificationMaterial` is absent"),
        ("verificationMaterial/tlogEntries", None, "no log entry"),
        ("verificationMaterial/tlogEntries", [], "no log entry"),
        ("verificationMaterial/tlogEntries", [{}] * 9, "more than 8"),
        ("verificationMaterial/tlogEntries", [7], "wrong type"),
        ("verificationMaterial/tlogEntries", {}, "wrong type"),
        ("dsseEnvelope", None, "not exactly one signature"),
        ("messageSignature", {}, "not exactly one signature"),
        ("dsseEnvelope/signatures", [], "no signature"),
        ("dsseEnvelope/signatures", [{"sig": ""}, {"sig": ""}], "more than 1"),
        ("dsseEnvelope/signatures/0/sig", b64(b"other"), "another signature"),
        ("dsseEnvelope/signatures/0/sig", "a-_=", "not base64"),
        ("dsseEnvelope/payload", b64(compact(statement(predicate=1))), "other content"),
        ("dsseEnvelope/payload", "e30", "not base64"),
        (f"{ENTRY}/canonicalizedBody", b64(b"{}"), "`kind` is absent"),
        (
            f"{ENTRY}/canonicalizedBody",
            FURTHER_ENTRIES[0]["canonicalizedBody"],
            "does not lead to the root",
        ),
        (f"{ENTRY}/logId/keyId", b64(b"0" * 32), "a log that the policy does not name"),
        (f"{ENTRY}/logId", None, "`logId` is absent"),
        (f"{ENTRY}/integratedTime", str(NOW + 1), "did not sign the promise"),
        (f"{ENTRY}/integratedTime", "-1", "natural number"),
        (f"{ENTRY}/inclusionPromise", {"signedEntryTimestamp": b64(b"x")}, "did not sign the prom"),
        (f"{ENTRY}/inclusionPromise", 7, "wrong type"),
    ],
)
def test_wrong_bundles(path: str, value: Any, words: str) -> None:
    """A fault anywhere in a bundle is a rejection that names it."""
    assert words in reason(change_value(SIGNER.bundle(), path, value))


def test_another_entry_with_its_own_proofs() -> None:
    """An entry of another signature in the right log is rejected."""
    bundle = change_value(SIGNER.bundle(), ENTRY.removesuffix("/0"), [FURTHER_ENTRIES[2]])
    assert "another signature" in reason(bundle)


@pytest.mark.parametrize(
    ("kind", "version"), [("hashedrekord", "0.0.2"), ("dsse", "0.0.2"), ("intoto", "0.0.1")]
)
def test_kinds_of_entries_that_are_not_read(kind: str, version: str) -> None:
    """Entries of Rekor v2, and of kinds that cosign no longer writes, are refused with a reason."""
    entry = SIGNER.log.add(compact({"kind": kind, "apiVersion": version, "spec": {}}))
    bundle = change_value(SIGNER.bundle(), ENTRY.removesuffix("/0"), [entry])
    assert reason(bundle) == f"its log entry is of the unsupported kind `{kind} {version}`"


def test_neither_promise_nor_proof() -> None:
    """An entry without a promise and a proof does not count."""
    bundle = change_value(SIGNER.bundle(), f"{ENTRY}/inclusionPromise", None)
    bundle = change_value(bundle, f"{ENTRY}/inclusionProof", None)
    assert "neither a promise nor an inclusion proof" in reason(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\x00",
        b'{"mediaType": "a", "mediaType": "b"}',
        b"[" * 300_000,
        b'{"a":' * 200_000,
        b"{" + b'"a": {},' * 100_000 + b'"b": 1}',
        b" " * (1 << 20) + b"{}",
    ],
)
def test_bombs(content: bytes) -> None:
    """Documents that are not bundles are rejected, however deep, wide or long."""
    assert reason(content).startswith("its ")


def test_truncated() -> None:
    """A truncated bundle is rejected."""
    content = json.dumps(SIGNER.bundle()).encode()
    for size in range(0, len(content), 97):
        assert reason(content[:size])


def every_value(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return the paths of all strings in a document, and the strings."""
    if isinstance(value, dict):
        return [pair for name in value for pair in every_value(value[name], f"{path}/{name}")]
    if isinstance(value, list):
        return [pair for i, item in enumerate(value) for pair in every_value(item, f"{path}/{i}")]
    return [(path.removeprefix("/"), value)] if isinstance(value, str) else []


UNPROVEN = {"dsseEnvelope/signatures/0/keyid", "verificationMaterial/publicKey/hint"}
"""Hints, which nothing depends on."""


@pytest.mark.parametrize("make", [SIGNER.bundle, lambda: SIGNER.message_bundle(MANIFEST)])
def test_every_value_counts(make: Callable[[], dict[str, Any]]) -> None:
    """A changed character in any value makes the bundle invalid."""
    bundle = make()
    count = 0
    for path, text in every_value(bundle):
        if path in UNPROVEN or "kindVersion" in path or not text:
            continue
        middle = len(text) // 2
        letter = "B" if text[middle] != "B" else "C"
        letter = letter if not text.isdecimal() else str((int(text[middle]) + 1) % 10)
        count += 1
        assert reason(change_value(bundle, path, text[:middle] + letter + text[middle + 1 :])), path
    assert count > 12
