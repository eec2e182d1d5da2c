"""Encrypt and authenticate packets (RFC 4253, section 6; OpenSSH's PROTOCOL for AES-GCM).

An outgoing packet is one buffer: sequence number (4 bytes), packet length (4), padding length (1),
payload, padding. The sequence number is authenticated but not sent.
"""

from __future__ import annotations

import hmac
from typing import ClassVar, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from twisted.conch.ssh.transport import SSHCiphers

from shiftergw.ssh import cipher_names

_GCM_KEY = {name.encode(): size for name, size in cipher_names.GCM_KEY_BYTES.items()}
_CTR_KEY = {name.encode(): size for name, size in cipher_names.CTR_KEY_BYTES.items()}
_MAC = {b"hmac-sha2-256": ("sha256", 32), b"hmac-sha2-512": ("sha512", 64)}

CIPHERS = [name.encode() for name in cipher_names.CIPHERS]
"""The ciphers that we offer, the fastest first, as bytes for the protocol."""

MACS = [*_MAC]
"""The MACs that we offer for AES-CTR; AES-GCM needs none."""

NONE = b"none"
LONGEST = 256 << 10
"""The limit on the bytes of a packet, as in OpenSSH."""

_BLOCK = 16
_TAG = 16
_LENGTH = 4  # bytes of the length field
_SHORTEST = 5  # bytes of a packet: padding length, four bytes of padding


class InvalidPacket(Exception):
    """A packet has a wrong authentication tag, or an impossible length or padding."""


class Sealer(Protocol):
    """Encrypts and authenticates the packets of one direction in order."""

    block: ClassVar[int]
    clear_bytes: ClassVar[int]
    """Bytes of the length field that padding does not cover, because they are not encrypted."""

    def seal(self, packet: memoryview) -> tuple[bytes, bytes]:
        """Return the bytes to send for a packet in two pieces; the buffer may be reused then."""
        ...


class Opener(Protocol):
    """Decrypts and verifies the packets of one direction in order."""

    def open(self, data: memoryview, sequence: int) -> tuple[bytes | memoryview, int] | None:
        """Return the first packet of `data` and its size there; None while it is incomplete.

        The packet begins with the padding length and ends with the padding. Raises
        `InvalidPacket`.
        """
        ...


def is_aead(cipher: bytes) -> bool:
    """Return whether a cipher needs no MAC."""
    return cipher in _GCM_KEY


def _length(head: bytes | memoryview) -> int:
    length = int.from_bytes(head[:4], "big")
    if not _SHORTEST <= length <= LONGEST:
        raise InvalidPacket(f"a packet of {length} bytes")
    return length


class Clear:
    """Plain packets, before the first key exchange."""

    block: ClassVar[int] = 8
    clear_bytes: ClassVar[int] = 0

    def seal(self, packet: memoryview) -> tuple[bytes, bytes]:
        """Return the packet unchanged."""
        return bytes(packet[4:]), b""

    def open(self, data: memoryview, sequence: int) -> tuple[bytes, int] | None:  # noqa: ARG002
        """Return the packet unchanged."""
        if len(data) < _LENGTH:
            return None
        size = 4 + _length(data)
        return (bytes(data[4:size]), size) if len(data) >= size else None


class _Gcm:
    """AES-GCM: the length is authenticated but not encrypted (RFC 5647)."""

    block: ClassVar[int] = _BLOCK
    clear_bytes: ClassVar[int] = 4

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._aead = AESGCM(key)
        self._nonce_prefix, self._counter = iv[:4], int.from_bytes(iv[4:12], "big")

    def _nonce(self) -> bytes:
        nonce = self._nonce_prefix + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFFFFFFFFFFFFFF
        return nonce

    def seal(self, packet: memoryview) -> tuple[bytes, bytes]:
        length = bytes(packet[4:8])
        return length, self._aead.encrypt(self._nonce(), packet[8:], length)

    def open(self, data: memoryview, sequence: int) -> tuple[bytes, int] | None:  # noqa: ARG002
        if len(data) < _LENGTH:
            return None
        length = _length(data)
        size = 4 + length + _TAG
        if length % _BLOCK:
            raise InvalidPacket(f"a packet of {length} bytes")
        if len(data) < size:
            return None
        try:
            return self._aead.decrypt(self._nonce(), data[4:size], data[:4]), size
        except InvalidTag as error:
            raise InvalidPacket("a packet with a wrong tag") from error


class _Ctr:
    """AES-CTR followed by an HMAC of the plain packet (encrypt-and-MAC)."""

    block: ClassVar[int] = _BLOCK
    clear_bytes: ClassVar[int] = 0

    def __init__(self, key: bytes, iv: bytes, mac: bytes, mac_key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key), modes.CTR(iv[:_BLOCK]))
        self._cipher = cipher.encryptor()  # CTR mode decrypts by encrypting
        self._digest, self._size = _MAC[mac]
        self._mac_key = mac_key[: self._size]
        self._head = b""

    def seal(self, packet: memoryview) -> tuple[bytes, bytes]:
        mac = hmac.digest(self._mac_key, packet, self._digest)
        return self._cipher.update(packet[4:]), mac

    def open(self, data: memoryview, sequence: int) -> tuple[memoryview, int] | None:
        if not self._head:
            if len(data) < _BLOCK:
                return None
            self._head = self._cipher.update(data[:_BLOCK])
        length = _length(self._head)
        if (4 + length) % _BLOCK:
            raise InvalidPacket(f"a packet of {length} bytes")
        end = 4 + length
        if len(data) < end + self._size:
            return None
        packet = b"".join(
            (sequence.to_bytes(4, "big"), self._head, self._cipher.update(data[_BLOCK:end]))
        )
        self._head = b""
        mac = hmac.digest(self._mac_key, packet, self._digest)
        if not hmac.compare_digest(mac, data[end : end + self._size]):
            raise InvalidPacket("a packet with a wrong MAC")
        return memoryview(packet)[8:], end + self._size


def _one_way(cipher: bytes, mac: bytes, iv: bytes, key: bytes, mac_key: bytes) -> _Gcm | _Ctr:
    if is_aead(cipher):
        return _Gcm(key[: _GCM_KEY[cipher]], iv)
    return _Ctr(key[: _CTR_KEY[cipher]], iv, mac, mac_key)


class Ciphers(SSHCiphers):
    """The sealer and the opener, which Conch's key exchange provides with keys."""

    outgoing: Sealer
    incoming: Opener

    def setKeys(
        self,
        outIV: bytes,  # noqa: N803
        outKey: bytes,  # noqa: N803
        inIV: bytes,  # noqa: N803
        inKey: bytes,  # noqa: N803
        outInteg: bytes,  # noqa: N803
        inInteg: bytes,  # noqa: N803
    ) -> None:
        self.outgoing = _one_way(self.outCipType, self.outMACType, outIV, outKey, outInteg)
        self.incoming = _one_way(self.inCipType, self.inMACType, inIV, inKey, inInteg)
        self.encBlockSize = self.decBlockSize = _BLOCK  # signals to Conch that there are keys

    @property
    def names(self) -> str:
        """Return the algorithms of both directions, for the log."""
        ways = ((self.outCipType, self.outMACType), (self.inCipType, self.inMACType))
        return " / ".join(
            cipher.decode() if mac == NONE else f"{cipher.decode()} {mac.decode()}"
            for cipher, mac in ways
        )
