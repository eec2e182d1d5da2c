"""The key exchange of our SSH client: what Conch's lacks, in a subclass.

Beyond Conch: AES-GCM; RSA host keys with SHA-2 only; the algorithm of the signature is the one that
was agreed; strict key exchange (OpenSSH's PROTOCOL, section 1.10), which closes CVE-2023-48795; our
side starts an exchange when much has been sent.
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

MALFORMED = (
    struct.error, IndexError, KeyError, TypeError, ValueError, BadKeyError, ConchError, InvalidKey,
    UnsupportedAlgorithm,
)  # fmt: skip
"""What the reading of a packet raises if the other side wrote nonsense."""

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
    """Return the error of a server that does not keep to the protocol."""
    return DeliveryFailed(
        "The system does not speak SSH as it should, or something between changes it.",
        detail=printable(detail),
    )


class KeyExchange(SSHClientTransport):
    """Agrees on algorithms and keys; what it reads may raise `DeliveryFailed` and `MALFORMED`."""

    transport: Any
    currentEncryptions: Any  # noqa: N815
    nextEncryptions: Any  # noqa: N815

    def __init__(
        self, host: str, port: int, known_hosts: HostKeys, ciphers: Sequence[str] = ()
    ) -> None:
        """Agree only with the host that is known by this name; no `ciphers` means all of ours."""
        self._host, self._port, self._known_hosts = host, port, known_hosts
        self.ourVersionString = b"SSH-2.0-shiftergw"
        self.supportedVersions = (b"1.99", b"2.0")
        self.supportedKeyExchanges = [*_EXCHANGES, STRICT_CLIENT]
        self.supportedPublicKeys = known_hosts.algorithms(host, port)
        self.supportedCiphers = [name.encode() for name in ciphers] or CIPHERS
        self.supportedMACs = MACS
        self.supportedCompressions = [NONE]  # images are compressed already
        self._strict = False
        self._secret: Any = None  # our half of the exchange that is going on

    def check_order(self, kind: int) -> None:
        """Refuse messages that have no place in the first exchange, or in any.

        The strict exchange has no place for what an attacker could put in unseen.
        """
        allowed = _STRICT if self._strict else _LAX
        if self._first_exchange and kind not in allowed:
            raise broken_protocol(f"message {kind} within the first key exchange")
        if kind in _OF_EXCHANGES and kind not in _STRICT:
            raise broken_protocol(f"message {kind}")

    @property
    def exchanging(self) -> bool:
        """Say whether only messages of the key exchange may be sent now."""
        return self._keyExchangeState is not self._KEY_EXCHANGE_NONE

    @property
    def _first_exchange(self) -> bool:
        return not isinstance(self.currentEncryptions, Ciphers)

    def ssh_KEXINIT(self, packet: bytes) -> None:
        if self._keyExchangeState is self._KEY_EXCHANGE_PROGRESSING:
            raise broken_protocol("a key exchange within a key exchange")
        self.otherKexInitPayload = bytes((MSG_KEXINIT,)) + packet
        offered = [names.split(b",") for names in getNS(packet[_COOKIE:], _LISTS)[:_LISTS]]
        if self._first_exchange and STRICT_SERVER in offered[0]:
            self._strict = True
            if self.incomingPacketSequence != 1:
                raise broken_protocol("a message before the first key exchange")
        self._choose(offered)
        if not self.exchanging:
            self.sendKexInit()
        self._keyExchangeState = self._KEY_EXCHANGE_PROGRESSING
        self._secret = self._generateECPrivateKey()
        half = self._encodeECPublicKey(self._secret.public_key())
        self.sendPacket(MSG_KEX_DH_GEX_REQUEST_OLD, NS(half))

    def _choose(self, offered: list[list[bytes]]) -> None:
        exchanges, host_keys, out, into, out_macs, into_macs = offered[:6]
        self.kexAlg = _agreed("key exchange", _EXCHANGES, exchanges)
        self.keyAlg = _agreed("host key", self.supportedPublicKeys, host_keys)
        out_cipher = _agreed("cipher", self.supportedCiphers, out)
        into_cipher = _agreed("cipher", self.supportedCiphers, into)
        for compressions in offered[6:8]:
            _agreed("compression", [NONE], compressions)
        self.nextEncryptions = Ciphers(
            out_cipher,
            into_cipher,
            NONE if is_aead(out_cipher) else _agreed("MAC", MACS, out_macs),
            NONE if is_aead(into_cipher) else _agreed("MAC", MACS, into_macs),
        )
        self.outgoingCompressionType = self.incomingCompressionType = NONE

    def ssh_KEX_DH_GEX_GROUP(self, packet: bytes) -> None:
        """Take the server's half: its host key, its public key, its signature of all before."""
        if self._secret is None:
            raise broken_protocol("an answer to no key exchange")
        secret, self._secret = self._secret, None
        host_key, half, signature, _ = getNS(packet, 3)
        self._known_hosts.check(self._host, self._port, host_key)
        shared = self._generateECSharedSecret(secret, half)
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
        digest.update(shared)
        signed = digest.digest()
        if (
            self.keyAlg not in SIGNATURES.get(type_of(host_key), ())
            or getNS(signature)[0] != self.keyAlg
            or not Key.fromString(host_key, type="blob").verify(signature, signed)
        ):
            raise broken_protocol("the host key did not sign the key exchange")
        self._keySetup(shared, signed)

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
        """Use the new keys; nothing was sent between our NEWKEYS and the server's."""
        if self._strict:
            self.outgoingPacketSequence = self.incomingPacketSequence = 0
        super()._newKeys()


def _agreed(what: str, ours: list[bytes], theirs: list[bytes]) -> bytes:
    for name in ours:
        if name in theirs:
            return name
    offered = printable(b",".join(theirs), 200)
    raise DeliveryFailed(
        "The system's SSH server and the gateway have no algorithm in common.",
        remedy='Tell the site\'s support: `"transport": "openssh"` may do.',
        detail=f"{what}: the server offers {offered}",
    )
