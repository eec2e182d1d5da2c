"""TLS to a MongoDB server: whose certificates we believe, and our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509, PKey
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)

from shiftergw.errors import ConfigurationError
from shiftergw.store.mongo.address import Tls


def tls_to(tls: Tls) -> Callable[[str], Any]:
    """Return what makes the TLS of a connection to a host's name.

    Reads the files that `tls` names, and blocks so long; raises `ConfigurationError`.
    """
    try:
        own, chain = _own(tls)
        trust: Any = platformTrust()
        if tls.authorities is not None:
            found = load_pem_x509_certificates(tls.authorities.read_bytes())
            trust = trustRootFromCertificates(
                [Certificate(X509.from_cryptography(one)) for one in found]
            )
    except (OSError, ValueError, TypeError) as error:
        files = ", ".join(str(file) for file in (tls.authorities, tls.own) if file is not None)
        raise ConfigurationError(
            f"MongoDBURI: its certificates cannot be read: {files}.",
            remedy="Check tlsCAFile, tlsCertificateKeyFile and the password of the key.",
        ) from error
    if not (tls.any_certificate or tls.any_name):
        more = {"extraCertChain": chain} if chain else {}
        return lambda name: optionsForClientTLS(name, trust, own, extraCertificateOptions=more)
    options = CertificateOptions(
        privateKey=None if own is None else own.privateKey.original,
        certificate=None if own is None else own.original,
        extraCertChain=chain or None,
        **({} if tls.any_certificate else {"trustRoot": trust}),
    )
    return lambda _: options


def _own(tls: Tls) -> tuple[PrivateCertificate | None, list[X509]]:
    """Return our certificate with its key, and the certificates between it and its authority."""
    if tls.own is None:
        return None, []
    content = tls.own.read_bytes()
    password = None if tls.own_password is None else tls.own_password.encode()
    key: Any = load_pem_private_key(content, password)
    first, *chain = [X509.from_cryptography(one) for one in load_pem_x509_certificates(content)]
    pair = KeyPair(PKey.from_cryptography_key(key))
    return PrivateCertificate.fromCertificateAndKeyPair(Certificate(first), pair), chain
