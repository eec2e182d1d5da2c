"""Bodies of log entries: which signature of which content, by which key, the log recorded.

Three kinds of entries of Rekor v1 are read: `hashedrekord` (a signature of content with a digest),
`dsse` and `intoto` (an envelope with a statement). The newer kinds of Rekor v2 have no time of
their own and are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shiftergw.signatures.documents import (
    SignatureDefect,
    base64_member,
    decode_base64,
    decode_pem,
    member,
    objects,
    quote,
    read_object,
)
from shiftergw.signatures.public_keys import SignedContent

_VERIFIER_LABELS = ("PUBLIC KEY", "CERTIFICATE")


@dataclass(frozen=True, slots=True)
class LoggedSignature:
    """A signature in a log's entry.

    `verifier` is the DER of the signer's public key, or of the certificate. `digest` is that of the
    signed content; if `is_payload`, it is that of the payload of an envelope.
    """

    signature: bytes
    verifier: bytes
    hash_name: str
    digest: str
    is_payload: bool = False

    def check(self, signature: bytes, content: SignedContent, payload: bytes | None) -> None:
        """Raise `SignatureDefect` unless this is that signature of that content.

        `payload` is that of the content's envelope; None if the content is no envelope.
        """
        if self.signature != signature:
            raise SignatureDefect("its log entry records another signature")
        subject = SignedContent.of(payload or b"") if self.is_payload else content
        if (self.is_payload and payload is None) or subject.digest(self.hash_name) != self.digest:
            raise SignatureDefect("its log entry records a signature of other content")


def read_body(body: bytes) -> LoggedSignature:
    """Read the body of a log entry; raise `SignatureDefect` for unknown kinds and versions."""
    document = read_object(body, "log entry's body")
    kind = member(document, "kind", str), member(document, "apiVersion", str)
    read_spec = _READERS.get(kind)
    if read_spec is None:
        raise SignatureDefect(f"its log entry is of the unsupported kind {quote(' '.join(kind))}")
    return read_spec(member(document, "spec", dict))


def _read_hashedrekord(spec: dict[str, Any]) -> LoggedSignature:
    signature = member(spec, "signature", dict)
    hash_name, digest = _read_hash(member(member(spec, "data", dict), "hash", dict))
    verifier = base64_member(member(signature, "publicKey", dict), "content")
    return LoggedSignature(
        base64_member(signature, "content"), _read_verifier(verifier), hash_name, digest
    )


def _read_dsse(spec: dict[str, Any]) -> LoggedSignature:
    signature = _single(objects(spec, "signatures", 1))
    hash_name, digest = _read_hash(member(spec, "payloadHash", dict))
    return LoggedSignature(
        base64_member(signature, "signature"),
        _read_verifier(base64_member(signature, "verifier")),
        hash_name,
        digest,
        is_payload=True,
    )


def _read_intoto(spec: dict[str, Any]) -> LoggedSignature:
    content = member(spec, "content", dict)
    signature = _single(objects(member(content, "envelope", dict), "signatures", 1))
    hash_name, digest = _read_hash(member(content, "payloadHash", dict))
    return LoggedSignature(
        decode_base64(base64_member(signature, "sig"), "log entry's signature"),
        _read_verifier(base64_member(signature, "publicKey")),
        hash_name,
        digest,
        is_payload=True,
    )


def _single(signatures: list[dict[str, Any]]) -> dict[str, Any]:
    if not signatures:
        raise SignatureDefect("its log entry records no signature")
    return signatures[0]


def _read_hash(document: dict[str, Any]) -> tuple[str, str]:
    return member(document, "algorithm", str), member(document, "value", str)


def _read_verifier(pem: bytes) -> bytes:
    is_certificate = b"BEGIN CERTIFICATE" in pem
    label = _VERIFIER_LABELS[is_certificate]
    return decode_pem(pem, label, 1, "log entry's key")[0]


_READERS: dict[tuple[str, str], Callable[[dict[str, Any]], LoggedSignature]] = {
    ("hashedrekord", "0.0.1"): _read_hashedrekord,
    ("dsse", "0.0.1"): _read_dsse,
    ("intoto", "0.0.2"): _read_intoto,
}
