"""kombu's transport for `amqps:`, with our verification of the broker's certificate.

Importing this module replaces kombu's own transport, because py-amqp creates its TLS context
itself: it accepts a certificate by its common name if that has no DNS names, and verifies no host
name at all unless one is passed to it.
"""

from __future__ import annotations

from typing import Any

from amqp.transport import SSLTransport
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.pyamqp import Connection as KombuConnection
from kombu.transport.pyamqp import SSLTransport as KombuTransport

from shiftergw.plumbing.tls_context import blocking_context

# Registered under kombu's own name, so that each `amqps:` connection of this process is verified,
# and logs show the URL as it was configured.
TRANSPORT_ALIASES["amqps"] = "shiftergw.work.celery.tls:BrokerTransport"


class _TlsSocket(SSLTransport):
    """py-amqp's TLS connection, with a TLS context of ours."""

    def _wrap_socket(
        self,
        sock: Any,
        *,
        server_hostname: str,
        ca_certs: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> Any:
        """Wrap a socket; py-amqp performs the handshake afterwards."""
        context = blocking_context(ca_certs, certfile, keyfile)
        return context.wrap_socket(
            sock, do_handshake_on_connect=False, server_hostname=server_hostname
        )


class _Connection(KombuConnection):
    """kombu's connection, which always uses TLS."""

    def Transport(
        self,
        host: str,
        connect_timeout: float,
        ssl: Any = None,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        **options: Any,
    ) -> Any:
        return _TlsSocket(
            host,
            connect_timeout=connect_timeout,
            ssl=ssl,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            **options,
        )


class BrokerTransport(KombuTransport):
    """kombu's `amqps` transport, with verified connections."""

    Connection = _Connection
