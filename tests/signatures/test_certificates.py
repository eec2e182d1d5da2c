"""Keyless signatures are valid for the signer in the policy, at the time of the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from shiftergw.errors import ConfigurationError
from shiftergw.model.signatures import (
    FulcioAuthority,
    RejectedSignature,
    SigstoreKeys,
    VerifiedClaim,
)
from shiftergw.signatures.sigstore import verify_sigstore
from tests.signatures.signers import (
    DIGEST,
    EMAIL,
    ISSUER,
    NOW,
    REFERENCE,
    CertificateIssuer,
    CosignSigner,
    RekorLog,
    as_blob,
    b64,
    der,
    new_key,
    pem,
)
from tests.tracing import without_tracing

AUTHORITY = CertificateIssuer()
LOG = RekorLog()
NAME_CONSTRAINTS = (x509.NameConstraints([x509.DNSName("example.org")], None), False)
SERVER_AUTH = (ExtendedKeyUsageOID.SERVER_AUTH,)


def keyless(authority: CertificateIssuer = AUTHORITY, **options: Any) -> CosignSigner:
    """Return a signer with a new key and a certificate; `options` go to `certify`."""
    key = new_key()
    return CosignSigner(key, LOG, authority.certify(key, **options), authority.chain)


def trust(**changes: Any) -> SigstoreKeys:
    """Return the members of a policy that trusts `EMAIL` by `AUTHORITY`, in `LOG`."""
    return SigstoreKeys((), replace(AUTHORITY.trust, **changes), (LOG.pem,))


def reason(signer: CosignSigner, keys: SigstoreKeys | None = None, **options: Any) -> str:
    """Return the reason for the rejection of an attachment of this signer."""
    result = verify_sigstore(signer.attach(**options), keys or trust())
    assert isinstance(result, RejectedSignature), result
    return result.reason


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"issuer_v1": ""},
        {"issuer_v2": ""},
        {"purposes": (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH)},
    ],
)
def test_right(options: dict[str, Any]) -> None:
    """The signer's e-mail address, the issuer of the login, the authority and the log are right."""
    claim = verify_sigstore(keyless(**options).attach(), trust())
    assert claim == VerifiedClaim(f"{EMAIL} ({ISSUER})", REFERENCE, DIGEST)


def test_intermediates_of_the_policy() -> None:
    """The policy may name the intermediate itself, or both: it is not in bundles."""
    signer = replace(keyless(), chain=b"")
    assert "certificate authority" in reason(signer)
    for ca in (pem(AUTHORITY.intermediate), AUTHORITY.chain):
        assert isinstance(verify_sigstore(signer.attach(), trust(ca=ca)), VerifiedClaim)


def test_the_time_is_that_of_the_log() -> None:
    """A certificate must have been valid at the time of the log; it may have expired since."""
    signer = keyless(begin=NOW - 60, minutes=10)
    assert isinstance(verify_sigstore(signer.attach(time=NOW + 539), trust()), VerifiedClaim)
    assert "not valid when the log took" in reason(signer, time=NOW + 541)
    assert "not valid when the log took" in reason(signer, time=NOW - 61)


def test_the_authority_is_valid_at_that_time() -> None:
    """Anchor and intermediate must have been valid when the log took the signature."""
    early = keyless(begin=NOW - 3600, minutes=600)
    assert "certificate authority" in reason(early, time=NOW - 1800)
    brief = CertificateIssuer(minutes=1)
    keys = replace(trust(), fulcio=brief.trust)
    assert "certificate authority" in reason(keyless(brief), keys, time=NOW + 100)


def test_a_time_beyond_all_calendars() -> None:
    """A time of a log outside of the calendar is rejected."""
    assert "after the year 9999" in reason(keyless(), time=2**52)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"email": "eve@example.org"}, "its signer is `eve@example.org"),
        ({"email": EMAIL.upper()}, "its signer is"),
        ({"email": f"{EMAIL}.evil.example"}, "its signer is"),
        ({"email": ""}, "its signer is `nobody"),
        ({"issuer_v1": "https://evil.example"}, "clearly name where"),
        ({"issuer_v1": "", "issuer_v2": ""}, "clearly name where"),
        ({"issuer_v1": "https://a.example", "issuer_v2": "https://a.example"}, "not at the policy"),
        ({"issuer_v1": "", "issuer_v2": f"{ISSUER}/"}, "not at the policy"),
        ({"purposes": None}, "not for signing code"),
        ({"purposes": SERVER_AUTH}, "not for signing code"),
        ({"purposes": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, "not for signing code"),
        ({"is_authority": True, "is_for_certificates": False}, "that of an authority"),
        ({"is_for_certificates": True}, "not for signatures"),
        ({"algorithm": hashes.SHA224()}, "certificate authority"),
    ],
)
def test_wrong_certificates(options: dict[str, Any], words: str) -> None:
    """A certificate of the right authority with wrong content is rejected with a reason."""
    assert words in reason(keyless(**options))


