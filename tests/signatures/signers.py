"""A signer that writes signatures like cosign, with its own certificate authority and log.

Only `cryptography` and the standard library are used, since the data of tests must not come from
the program. The Merkle tree is computed by its recursive definition (RFC 9162, section 2.1.1), not
as the program verifies it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shiftergw.model.signatures import FulcioAuthority, SignatureBlob, SigstoreKeys

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

NOW = 1_700_000_000
"""When the signers of tests sign, in seconds since 1970."""

DIGEST = f"sha256:{'5a' * 32}"
REFERENCE = "registry.example.org/team/app"
EMAIL = "ada@example.org"
ISSUER = "https://login.example.org"

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"


def b64(content: bytes) -> str:
    """Return base64 as text."""
    return base64.b64encode(content).decode("ascii")


def compact(document: object) -> bytes:
    """Return JSON with sorted members and no white space."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def new_key(kind: str = "P-256") -> PrivateKey:
    """Return a new private key: of a curve, `RSA` or `RSA-1024`, or `Ed25519`."""
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    if kind in curves:
        return ec.generate_private_key(curves[kind])
    if kind == "secp256k1":
        return ec.generate_private_key(ec.SECP256K1())
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind.partition("-")[2] or 2048))
    return ed25519.Ed25519PrivateKey.generate()


def sign(key: PrivateKey, content: bytes, algorithm: Any = None) -> bytes:
    """Sign content as cosign does: with SHA-256 unless another hash is given."""
    algorithm = algorithm or hashes.SHA256()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(content, ec.ECDSA(algorithm))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(content, padding.PKCS1v15(), algorithm)
    return key.sign(content)


def public_pem(key: PrivateKey) -> bytes:
    """Return the public key as a PEM file."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_der(key: PrivateKey) -> bytes:
    """Return the public key as DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def simple_signing(
    digest: str = DIGEST, reference: str = REFERENCE, **members: Any
) -> dict[str, Any]:
    """Return the payload that cosign signs; `members` replace those of `critical`."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
        **members,
    }
    return {"critical": critical, "optional": None}


def statement(digest: str = DIGEST, **members: Any) -> dict[str, Any]:
    """Return the in-toto statement that cosign 3 signs; `members` replace its members."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
        **members,
    }


def pre_authentication(payload: bytes, payload_type: str = STATEMENT_TYPE) -> bytes:
    """Return the bytes that an envelope (DSSE) signs."""
    return b"DSSEv1 %d %s %d %s" % (
        len(payload_type),
        payload_type.encode(),
        len(payload),
        payload,
    )


