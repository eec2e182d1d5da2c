"""The two forms of sigstore signatures, read into one: cosign attachments and sigstore bundles.

A cosign attachment signs a small JSON document that names a manifest and a docker reference. A
bundle signs either an in-toto statement about a manifest, or the manifest itself; it names no
docker reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shiftergw.errors import BadRequest
from shiftergw.model.images import Digest
from shiftergw.model.signatures import SIGNATURE_PREDICATE, SignatureBlob
from shiftergw.signatures.certificates import MOST_INTERMEDIATES
from shiftergw.signatures.documents import (
    SignatureDefect,
    base64_member,
    decode_base64,
    decode_pem,
    member,
    objects,
    optional_object,
    quote,
    read_object,
)
from shiftergw.signatures.public_keys import SignedContent
from shiftergw.signatures.transparency import LogEntry, read_bundle_entry, read_cosign_entry

LOG_ENTRY_ANNOTATION = "dev.sigstore.cosign/bundle"

_SIMPLE_SIGNING_TYPE = "cosign container image signature"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_STATEMENT_TYPE = "application/vnd.in-toto+json"
_BUNDLE_TYPE = re.compile(
    r"application/vnd\.dev\.sigstore\.bundle(?:\+json;version=0\.[123]|\.v0\.3\+json)"
)
_MOST_ENTRIES = 8
_SHA256_SIZE = 32


@dataclass(frozen=True, slots=True)
class SigstoreSignature:
    """A signature with all that came along to prove it; nothing is verified.

    `certificate` is DER, empty if there is none; `chain` are further certificates. `payload` is the
    document that names the image, or None if the signature is of the manifest itself. If
    `is_envelope`, the content is the payload in its envelope (DSSE), else it is the payload.
    """

    signature: bytes
    content: SignedContent
    payload: bytes | None
    is_envelope: bool
    certificate: bytes
    chain: tuple[bytes, ...]
    entries: tuple[LogEntry, ...]

    def read_claim(self) -> tuple[str, str]:
        """Return the docker reference, perhaps empty, and the manifest digest that are signed.

        The caller has verified the signature of the content before.
        """
        if self.payload is None:
            return "", str(Digest("sha256", self.content.sha256.hex()))
        if self.is_envelope:
            return "", _read_statement(self.payload)
        return _read_simple_signing(self.payload)


def read_signature(blob: SignatureBlob) -> SigstoreSignature:
    """Read a signature of the kind `cosign` or `bundle`; raise `SignatureDefect`."""
    return _read_bundle(blob.payload) if blob.kind == "bundle" else _read_attachment(blob)


def _read_attachment(blob: SignatureBlob) -> SigstoreSignature:
    if not blob.signature:
        raise SignatureDefect("it has no signature in its annotations")
    certificate = b""
    chain: tuple[bytes, ...] = ()
    if blob.certificate:
        (certificate,) = decode_pem(blob.certificate, "CERTIFICATE", 1, "certificate")
    if blob.chain.strip():
        chain = decode_pem(blob.chain, "CERTIFICATE", MOST_INTERMEDIATES, "chain")
    entry = blob.annotations.get(LOG_ENTRY_ANNOTATION)
    return SigstoreSignature(
        decode_base64(blob.signature, "signature"),
        SignedContent.of(blob.payload),
        blob.payload,
        False,
        certificate,
        chain,
        () if entry is None else (read_cosign_entry(entry),),
    )


def _read_simple_signing(payload: bytes) -> tuple[str, str]:
    document = read_object(payload, "payload")
    critical = member(document, "critical", dict)
    if not set(document) <= {"critical", "optional"}:
        raise SignatureDefect("its payload has unknown members")
    if set(critical) != {"type", "image", "identity"}:
        raise SignatureDefect("its payload has unknown critical members")
    kind = member(critical, "type", str)
    if kind != _SIMPLE_SIGNING_TYPE:
        raise SignatureDefect(f"its payload is of the type {quote(kind)}")
    image, identity = member(critical, "image", dict), member(critical, "identity", dict)
    if set(image) != {"docker-manifest-digest"} or set(identity) != {"docker-reference"}:
        raise SignatureDefect("its payload has unknown critical members")
    reference = member(identity, "docker-reference", str)
    return reference, _digest(member(image, "docker-manifest-digest", str))


def _read_bundle(content: bytes) -> SigstoreSignature:
    document = read_object(content, "bundle")
    media_type = member(document, "mediaType", str)
    if _BUNDLE_TYPE.fullmatch(media_type) is None:
        raise SignatureDefect(f"its bundle is of the unsupported type {quote(media_type)}")
    material = member(document, "verificationMaterial", dict)
    entries = tuple(map(read_bundle_entry, objects(material, "tlogEntries", _MOST_ENTRIES)))
    certificates = _read_certificates(material)
    envelope = optional_object(document, "dsseEnvelope")
    message = optional_object(document, "messageSignature")
    if (envelope is None) == (message is None):
        raise SignatureDefect("its bundle has not exactly one signature")
    payload: bytes | None = None
    if envelope is not None:
        signature, signed_content, payload = _read_envelope(envelope)
    else:
        signature, signed_content = _read_message(member(document, "messageSignature", dict))
    return SigstoreSignature(
        signature,
        signed_content,
        payload,
        envelope is not None,
        certificates[0] if certificates else b"",
        certificates[1:],
        entries,
    )


def _read_certificates(material: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the signer's certificate and its chain; versions before 0.3 have them in a list."""
    certificate = optional_object(material, "certificate")
    chain = optional_object(material, "x509CertificateChain")
    if certificate is not None:
        return (base64_member(certificate, "rawBytes"),)
    documents = [] if chain is None else objects(chain, "certificates", 1 + MOST_INTERMEDIATES)
    return tuple(base64_member(document, "rawBytes") for document in documents)