def unknown_extension(name: str) -> tuple[x509.UnrecognizedExtension, bool]:
    """Return an unknown critical extension."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(name), b"\x05\x00"), True


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        (unknown_extension("1.2.3.4"), "unknown critical extension 1.2.3.4"),
        (NAME_CONSTRAINTS, "name constraints"),
        (
            (
                x509.UnrecognizedExtension(
                    x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c\x80" + b"a" * 128
                ),
                False,
            ),
            "malformed extension",
        ),
    ],
)
def test_extensions(extension: tuple[x509.ExtensionType, bool], words: str) -> None:
    """Unknown critical extensions and name constraints are rejected, also in the chain."""
    assert words in reason(keyless(issuer_v2="", extensions=(extension,)))
    if "malformed" not in words:
        authority = CertificateIssuer(extensions=(extension,))
        assert words in reason(keyless(authority), replace(trust(), fulcio=authority.trust))


def test_an_authority_of_someone_else() -> None:
    """A certificate of another authority is rejected, even if that has the same names."""
    stranger = CertificateIssuer()
    assert "certificate authority" in reason(keyless(stranger))
    impostor = replace(keyless(stranger), chain=AUTHORITY.chain)
    assert "certificate authority" in reason(impostor)


@pytest.mark.parametrize(
    "options",
    [
        {"is_authority": False, "is_for_certificates": True, "path_length": None},
        {"is_for_certificates": False},
        {"purposes": SERVER_AUTH},
        {"algorithm": hashes.SHA224()},
        {"minutes": 0},
        {"root": {"minutes": 0}},
        {"root": {"is_authority": False, "is_for_certificates": True}},
        {"root": {"is_for_certificates": False}},
        {"root": {"path_length": 0}},
    ],
)
def test_wrong_intermediates(options: dict[str, Any]) -> None:
    """An authority that may not certify signers of code is rejected, and its root as well."""
    authority = CertificateIssuer(**options)
    keys = replace(trust(), fulcio=authority.trust)
    assert "certificate authority" in reason(keyless(authority), keys)


@pytest.mark.parametrize(("path_length", "is_right"), [(0, False), (1, True), (None, True)])
def test_path_lengths(path_length: int | None, is_right: bool) -> None:
    """An authority with a path length of 0 may not issue further authorities."""
    upper = CertificateIssuer(path_length=path_length)
    lower = CertificateIssuer()
    lower.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lower")])
    middle = upper.certificate(lower.key, lower.name, upper.key, upper.name, is_authority=True)
    signer = replace(keyless(lower), chain=pem(middle) + upper.chain)
    result = verify_sigstore(signer.attach(), replace(trust(), fulcio=upper.trust))
    assert isinstance(result, VerifiedClaim) is is_right


def test_a_signer_that_certifies() -> None:
    """A signer's certificate cannot certify another signer."""
    first, key = keyless(), new_key()
    second = AUTHORITY.certificate(
        key, x509.Name([]), first.key, x509.Name([]), email=EMAIL, issuer_v1=ISSUER
    )
    assert first.certificate is not None
    chain = pem(first.certificate) + AUTHORITY.chain
    assert "certificate authority" in reason(CosignSigner(key, LOG, second, chain))


def test_another_certificate_in_the_log() -> None:
    """The log must have recorded this certificate, not another one of the signer."""
    signer = keyless()
    renewal = replace(signer, certificate=AUTHORITY.certify(signer.key))
    blob = replace(signer.attach(), certificate=renewal.attach().certificate)
    result = verify_sigstore(blob, trust())
    assert result == RejectedSignature(
        "its log entry is of another certificate", f"{EMAIL} ({ISSUER})"
    )


def test_the_key_of_someone_else() -> None:
    """A signature by another key than the certificate's is rejected, whatever the log recorded."""
    thief = replace(keyless(), key=new_key())
    assert "the key of its certificate did not sign it" in reason(thief)


@pytest.mark.parametrize("kind", ["RSA-1024", "secp256k1"])
def test_weak_keys(kind: str) -> None:
    """A certificate of a weak key is rejected."""
    key = new_key(kind)
    signer = CosignSigner(key, LOG, AUTHORITY.certify(key), AUTHORITY.chain)
    assert "the key of its certificate is not accepted" in reason(signer)


def test_no_certificate() -> None:
    """A signature by a key, without a certificate, does not fulfill a policy for Fulcio."""
    assert reason(CosignSigner(log=LOG)) == "it has no certificate"


