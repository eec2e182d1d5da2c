"""Certificates of signers (Fulcio): verify the chain and the identity at the time of signing.

The chain is built from the policy's authority downwards, so that only keys that are already trusted
verify anything. Certificate transparency (SCT) is not checked: as containers/image reasons, the log
entry that the policy requires records the certificate itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from shiftergw.errors import printable
from shiftergw.model.signatures import FulcioAuthority
from shiftergw.signatures.documents import SignatureDefect, quote
from shiftergw.signatures.public_keys import PublicKey, supported_key

E = TypeVar("E", bound=x509.ExtensionType)

MOST_INTERMEDIATES = 8
"""Certificates of a chain besides the signer's own."""

_OIDC_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_OIDC_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_UTF8_STRING = 0x0C
_LATEST = 253402300799
"""The last second of the year 9999: `datetime` knows no later ones."""

_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

_PARSE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)


@dataclass(frozen=True, slots=True)
class FulcioTrust:
    """An authority, and the identity that it must have certified."""

    anchors: tuple[x509.Certificate, ...]
    oidc_issuer: str
    subject_email: str

    @classmethod
    def read(cls, authority: FulcioAuthority) -> FulcioTrust:
        """Read the certificates of a policy; raise `ValueError` if they are unusable."""
        try:
            anchors = tuple(x509.load_pem_x509_certificates(authority.ca))
            has_constraints = any(_extension(anchor, x509.NameConstraints) for anchor in anchors)
        except _PARSE_ERRORS as error:
            raise ValueError("it has no usable certificates in PEM") from error
        if has_constraints:
            raise ValueError("it has name constraints, which are not supported")
        if not authority.oidc_issuer or not authority.subject_email:
            raise ValueError("it names no issuer or no e-mail address of the signer")
        return cls(anchors, authority.oidc_issuer, authority.subject_email)


@dataclass(frozen=True, slots=True)
class _Issuer:
    """A trusted certificate of an authority; it may have `depth` authorities below (None: any)."""

    certificate: x509.Certificate
    depth: int | None


def load_certificate(der: bytes) -> x509.Certificate:
    """Return a certificate whose extensions can all be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
    except _PARSE_ERRORS as error:
        raise SignatureDefect("one of its certificates is malformed") from error
    for extension in extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise SignatureDefect(
                "one of its certificates has the unknown critical extension"
                f" {extension.oid.dotted_string}"
            )
        if isinstance(extension.value, x509.NameConstraints):
            raise SignatureDefect("one of its certificates has name constraints")
    return certificate


def identity_of(certificate: x509.Certificate) -> str:
    """Return the identity in a certificate for people: `e-mail (issuer)`."""
    names = ", ".join((*_emails(certificate), *_uris(certificate))) or "nobody"
    return f"{printable(names, 120)} ({printable(_oidc_issuer(certificate), 120)})"


def verify_certificate(
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    trust: FulcioTrust,
    time: int,
) -> PublicKey:
    """Return the key of a signer whom the authority certified as the policy wants it.

    All certificates must have been valid at `time`, in seconds since 1970. `chain` are further
    certificates, trusted only if the authority has signed them. Raises `SignatureDefect`.
    """
    if time > _LATEST:
        raise SignatureDefect("its log entry is of a time after the year 9999")
    moment = datetime.fromtimestamp(time, UTC)
    _check_signer(certificate, moment)
    issuers = _trusted_issuers(chain, trust, moment)
    if not any(_is_issued_by(certificate, issuer.certificate) for issuer in issuers):
        raise SignatureDefect("its certificate is not of the policy's certificate authority")
    issuer_name = _oidc_issuer(certificate)
    if issuer_name != trust.oidc_issuer:
        raise SignatureDefect(f"its signer logged in at {quote(issuer_name)}, not at the policy's")
    if trust.subject_email not in _emails(certificate):
        raise SignatureDefect(f"its signer is {quote(identity_of(certificate))}")
    try:
        return supported_key(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureDefect("the key of its certificate is not accepted") from error


def _check_signer(certificate: x509.Certificate, moment: datetime) -> None:
    if not _is_valid_at(certificate, moment):
        raise SignatureDefect(
            "its certificate was not valid when the log took the signature,"
            f" {moment:%Y-%m-%d %H:%M:%S} UTC"
        )
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if usage is None or ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise SignatureDefect("its certificate is not for signing code")
    constraints = _extension(certificate, x509.BasicConstraints)
    key_usage = _extension(certificate, x509.KeyUsage)
    if constraints is not None and constraints.ca:
        raise SignatureDefect("its certificate is that of an authority")
    if key_usage is not None and not key_usage.digital_signature:
        raise SignatureDefect("its certificate is not for signatures")


def _trusted_issuers(
    chain: Sequence[x509.Certificate], trust: FulcioTrust, moment: datetime
) -> list[_Issuer]:
    """Return the anchors that are valid, and the authorities of the chain that follow from them."""
    issuers = [
        _Issuer(anchor, _depth(anchor))
        for anchor in trust.anchors
        if _is_valid_at(anchor, moment) and _is_authority(anchor)
    ]
    remaining = [
        certificate
        for certificate in chain[:MOST_INTERMEDIATES]
        if _is_valid_at(certificate, moment) and _is_authority(certificate)
    ]
    # Each round adds a floor of the chain; the anchors alone begin.
    for _ in range(MOST_INTERMEDIATES):
        additions = [
            _Issuer(certificate, _lesser(_depth(certificate), _below(issuer.depth)))
            for certificate in remaining
            for issuer in issuers
            if issuer.depth != 0 and _is_issued_by(certificate, issuer.certificate)
        ]
        issuers += additions
        remaining = [
            certificate
            for certificate in remaining
            if all(certificate != issuer.certificate for issuer in additions)
        ]
    return issuers


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether a trusted issuer signed a certificate, with a hash that still holds."""
    try:
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _HASHES):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (*_PARSE_ERRORS, InvalidSignature):
        return False
    return True