class RekorLog:
    """A transparency log of the tests: Rekor v1 with promises and inclusion proofs."""

    def __init__(self, kind: str = "P-256") -> None:
        """Start an empty log with a new key."""
        self.key = new_key(kind)
        self.leaves: list[bytes] = []

    @property
    def pem(self) -> bytes:
        """Return the log's public key as a PEM file."""
        return public_pem(self.key)

    @property
    def id(self) -> bytes:
        """Return the log's id."""
        return hashlib.sha256(public_der(self.key)).digest()

    def add(self, body: bytes, time: int = NOW) -> dict[str, Any]:
        """Store an entry; return it in the form of a bundle, with promise and proof."""
        index = len(self.leaves)
        self.leaves.append(hashlib.sha256(b"\0" + body).digest())
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(self.id)},
            "kindVersion": {"kind": json.loads(body)["kind"], "version": "0.0.1"},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.promise(body, index, time))},
            "inclusionProof": self.proof(index),
            "canonicalizedBody": b64(body),
        }

    def promise(self, body: bytes, index: int, time: int) -> bytes:
        """Return the signed entry timestamp of an entry."""
        document = {
            "body": b64(body),
            "integratedTime": time,
            "logID": self.id.hex(),
            "logIndex": index,
        }
        return sign(self.key, compact(document))

    def cosign_entry(self, body: bytes, time: int = NOW, **members: Any) -> str:
        """Store an entry; return it in the form of the annotation of an attachment."""
        index = len(self.leaves)
        self.leaves.append(hashlib.sha256(b"\0" + body).digest())
        payload = {
            "body": b64(body),
            "integratedTime": time,
            "logIndex": index,
            "logID": self.id.hex(),
            **members,
        }
        return json.dumps(
            {"SignedEntryTimestamp": b64(self.promise(body, index, time)), "Payload": payload}
        )

    def proof(self, index: int, size: int | None = None) -> dict[str, Any]:
        """Return the inclusion proof of an entry in the tree of the first `size` leaves."""
        leaves = self.leaves[: size or len(self.leaves)]
        root = _root(leaves)
        return {
            "logIndex": str(index),
            "treeSize": str(len(leaves)),
            "rootHash": b64(root),
            "hashes": [b64(step) for step in _path(index, leaves)],
            "checkpoint": {"envelope": self.checkpoint(len(leaves), root)},
        }

    def checkpoint(self, size: int, root: bytes, hint: bytes = b"") -> str:
        """Return the signed note of a tree."""
        note = f"log.example.org - 1\n{size}\n{b64(root)}\n"
        signature = (hint or self.id[:4]) + sign(self.key, note.encode())
        return f"{note}\n— log.example.org {b64(signature)}\n"


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return hashlib.sha256(b"\1" + _root(leaves[:middle]) + _root(leaves[middle:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*_path(index, leaves[:middle]), _root(leaves[middle:])]
    return [*_path(index - middle, leaves[middle:]), _root(leaves[:middle])]


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


class CertificateIssuer:
    """An authority like Fulcio: a root, an intermediate, and certificates of minutes."""

    def __init__(self, root: Mapping[str, Any] | None = None, **intermediate: Any) -> None:
        """Make root and intermediate; their options go to `certificate`."""
        self.root_key, self.key = new_key("P-384"), new_key("P-384")
        self.name, self.root_name = _name("intermediate"), _name("root")
        self.root = self.certificate(
            self.root_key,
            self.root_name,
            self.root_key,
            self.root_name,
            **{"is_authority": True, **(root or {})},
        )
        self.intermediate = self.certificate(
            self.key,
            self.name,
            self.root_key,
            self.root_name,
            **{"is_authority": True, "path_length": 0, **intermediate},
        )

    @property
    def trust(self) -> FulcioAuthority:
        """Return the members of a policy for this authority and `EMAIL`."""
        return FulcioAuthority(pem(self.root), ISSUER, EMAIL)

    @property
    def chain(self) -> bytes:
        """Return the PEM of intermediate and root, as cosign attaches it."""
        return pem(self.intermediate) + pem(self.root)

    def certify(self, key: PrivateKey, **options: Any) -> x509.Certificate:
        """Return a certificate of a signer; `options` go to `certificate`."""
        subject = {"email": EMAIL, "issuer_v1": ISSUER, "issuer_v2": ISSUER, "minutes": 10}
        return self.certificate(key, x509.Name([]), self.key, self.name, **{**subject, **options})

    def certificate(
        self,
        key: PrivateKey,
        name: x509.Name,
        issuer_key: PrivateKey,
        issuer_name: x509.Name,
        *,
        begin: int = NOW - 60,
        minutes: int = 60 * 24 * 3650,
        is_authority: bool = False,
        is_for_certificates: bool | None = None,
        path_length: int | None = None,
        email: str = "",
        issuer_v1: str = "",
        issuer_v2: str = "",
        purposes: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CODE_SIGNING,),
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
        algorithm: Any = None,
    ) -> x509.Certificate:
        """Return a certificate that is valid for `minutes`.

        Its key signs certificates if it `is_for_certificates`, which is the default for an
        authority; otherwise it signs images.
        """
        if is_for_certificates is None:
            is_for_certificates = is_authority
        start = datetime.fromtimestamp(begin, UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(minutes=minutes))
            .add_extension(_key_usage(is_for_certificates=is_for_certificates), True)
        )
        if is_authority:
            builder = builder.add_extension(x509.BasicConstraints(True, path_length), True)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        if email:
            names = x509.SubjectAlternativeName([x509.RFC822Name(email)])
            builder = builder.add_extension(names, True)
        for oid, value in ((".1", issuer_v1.encode()), (".8", _utf8_string(issuer_v2))):
            if value:
                identifier = x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1{oid}")
                builder = builder.add_extension(
                    x509.UnrecognizedExtension(identifier, value), False
                )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        if isinstance(issuer_key, ed25519.Ed25519PrivateKey):
            return builder.sign(issuer_key, None)
        return builder.sign(issuer_key, algorithm or hashes.SHA384())


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate as DER."""
    return certificate.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _utf8_string(text: str) -> bytes:
    content = text.encode()
    assert len(content) < 128
    return bytes((0x0C, len(content))) + content if content else b""


def _key_usage(*, is_for_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_for_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_for_certificates,
        crl_sign=is_for_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass
class CosignSigner:
    """A user who signs with cosign, by a key or, with a `certificate`, keyless."""

    key: PrivateKey = field(default_factory=new_key)
    log: RekorLog = field(default_factory=RekorLog)
    certificate: x509.Certificate | None = None
    chain: bytes = b""

    @property
    def verifier(self) -> bytes:
        """Return the PEM that the log records: of the certificate, or of the key."""
        return public_pem(self.key) if self.certificate is None else pem(self.certificate)

    def keys(self, *, needs_log: bool = False) -> SigstoreKeys:
        """Return the members of a policy that trusts this signer's key."""
        return SigstoreKeys((public_pem(self.key),), None, (self.log.pem,) if needs_log else ())

    def hashedrekord(self, content: bytes, signature: bytes, **hashes_: str) -> bytes:
        """Return the body of the entry that records a signature."""
        digest = hashes_ or {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}
        spec = {
            "data": {"hash": digest},
            "signature": {
                "content": b64(signature),
                "publicKey": {"content": b64(self.verifier)},
            },
        }
        return compact({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec})

    def dsse_body(self, payload: bytes, signature: bytes) -> bytes:
        """Return the body of the entry of the kind `dsse`."""
        digest = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        signatures = [{"signature": b64(signature), "verifier": b64(self.verifier)}]
        spec = {"envelopeHash": digest, "payloadHash": digest, "signatures": signatures}
        return compact({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})

    def intoto_body(self, payload: bytes, signature: bytes) -> bytes:
        """Return the body of the entry of the kind `intoto`."""
        digest = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        signatures = [{"publicKey": b64(self.verifier), "sig": b64(b64(signature).encode("ascii"))}]
        envelope = {"payloadType": STATEMENT_TYPE, "signatures": signatures}
        spec = {"content": {"envelope": envelope, "hash": digest, "payloadHash": digest}}
        return compact({"apiVersion": "0.0.2", "kind": "intoto", "spec": spec})

    def attach(
        self,
        payload: dict[str, Any] | bytes | None = None,
        *,
        has_entry: bool = True,
        time: int = NOW,
        algorithm: Any = None,
    ) -> SignatureBlob:
        """Return an attachment for a payload, by default for `DIGEST` and `REFERENCE`."""
        content = payload if isinstance(payload, bytes) else compact(payload or simple_signing())
        signature = sign(self.key, content, algorithm)
        annotations = {"dev.cosignproject.cosign/signature": b64(signature)}
        if has_entry:
            body = self.hashedrekord(content, signature)
            annotations["dev.sigstore.cosign/bundle"] = self.log.cosign_entry(body, time)
        return SignatureBlob(
            "cosign",
            content,
            b64(signature).encode(),
            b"" if self.certificate is None else pem(self.certificate),
            self.chain,
            annotations,
        )

    def bundle(
        self, payload: dict[str, Any] | bytes | None = None, *, kind: str = "dsse", time: int = NOW
    ) -> dict[str, Any]:
        """Return a bundle with an envelope; `kind` is that of its log entry."""
        content = payload if isinstance(payload, bytes) else compact(payload or statement())
        signature = sign(self.key, pre_authentication(content))
        bodies = {
            "dsse": self.dsse_body(content, signature),
            "intoto": self.intoto_body(content, signature),
            "hashedrekord": self.hashedrekord(pre_authentication(content), signature),
        }
        return {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": self._material(bodies[kind], time),
            "dsseEnvelope": {
                "payload": b64(content),
                "payloadType": STATEMENT_TYPE,
                "signatures": [{"sig": b64(signature), "keyid": ""}],
            },
        }

    def message_bundle(self, manifest: bytes, *, time: int = NOW) -> dict[str, Any]:
        """Return a bundle with a signature of a manifest itself."""
        signature = sign(self.key, manifest)
        digest = hashlib.sha256(manifest).digest()
        return {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": self._material(self.hashedrekord(manifest, signature), time),
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest)},
                "signature": b64(signature),
            },
        }

    def _material(self, body: bytes, time: int) -> dict[str, Any]:
        entries = {"tlogEntries": [self.log.add(body, time)]}
        if self.certificate is None:
            hint = b64(hashlib.sha256(public_der(self.key)).digest())
            return {"publicKey": {"hint": hint}, **entries}
        return {"certificate": {"rawBytes": b64(der(self.certificate))}, **entries}


def as_blob(bundle: dict[str, Any] | bytes) -> SignatureBlob:
    """Return a bundle in the form of a fetched one."""
    return SignatureBlob("bundle", bundle if isinstance(bundle, bytes) else compact(bundle))
