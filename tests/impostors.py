"""Servers with certificates that clients must refuse; they record the bytes of clients."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.certificates import Authority
from tests.raw_servers import ThreadedServer, closing_server

NO_NAME = "names no host"


@dataclass(frozen=True)
class Impostor:
    """A certificate that a client must refuse, and a part of the client's error message.

    `make` creates it, given the authority that the client trusts, an empty directory, and the host.
    """

    make: Callable[[Authority, Path, str], Path]
    words: str


def _dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


def _listing(*names: x509.GeneralName, **options: object) -> Callable[[Authority, Path, str], Path]:
    def make(authority: Authority, _: Path, host: str) -> Path:
        return authority.server_file(*names, common_name=host, **options)  # type: ignore[arg-type]

    return make


def host_name(host: str) -> x509.GeneralName:
    """Return the name of a host as a certificate lists it."""
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _right(**options: object) -> Callable[[Authority, Path, str], Path]:
    def make(authority: Authority, _: Path, host: str) -> Path:
        return authority.server_file(host_name(host), **options)  # type: ignore[arg-type]

    return make


def _self_signed(_: Authority, directory: Path, host: str) -> Path:
    return Authority(directory, host_name(host)).own_file()


def _another_authority(_: Authority, directory: Path, host: str) -> Path:
    return Authority(directory, common_name="strangers").server_file(host_name(host))


def _its_namesake(_: Authority, directory: Path, host: str) -> Path:
    return Authority(directory).server_file(host_name(host))


_DIRECTORY = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))

IMPOSTORS = {
    "no names": Impostor(_listing(), NO_NAME),
    "no names, for servers": Impostor(_listing(usage=ExtendedKeyUsageOID.SERVER_AUTH), NO_NAME),
    "an e-mail address": Impostor(_listing(x509.RFC822Name("root@localhost")), NO_NAME),
    "a URI": Impostor(_listing(x509.UniformResourceIdentifier("https://localhost/")), NO_NAME),
    "a directory name": Impostor(_listing(_DIRECTORY), NO_NAME),
    "another host": Impostor(_listing(*_dns("other.example")), "is for other.example, not for"),
    "another address": Impostor(
        _listing(x509.IPAddress(ip_address("127.0.0.9"))), "is for 127.0.0.9, not for"
    ),
    "another host, and a URI with a port": Impostor(
        _listing(*_dns("other.example"), x509.UniformResourceIdentifier("https://localhost:1/")),
        "is for other.example, not for",
    ),
    "a host above and below": Impostor(
        _listing(*_dns("host", "a.localhost", "localhost.example")), "is for host, a.localhost, "
    ),
    "a wildcard for everything": Impostor(_listing(*_dns("*")), "is for *, not for"),
    "a wildcard below": Impostor(_listing(*_dns("*.localhost")), "is for *.localhost, not for"),
    "a wildcard inside": Impostor(_listing(*_dns("local*")), "is for local*, not for"),
    "another wildcard": Impostor(_listing(*_dns("*.example.com")), "is for *.example.com, not"),
    "expired": Impostor(_right(days=-1), "expired on"),
    "not yet valid": Impostor(_right(since=1, days=2), "is not valid before"),
    "for clients": Impostor(_right(usage=ExtendedKeyUsageOID.CLIENT_AUTH), "not meant for servers"),
    "self-signed": Impostor(_self_signed, "self-signed"),
    "another authority": Impostor(_another_authority, "not trusted"),
    "another authority of that name": Impostor(_its_namesake, "not trusted"),
}

ADDRESS_IMPOSTORS = {
    "the address as a host": Impostor(_listing(*_dns("127.0.0.1")), "is for 127.0.0.1, not for"),
    "a host": Impostor(_listing(*_dns("localhost")), "is for localhost, not for"),
    **{name: IMPOSTORS[name] for name in ("no names", "an e-mail address", "another address")},
}
"""The same for 127.0.0.1."""


class Listener(ThreadedServer):
    """A TLS server that closes each connection after its first bytes, without an answer.

    `plaintext` has these bytes, decrypted.
    """

    def __init__(self, pem: Path) -> None:
        """Listen with the key and the certificate in `pem`."""
        self.plaintext = bytearray()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        """Receive the first bytes of a client that accepts the certificate."""
        # TLS errors, which are subclasses of OSError, end the connection.
        with (
            suppress(OSError),
            self._context.wrap_socket(connection, server_side=True) as inside,
        ):
            self.plaintext += inside.recv(1 << 16)
        connection.close()


def listening(pem: Path) -> AbstractAsyncContextManager[Listener]:
    """Run a server with a key and a certificate; wait for its connections at the end."""
    return closing_server(Listener(pem))