def _is_valid_at(certificate: x509.Certificate, moment: datetime) -> bool:
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    key_usage = _extension(certificate, x509.KeyUsage)
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    return (
        constraints is not None
        and constraints.ca
        and (key_usage is None or key_usage.key_cert_sign)
        and (
            purposes is None
            or ExtendedKeyUsageOID.CODE_SIGNING in purposes
            or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in purposes
        )
    )


def _depth(certificate: x509.Certificate) -> int | None:
    constraints = _extension(certificate, x509.BasicConstraints)
    return None if constraints is None else constraints.path_length


def _below(depth: int | None) -> int | None:
    return None if depth is None else depth - 1


def _lesser(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _emails(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.RFC822Name)


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)


def _oidc_issuer(certificate: x509.Certificate) -> str:
    """Return the issuer of the signer's login that Fulcio recorded; its two forms must agree."""
    values = {
        extension.oid: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    texts = set()
    if _OIDC_ISSUER in values:
        texts.add(values[_OIDC_ISSUER].decode("utf-8", "backslashreplace"))
    if _OIDC_ISSUER_V2 in values:
        texts.add(_utf8_string(values[_OIDC_ISSUER_V2]))
    if len(texts) != 1:
        raise SignatureDefect("its certificate does not clearly name where its signer logged in")
    return texts.pop()


def _utf8_string(der: bytes) -> str:
    """Return the text of a DER UTF8String of at most 65,535 bytes."""
    for start in (2, 3, 4):
        if der[:start] == _utf8_header(len(der) - start) and len(der) >= start:
            return der[start:].decode("utf-8", "backslashreplace")
    raise SignatureDefect("its certificate has a malformed extension")


def _utf8_header(size: int) -> bytes:
    """Return the tag and the shortest form of a length (X.690, sections 8.1.3 and 10.1)."""
    if not 0 <= size < 1 << 16:
        return b""
    if size < 1 << 7:
        return bytes((_UTF8_STRING, size))
    if size < 1 << 8:
        return bytes((_UTF8_STRING, 0x81, size))
    return bytes((_UTF8_STRING, 0x82, *size.to_bytes(2, "big")))