def _read_envelope(envelope: dict[str, Any]) -> tuple[bytes, SignedContent, bytes]:
    """Return signature, content and payload of an envelope (DSSE v1.0.0, "pre-authentication")."""
    payload, payload_type = base64_member(envelope, "payload"), member(envelope, "payloadType", str)
    if payload_type != _STATEMENT_TYPE:
        raise SignatureDefect(f"its envelope holds {quote(payload_type)}")
    signatures = objects(envelope, "signatures", 1)
    if not signatures:
        raise SignatureDefect("its envelope has no signature")
    head = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode("ascii")
    return base64_member(signatures[0], "sig"), SignedContent.of(head + payload), payload


def _read_message(message: dict[str, Any]) -> tuple[bytes, SignedContent]:
    digest = member(message, "messageDigest", dict)
    sha256 = base64_member(digest, "digest")
    if member(digest, "algorithm", str) != "SHA2_256" or len(sha256) != _SHA256_SIZE:
        raise SignatureDefect("its bundle signs another digest than a SHA-256")
    return base64_member(message, "signature"), SignedContent(sha256)


def _read_statement(payload: bytes) -> str:
    statement = read_object(payload, "statement")
    if member(statement, "_type", str) not in _STATEMENTS:
        raise SignatureDefect("its statement is not an in-toto statement")
    predicate = member(statement, "predicateType", str)
    if predicate != SIGNATURE_PREDICATE:
        raise SignatureDefect(f"it is no signature but an attestation, {quote(predicate)}")
    subjects = objects(statement, "subject", 1)
    if not subjects:
        raise SignatureDefect("its statement names no image")
    return _digest(f"sha256:{member(member(subjects[0], 'digest', dict), 'sha256', str)}")


def _digest(text: str) -> str:
    try:
        return str(Digest.parse(text))
    except BadRequest as error:
        raise SignatureDefect("it does not name its image by a digest") from error
