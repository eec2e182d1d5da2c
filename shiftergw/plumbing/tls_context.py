"""TLS for client sockets of the standard library, which block; `tls.py` has it for Twisted."""

from __future__ import annotations

import ssl
from pathlib import Path


def blocking_context(
    authorities: str | Path | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return a context that verifies certificates inside the handshake, before any byte is sent.

    Only a proven host name passes; `server_hostname` must be given to the context. `authorities`
    is a file of those that are trusted instead of the system's. Raises `OSError`, of which
    `ssl.SSLError` is a subclass, for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python's default: a certificate without DNS names is judged by its common name.
    context.hostname_checks_common_name = False
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    if authorities is not None:
        context.load_verify_locations(authorities)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
