"""Encrypted packets are restored, and changed packets are refused."""

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
    """Return ciphers with equal keys in both directions, so that they open their own packets."""
    cipher, mac = pair
    loopback = Ciphers(cipher, cipher, mac, mac)
    iv, key, integrity = (bytes([n]) * 128 for n in (1, 2, 3))
    loopback.setKeys(iv, key, iv, key, integrity, integrity)
    return loopback


def packet(payload: bytes, sequence: int, clear_bytes: int, block: int) -> memoryview:
    """Return a packet before encryption."""
    padding = block - (5 - clear_bytes + len(payload)) % block + block
    head = struct.pack(">LLB", sequence, 1 + len(payload) + padding, padding)
    return memoryview(head + payload + bytes(padding))


def seal(loopback: Ciphers, payload: bytes, sequence: int) -> bytes:
    """Return the encrypted packet of a payload."""
    sealer = loopback.outgoing
    return b"".join(sealer.seal(packet(payload, sequence, sealer.clear_bytes, sealer.block)))


@given(st.sampled_from(PAIRS), st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_round_trip(pair: tuple[bytes, bytes], payloads: list[bytes], step: int) -> None:
    """Packets are restored, however the stream is split."""
    loopback = ciphers(pair)
    wire = b"".join(seal(loopback, payload, number) for number, payload in enumerate(payloads))
    results: list[bytes] = []
    start = 0
    for end in (*range(0, len(wire), step), len(wire)):
        while packet_and_size := loopback.incoming.open(memoryview(wire)[start:end], len(results)):
            content, size = packet_and_size
            start += size
            results.append(bytes(content[1 : len(content) - content[0]]))
    assert results == payloads
    assert start == len(wire)


@given(st.sampled_from(PAIRS), st.binary(max_size=100), st.data())
def test_changed_packets(pair: tuple[bytes, bytes], payload: bytes, data: st.DataObject) -> None:
    """A packet with one changed bit is refused, or seems incomplete."""
    loopback = ciphers(pair)
    wire = bytearray(seal(loopback, payload, 0))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert loopback.incoming.open(memoryview(wire), 0) is None
    except InvalidPacket:
        return
    with pytest.raises(InvalidPacket):
        loopback.incoming.open(memoryview(bytes(wire) + bytes(LONGEST)), 0)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not is_aead(pair[0])])
def test_packets_out_of_order(pair: tuple[bytes, bytes]) -> None:
    """A packet with a wrong sequence number is refused."""
    loopback = ciphers(pair)
    with pytest.raises(InvalidPacket):
        loopback.incoming.open(memoryview(seal(loopback, b"payload", 0)), 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_repeated_packet(pair: tuple[bytes, bytes]) -> None:
    """A repeated packet is refused."""
    loopback = ciphers(pair)
    wire = memoryview(seal(loopback, b"payload", 0))
    assert loopback.incoming.open(wire, 0) is not None
    with pytest.raises(InvalidPacket):
        assert loopback.incoming.open(memoryview(bytes(wire) + bytes(LONGEST)), 1) is None


@pytest.mark.parametrize("length", [0, 4, LONGEST + 1, 0xFFFFFFFF])
def test_impossible_lengths(length: int) -> None:
    """Too short and too long packets are refused before they have arrived."""
    for opener in Clear(), ciphers(PAIRS[0]).incoming:
        with pytest.raises(InvalidPacket):
            opener.open(memoryview(struct.pack(">L", length)), 0)
