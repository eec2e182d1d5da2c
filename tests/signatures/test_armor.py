"""Tests of the armor of keyrings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shiftergw.signatures.armor import read_keyring
from tests.gpg import GpgHome


@pytest.fixture(scope="module")
def home() -> Iterator[GpgHome]:
    """Return a home with two keys."""
    with GpgHome() as home:
        home.make_key("first")
        home.make_key("second")
        yield home


def test_real_keyrings(home: GpgHome) -> None:
    """An armored keyring of `gpg` is the binary one, and binary ones stay as they are."""
    binary = home.export()
    assert read_keyring(home.export(armor=True)) == binary
    assert read_keyring(binary) == binary
    box = (home.path / "pubring.kbx").read_bytes()
    assert read_keyring(box) == box


def test_several_blocks_with_text(home: GpgHome) -> None:
    """All blocks of a file are read; text and headers are ignored."""
    first = home.export("first", armor=True)
    second = home.export("second", armor=True).replace(b"\n\n", b"\nComment: x\n\n", 1)
    content = b"The key of\r\n" + first.replace(b"\n", b"\r\n") + b"and\n" + second
    assert read_keyring(content) == home.export("first") + home.export("second")


def damage_checksum(text: bytes) -> bytes:
    """Return an armored keyring with the checksum of other bytes."""
    start = text.rindex(b"\n=") + 2
    return text[:start] + b"AAAA" + text[start + 4 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage_checksum, "checksum"),
        (lambda text: text.replace(b"\n\n", b"\n\n!", 1), "not base64"),
        (lambda text: text.replace(b"\n\n", b"\nno header\n\n", 1), "header"),
        (lambda text: text.partition(b"-----END")[0], "neither"),
        (lambda text: text.replace(b"PUBLIC KEY", b"PRIVATE KEY"), "neither"),
        (lambda _: b"", "neither"),
        (lambda _: b"some text", "neither"),
        (
            lambda _: b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----",
            "no OpenPGP packets",
        ),
        (
            lambda _: (
                b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nYWJj\n-----END PGP PUBLIC KEY BLOCK-----"
            ),
            "no OpenPGP packets",
        ),
    ],
)
def test_damage(home: GpgHome, change: Callable[[bytes], bytes], reason: str) -> None:
    """A damaged keyring, and any other content, is refused."""
    with pytest.raises(ValueError, match=reason):
        read_keyring(change(home.export("first", armor=True)))
