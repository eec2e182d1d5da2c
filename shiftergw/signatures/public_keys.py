"""Public keys of signers and logs: read them, name them, and verify signatures with them.

ECDSA keys are those of P-256, P-384 and P-521, RSA keys have 2048 to 8192 bits and sign with
PKCS #1 v1.5, Ed25519 keys sign content as it is. cosign hashes with SHA-256 whatever the key; newer
releases use SHA-384 with P-384 and SHA-512 with P-521.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_SMALLEST_RSA, _LARGEST_RSA = 2048, 8192
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_CURVE_HASHES = {"secp384r1": "sha384", "secp521r1": "sha512"}


def read_public_key(pem: bytes) -> PublicKey:
    """Return the key of a PEM file; raise `ValueError` if it is unusable, with the reason."""
    try:
        key: object = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("it is not a public key in PEM") from error
    return supported_key(key)


def supported_key(key: object) -> PublicKey:
    """Return the key; raise `ValueError` for a kind or size that is not accepted."""
    match key:
        case ec.EllipticCurvePublicKey(curve=curve) if isinstance(curve, _CURVES):
            return key
        case ec.EllipticCurvePublicKey(curve=curve):
            raise ValueError(f"its curve {curve.name} is not accepted")
        case rsa.RSAPublicKey(key_size=size) if _SMALLEST_RSA <= size <= _LARGEST_RSA:
            return key
        case rsa.RSAPublicKey(key_size=size):
            raise ValueError(
                f"it is an RSA key of {size} bits; {_SMALLEST_RSA} to {_LARGEST_RSA} are accepted"
            )
        case ed25519.Ed25519PublicKey():
            return key
        case _:
            raise ValueError("it is neither an ECDSA, RSA nor Ed25519 key")


def encode_key(key: PublicKey) -> bytes:
    """Return the key as DER (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_digest(key: PublicKey) -> str:
    """Return the SHA-256 of the key's DER in hexadecimal; of a log's key it is the log's id."""
    return hashlib.sha256(encode_key(key)).hexdigest()


def is_valid(key: PublicKey, signature: bytes, content: bytes, hash_name: str = "sha256") -> bool:
    """Return whether this key made the signature of `content`; Ed25519 ignores the hash."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        try:
            key.verify(signature, content)
        except InvalidSignature:
            return False
        return True
    return _is_valid_digest(key, signature, hashlib.new(hash_name, content).digest(), hash_name)


def _is_valid_digest(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    signature: bytes,
    digest: bytes,
    hash_name: str,
) -> bool:
    algorithm = utils.Prehashed(_HASHES[hash_name])
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), algorithm)
        else:
            key.verify(signature, digest, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class SignedContent:
    """The content that a signature is for; of an image's manifest often only the SHA-256."""

    sha256: bytes
    content: bytes | None = None

    @classmethod
    def of(cls, content: bytes) -> SignedContent:
        """Return content whose bytes are here."""
        return cls(hashlib.sha256(content).digest(), content)

    def digest(self, hash_name: str) -> str:
        """Return a digest of the content in hexadecimal; "" if it cannot be computed."""
        if hash_name == "sha256":
            return self.sha256.hex()
        if self.content is None or hash_name not in _HASHES:
            return ""
        return hashlib.new(hash_name, self.content).hexdigest()

    def is_signed_by(self, key: PublicKey, signature: bytes) -> bool:
        """Return whether this key made the signature of the content; see `can_verify`."""
        if self.content is not None:
            if is_valid(key, signature, self.content):
                return True
            if not isinstance(key, ec.EllipticCurvePublicKey):
                return False
            longer = _CURVE_HASHES.get(key.curve.name)
            return longer is not None and is_valid(key, signature, self.content, longer)
        if isinstance(key, ed25519.Ed25519PublicKey):
            return False
        return _is_valid_digest(key, signature, self.sha256, "sha256")

    def can_verify(self, key: PublicKey) -> bool:
        """Return whether the digest is enough to verify a signature: for Ed25519 it is not."""
        return self.content is not None or not isinstance(key, ed25519.Ed25519PublicKey)
