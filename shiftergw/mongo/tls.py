"""TLS to a MongoDB server: the certificates that `MongoDBURI` names."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL

from shiftergw.errors import ConfigurationError
from shiftergw.mongo.address import MongoTls
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.tls import ClientTls


def client_tls(tls: MongoTls) -> ClientTls:
    """Return the TLS of connections to the servers of a URI.

    Reads the files that `tls` names, and blocks so long; raises `ConfigurationError`.
    """
    try:
        options: dict[str, Any] = {}
        if tls.authorities is not None:
            options["authorities"] = load_pem_x509_certificates(read_whole(tls.authorities)[0])
        if tls.own is not None:
            content, _ = read_whole(tls.own)
            password = None if tls.own_password is None else tls.own_password.encode()
            options["key"] = load_pem_private_key(content, password)
            options["chain"] = load_pem_x509_certificates(content)
        return ClientTls(**options, any_name=tls.any_name, any_certificate=tls.any_certificate)
    except (OSError, ValueError, TypeError, SSL.Error) as error:
        files = ", ".join(str(file) for file in (tls.authorities, tls.own) if file is not None)
        raise ConfigurationError(
            f"MongoDBURI: its certificates cannot be read: {files}.",
            remedy="Check tlsCAFile, tlsCertificateKeyFile and the password of the key.",
        ) from error