def test_no_entry() -> None:
    """Without a log entry the time of the signature is unknown, so it is rejected."""
    assert "no log entry" in reason(keyless(), has_entry=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:200],
        lambda text: text + text,
        lambda text: b"x" + text,
        lambda text: text.replace(b"CERTIFICATE", b"PUBLIC KEY"),
        lambda text: text.replace(b"MII", b"AAA", 1),
        lambda text: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        lambda text: b"-----BEGIN CERTIFICATE-----\n" * 30_000,
    ],
)
def test_odd_certificates(change: Callable[[bytes], bytes]) -> None:
    """A certificate is one PEM block; an odd chain is rejected, too."""
    signer = keyless()
    blob = signer.attach()
    odd = verify_sigstore(replace(blob, certificate=change(blob.certificate)), trust())
    assert isinstance(odd, RejectedSignature)
    if change(blob.certificate) and change(b"ab") != b"abab":
        odd = verify_sigstore(replace(blob, chain=change(blob.certificate)), trust())
        assert isinstance(odd, RejectedSignature)


def in_pem(content: bytes) -> bytes:
    """Return DER as a PEM certificate."""
    head, tail = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    return head + b64(content).encode() + tail


@without_tracing
def test_every_byte_counts() -> None:
    """No changed byte of the signer's certificate or of its chain is accepted, or an error."""
    signer = keyless()
    blob = signer.attach()
    assert signer.certificate is not None
    leaf, intermediate = der(signer.certificate), der(AUTHORITY.intermediate)
    assert isinstance(
        verify_sigstore(
            replace(blob, certificate=in_pem(leaf), chain=in_pem(intermediate)), trust()
        ),
        VerifiedClaim,
    )
    # The number of unused bits at the end of the signature: 1 is as good if the last bit is 0.
    padding = len(intermediate) - len(AUTHORITY.intermediate.signature) - 1
    assert intermediate[padding] == 0
    for flip in (0x01, 0x80):
        for place in range(0, len(leaf), 2):
            odd_leaf = bytearray(leaf)
            odd_leaf[place] ^= flip
            result = verify_sigstore(replace(blob, certificate=in_pem(bytes(odd_leaf))), trust())
            assert isinstance(result, RejectedSignature), place
        for place in {*range(0, len(intermediate), 2)} - {padding}:
            odd_chain = bytearray(intermediate)
            odd_chain[place] ^= flip
            result = verify_sigstore(replace(blob, chain=in_pem(bytes(odd_chain))), trust())
            assert isinstance(result, RejectedSignature), place


def test_long_chains() -> None:
    """The length of a chain has a limit."""
    signer = replace(keyless(), chain=pem(AUTHORITY.root) * 9)
    assert "more than 8 PEM blocks" in reason(signer)


@pytest.mark.parametrize(
    "authority",
    [
        FulcioAuthority(b"", ISSUER, EMAIL),
        FulcioAuthority(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "", ""),
        CertificateIssuer({"extensions": (NAME_CONSTRAINTS,)}).trust,
        replace(AUTHORITY.trust, oidc_issuer=""),
        replace(AUTHORITY.trust, subject_email=""),
    ],
)
def test_unusable_authorities(authority: FulcioAuthority) -> None:
    """An authority that cannot be used is an error of the policy."""
    with pytest.raises(ConfigurationError, match="the certificate authority: it "):
        verify_sigstore(keyless().attach(), SigstoreKeys((), authority, (LOG.pem,)))


# Bundles


def with_chain(bundle: dict[str, Any], *certificates: x509.Certificate) -> dict[str, Any]:
    """Return a bundle in the form of version 0.2, with a chain."""
    document = json.loads(json.dumps(bundle))
    material = document["verificationMaterial"]
    leaf = material.pop("certificate")
    chain = [leaf, *({"rawBytes": b64(der(certificate))} for certificate in certificates)]
    material["x509CertificateChain"] = {"certificates": chain}
    return {**document, "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"}


@pytest.mark.parametrize("kind", ["dsse", "intoto", "hashedrekord"])
def test_bundles(kind: str) -> None:
    """A bundle has the certificate alone, or, in older versions, with its chain."""
    bundle = keyless().bundle(kind=kind)
    claim = VerifiedClaim(f"{EMAIL} ({ISSUER})", "", DIGEST)
    assert verify_sigstore(as_blob(bundle), trust(ca=AUTHORITY.chain)) == claim
    older = with_chain(bundle, AUTHORITY.intermediate)
    assert verify_sigstore(as_blob(older), trust()) == claim


def test_a_proof_has_no_time() -> None:
    """An inclusion proof has no time, so it does not prove when the certificate was used."""
    bundle = keyless().bundle()
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    del entry["inclusionPromise"]
    result = verify_sigstore(as_blob(bundle), trust(ca=AUTHORITY.chain))
    assert isinstance(result, RejectedSignature)
    assert "the time of signing is unproven" in result.reason
