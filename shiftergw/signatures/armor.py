"""Remove the ASCII armor of OpenPGP keyrings (RFC 9580, section 6.2).

`gpgv` reads binary keyrings only: in an armored one it finds no key.
"""

from __future__ import annotations

import base64
import re

_BLOCK = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_CHECKSUM = re.compile(rb"=[A-Za-z0-9+/]{4}")
_CRC_START, _CRC_POLYNOMIAL = 0xB704CE, 0x1864CFB

_PACKET_BIT = 0x80
"""The bit that is set in the first byte of every OpenPGP packet, and in no byte of ASCII."""

_KEYBOX_MAGIC = slice(8, 12), b"KBXf"
"""Where a keybox, the keyring of newer versions of GnuPG, has its magic number."""


def read_keyring(content: bytes) -> bytes:
    """Return a keyring as `gpgv` reads it; raise `ValueError` for anything else.

    An armored keyring may have several blocks with text around them.
    """
    place, magic = _KEYBOX_MAGIC
    if content[:1] and (content[0] & _PACKET_BIT or content[place] == magic):
        return content
    blocks = _BLOCK.findall(content)
    if not blocks:
        raise ValueError("it is neither an OpenPGP keyring nor an armored one")
    return b"".join(map(_read_block, blocks))


def _read_block(block: bytes) -> bytes:
    """Return the packets of a block; its headers end with an empty line."""
    lines = [line.strip() for line in block.splitlines()]
    start = lines.index(b"") + 1 if b"" in lines else 0
    if any(b": " not in line for line in lines[: max(0, start - 1)]):
        raise ValueError("its armor is damaged: a header is invalid")
    data = [line for line in lines[start:] if line]
    checksum = data.pop()[1:] if data and _CHECKSUM.fullmatch(data[-1]) else None
    try:
        packets = base64.b64decode(b"".join(data), validate=True)
    except ValueError as error:
        raise ValueError("its armor is damaged: it is not base64") from error
    if not packets or not packets[0] & _PACKET_BIT:
        raise ValueError("its armor contains no OpenPGP packets")
    if checksum is not None and int.from_bytes(base64.b64decode(checksum)) != _crc24(packets):
        raise ValueError("its armor is damaged: the checksum is wrong")
    return packets


def _crc24(content: bytes) -> int:
    """Return the checksum of RFC 9580, section 6.1."""
    crc = _CRC_START
    for byte in content:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= _CRC_POLYNOMIAL
    return crc
