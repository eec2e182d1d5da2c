"""Read the certificates that `MongoDBURI` names for TLS to a server."""

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
    """Return the TLS options of connections to the servers of a URI.

    Reads the files that `tls` names, and blocks until then. Raises `ConfigurationError` if they
    cannot be read.
    """
    try:
        options: dict[str, Any] = {}
        if tls.authorities is not None:
            options["authorities"] = load_pem_x509_certificates(read_whole(tls.authorities)[0])
        if tls.client_certificate is not None:
            content, _ = read_whole(tls.client_certificate)
            password = None if tls.key_password is None else tls.key_password.encode()
            options["key"] = load_pem_private_key(content, password)
            options["chain"] = load_pem_x509_certificates(content)
        return ClientTls(**options, any_name=tls.any_name, any_certificate=tls.any_certificate)
    except (OSError, ValueError, TypeError, SSL.Error) as error:
        paths = (tls.authorities, tls.client_certificate)
        files = ", ".join(str(path) for path in paths if path is not None)
        raise ConfigurationError(
            f"MongoDBURI: its certificates cannot be read: {files}.",
            remedy="Check tlsCAFile, tlsCertificateKeyFile and the password of the key.",
        ) from error
