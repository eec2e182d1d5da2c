"""Sealed packets: what goes in comes out, and nothing that was changed on its way does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.ssh.ciphers import (
    CIPHERS,
    LONGEST,
    MACS,
    NONE,
    Ciphers,
    Clear,
    InvalidPacket,
    is_aead,
)

PAIRS = [
    (cipher, mac)
    for cipher in CIPHERS
    for mac in ([NONE] if is_aead(cipher) else MACS)
]  # fmt: skip


def ciphers(pair: tuple[bytes, bytes]) -> Ciphers:
    """Return ciphers whose two directions have the same keys, so that each opens its own."""
    cipher, mac = pair
    made = Ciphers(cipher, cipher, mac, mac)
    iv, key, integrity = (bytes([n]) * 128 for n in (1, 2, 3))
    made.setKeys(iv, key, iv, key, integrity, integrity)
    return made


def packet(payload: bytes, sequence: int, clear_bytes: int, block: int) -> memoryview:
    """Return a packet as it is to be sealed."""
    padding = block - (5 - clear_bytes + len(payload)) % block + block
    head = struct.pack(">LLB", sequence, 1 + len(payload) + padding, padding)
    return memoryview(head + payload + bytes(padding))


def sealed(made: Ciphers, payload: bytes, sequence: int) -> bytes:
    """Return what goes over the wire for a payload."""
    sealer = made.outgoing
    return b"".join(sealer.seal(packet(payload, sequence, sealer.clear_bytes, sealer.block)))


@given(st.sampled_from(PAIRS), st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_round_trip(pair: tuple[bytes, bytes], payloads: list[bytes], step: int) -> None:
    """Packets come out as they went in, in whatever pieces they arrive."""
    made = ciphers(pair)
    wire = b"".join(sealed(made, each, number) for number, each in enumerate(payloads))
    found: list[bytes] = []
    start = 0
    for end in (*range(0, len(wire), step), len(wire)):
        while opened := made.incoming.open(memoryview(wire)[start:end], len(found)):
            content, size = opened
            start += size
            found.append(bytes(content[1 : len(content) - content[0]]))
    assert found == payloads
    assert start == len(wire)


@given(st.sampled_from(PAIRS), st.binary(max_size=100), st.data())
def test_changed_packets(pair: tuple[bytes, bytes], payload: bytes, data: st.DataObject) -> None:
    """A packet with any bit changed is forged, or waits for more than there is."""
    made = ciphers(pair)
    wire = bytearray(sealed(made, payload, 0))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert made.incoming.open(memoryview(wire), 0) is None
    except InvalidPacket:
        return
    with pytest.raises(InvalidPacket):
        made.incoming.open(memoryview(bytes(wire) + bytes(LONGEST)), 0)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not is_aead(pair[0])])
def test_packets_out_of_order(pair: tuple[bytes, bytes]) -> None:
    """A packet that is not the next one is forged."""
    made = ciphers(pair)
    with pytest.raises(InvalidPacket):
        made.incoming.open(memoryview(sealed(made, b"payload", 0)), 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_repeated_packet(pair: tuple[bytes, bytes]) -> None:
    """A packet that is sent a second time is forged."""
    made = ciphers(pair)
    wire = memoryview(sealed(made, b"payload", 0))
    assert made.incoming.open(wire, 0) is not None
    with pytest.raises(InvalidPacket):
        assert made.incoming.open(memoryview(bytes(wire) + bytes(LONGEST)), 1) is None


@pytest.mark.parametrize("length", [0, 4, LONGEST + 1, 0xFFFFFFFF])
def test_lengths_that_cannot_be(length: int) -> None:
    """Too short and too long packets are refused before they have arrived."""
    for opener in Clear(), ciphers(PAIRS[0]).incoming:
        with pytest.raises(InvalidPacket):
            opener.open(memoryview(struct.pack(">L", length)), 0)
