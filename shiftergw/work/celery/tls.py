"""TLS to the broker: kombu's transport, with our verification of the broker's certificate.

Importing this module replaces kombu's own transport for `amqps:`.

py-amqp makes its context itself. It lets Python judge a certificate without DNS names by its
common name, and verifies no host name at all where it is given none.
"""

from __future__ import annotations

from typing import Any

from amqp.transport import SSLTransport
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.pyamqp import Connection as KombuConnection
from kombu.transport.pyamqp import SSLTransport as KombuTransport

from shiftergw.plumbing.tls_context import blocking_context

# Under this name, so that no `amqps:` connection of this process is made otherwise, and logs show
# the URL as it is.
TRANSPORT_ALIASES["amqps"] = "shiftergw.work.celery.tls:BrokerTransport"


class _TlsSocket(SSLTransport):
    """A connection of py-amqp over TLS."""

    def _wrap_socket(
        self,
        sock: Any,
        *,
        server_hostname: str,
        ca_certs: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> Any:
        """Return the socket with TLS around it; py-amqp then begins the handshake."""
        context = blocking_context(ca_certs, certfile, keyfile)
        return context.wrap_socket(
            sock, do_handshake_on_connect=False, server_hostname=server_hostname
        )


class _Connection(KombuConnection):
    """A connection of kombu over TLS, and over nothing else."""

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
    """kombu's `amqps` transport, over connections whose broker is verified."""

    Connection = _Connection
