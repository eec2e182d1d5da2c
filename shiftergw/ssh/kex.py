"""The key exchange of our SSH client, a subclass of Conch's transport.

It adds AES-GCM, RSA host keys with SHA-2 only, a check that the host key signs with the negotiated
algorithm, strict key exchange (OpenSSH's PROTOCOL, section 1.10) against CVE-2023-48795, and key
exchanges that our side starts after much sent data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from twisted.conch.error import ConchError
from twisted.conch.ssh import _kex
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.keys import BadKeyError, Key
from twisted.conch.ssh.transport import (
    MSG_DEBUG,
    MSG_DISCONNECT,
    MSG_IGNORE,
    MSG_KEX_DH_GEX_GROUP,
    MSG_KEX_DH_GEX_REQUEST_OLD,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_UNIMPLEMENTED,
    SSHClientTransport,
)

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.ssh.ciphers import CIPHERS, MACS, NONE, Ciphers, is_aead
from shiftergw.ssh.known_hosts import SIGNATURES, HostKeys, type_of

STRICT_CLIENT = b"kex-strict-c-v00@openssh.com"
STRICT_SERVER = b"kex-strict-s-v00@openssh.com"

PARSE_ERRORS = (
    struct.error, IndexError, KeyError, TypeError, ValueError, BadKeyError, ConchError, InvalidKey,
    UnsupportedAlgorithm,
)  # fmt: skip
"""The exceptions that parsing a malformed packet may raise."""

_EXCHANGES = [
    b"curve25519-sha256",
    b"curve25519-sha256@libssh.org",
    b"ecdh-sha2-nistp256",
    b"ecdh-sha2-nistp384",
    b"ecdh-sha2-nistp521",
]
_STRICT = {MSG_DISCONNECT, MSG_KEXINIT, MSG_NEWKEYS, MSG_KEX_DH_GEX_GROUP}
_LAX = _STRICT | {MSG_IGNORE, MSG_UNIMPLEMENTED, MSG_DEBUG}
_OF_EXCHANGES = range(20, 50)
_LISTS = 10  # lists of names in KEXINIT
_COOKIE = 16  # bytes before them


def broken_protocol(detail: str) -> DeliveryFailed:
    """Return the error for a server that violates the protocol."""
    return DeliveryFailed(
        "The system does not speak SSH as it should, or something between changes it.",
        detail=printable(detail),
    )


class KeyExchange(SSHClientTransport):
    """Negotiates algorithms and keys; its handlers raise `DeliveryFailed` and `PARSE_ERRORS`."""

    transport: Any
    currentEncryptions: Any  # noqa: N815
    nextEncryptions: Any  # noqa: N815

    def __init__(
        self, host: str, port: int, known_hosts: HostKeys, ciphers: Sequence[str] = ()
    ) -> None:
        """Accept only host keys of `known_hosts`; without `ciphers`, offer all of ours."""
        self._host, self._port, self._known_hosts = host, port, known_hosts
        self.ourVersionString = b"SSH-2.0-shiftergw"
        self.supportedVersions = (b"1.99", b"2.0")
        self.supportedKeyExchanges = [*_EXCHANGES, STRICT_CLIENT]
        self.supportedPublicKeys = known_hosts.algorithms(host, port)
        self.supportedCiphers = [name.encode() for name in ciphers] or CIPHERS
        self.supportedMACs = MACS
        self.supportedCompressions = [NONE]  # images are compressed already
        self._strict = False
        self._secret: Any = None  # our half of the current key exchange

    def check_order(self, kind: int) -> None:
        """Refuse messages that are not allowed in the first key exchange, or in any.

        A strict key exchange allows no messages that an attacker could inject unnoticed.
        """
        allowed_kinds = _STRICT if self._strict else _LAX
        if self._first_exchange and kind not in allowed_kinds:
            raise broken_protocol(f"message {kind} within the first key exchange")
        if kind in _OF_EXCHANGES and kind not in _STRICT:
            raise broken_protocol(f"message {kind}")

    @property
    def exchanging(self) -> bool:
        """Return whether only messages of the key exchange may be sent now."""
        return self._keyExchangeState is not self._KEY_EXCHANGE_NONE

    @property
    def _first_exchange(self) -> bool:
        return not isinstance(self.currentEncryptions, Ciphers)

    def ssh_KEXINIT(self, packet: bytes) -> None:
        if self._keyExchangeState is self._KEY_EXCHANGE_PROGRESSING:
            raise broken_protocol("a key exchange within a key exchange")
        self.otherKexInitPayload = bytes((MSG_KEXINIT,)) + packet
        server_lists = [names.split(b",") for names in getNS(packet[_COOKIE:], _LISTS)[:_LISTS]]
        if self._first_exchange and STRICT_SERVER in server_lists[0]:
            self._strict = True
            if self.incomingPacketSequence != 1:
                raise broken_protocol("a message before the first key exchange")
        self._choose(server_lists)
        if not self.exchanging:
            self.sendKexInit()
        self._keyExchangeState = self._KEY_EXCHANGE_PROGRESSING
        self._secret = self._generateECPrivateKey()
        half = self._encodeECPublicKey(self._secret.public_key())
        self.sendPacket(MSG_KEX_DH_GEX_REQUEST_OLD, NS(half))

    def _choose(self, server_lists: list[list[bytes]]) -> None:
        exchanges, host_keys, out, into, out_macs, into_macs = server_lists[:6]
        self.kexAlg = _negotiate("key exchange", _EXCHANGES, exchanges)
        self.keyAlg = _negotiate("host key", self.supportedPublicKeys, host_keys)
        out_cipher = _negotiate("cipher", self.supportedCiphers, out)
        into_cipher = _negotiate("cipher", self.supportedCiphers, into)
        for compressions in server_lists[6:8]:
            _negotiate("compression", [NONE], compressions)
        self.nextEncryptions = Ciphers(
            out_cipher,
            into_cipher,
            NONE if is_aead(out_cipher) else _negotiate("MAC", MACS, out_macs),
            NONE if is_aead(into_cipher) else _negotiate("MAC", MACS, into_macs),
        )
        self.outgoingCompressionType = self.incomingCompressionType = NONE

    def ssh_KEX_DH_GEX_GROUP(self, packet: bytes) -> None:
        """Handle the server's half: host key, public key, and the signature of the exchange."""
        if self._secret is None:
            raise broken_protocol("an answer to no key exchange")
        secret, self._secret = self._secret, None
        host_key, half, signature, _ = getNS(packet, 3)
        self._known_hosts.check(self._host, self._port, host_key)
        shared_secret = self._generateECSharedSecret(secret, half)
        digest = _kex.getHashProcessor(self.kexAlg)()
        for part in (
            self.ourVersionString,
            self.otherVersionString,
            self.ourKexInitPayload,
            self.otherKexInitPayload,
            host_key,
            self._encodeECPublicKey(secret.public_key()),
            half,
        ):
            digest.update(NS(part))
        digest.update(shared_secret)
        exchange_hash = digest.digest()
        if (
            self.keyAlg not in SIGNATURES.get(type_of(host_key), ())
            or getNS(signature)[0] != self.keyAlg
            or not Key.fromString(host_key, type="blob").verify(signature, exchange_hash)
        ):
            raise broken_protocol("the host key did not sign the key exchange")
        self._keySetup(shared_secret, exchange_hash)

    def ssh_NEWKEYS(self, packet: bytes) -> None:
        ready = getattr(getattr(self, "nextEncryptions", None), "encBlockSize", 0)
        if packet or not ready or not self.exchanging:
            raise broken_protocol("new keys out of turn")
        first = self._first_exchange
        self._newKeys()
        self.nextEncryptions = None
        if first:
            self.connectionSecure()

    def _newKeys(self) -> None:
        """Use the new keys; no packet was sent between our NEWKEYS and the server's."""
        if self._strict:
            self.outgoingPacketSequence = self.incomingPacketSequence = 0
        super()._newKeys()


def _negotiate(purpose: str, client: list[bytes], server: list[bytes]) -> bytes:
    """Return the first algorithm of the client that the server has (RFC 4253, section 7.1)."""
    for name in client:
        if name in server:
            return name
    server_names = printable(b",".join(server), 200)
    raise DeliveryFailed(
        "The system's SSH server and the gateway have no algorithm in common.",
        remedy='Tell the site\'s support: `"transport": "openssh"` may do.',
        detail=f"{purpose}: the server offers {server_names}",
    )
