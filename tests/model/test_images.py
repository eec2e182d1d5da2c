"""Tests of the values that describe images: digests, platforms, layers, reports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import BadRequest
from shiftergw.model.images import (
    BuiltImage,
    ContentReport,
    Descriptor,
    Digest,
    Platform,
    ResolvedImage,
)

HEX = "0123456789abcdef" * 4


DIGESTS = st.sampled_from([("sha256", 64), ("sha384", 96), ("sha512", 128)]).flatmap(
    lambda kind: st.tuples(
        st.just(kind[0]),
        st.text("0123456789abcdef", min_size=kind[1], max_size=kind[1]),
    )
)


@given(DIGESTS)
def test_digest_round_trip(parts: tuple[str, str]) -> None:
    """Parsing the text of a digest returns the same digest."""
    algorithm, digits = parts
    digest = Digest.parse(f"{algorithm}:{digits}")
    assert (digest.algorithm, digest.hex) == (algorithm, digits)
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"md5:{HEX[:32]}",
        f"sha512:{HEX}",
        f"sha256:{HEX[:-1]}/",
        "sha256:../../../../etc/passwd",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"sha256:{HEX[:-1]}٣",
        f"sha256::{HEX}",
    ],
)
def test_a_malformed_digest_is_rejected(text: str) -> None:
    """Anything but a digest raises an error, because digests become file names."""
    with pytest.raises(BadRequest, match="is not a digest"):
        Digest.parse(text)


@pytest.mark.parametrize("value", [None, 5, b"sha256:", ["sha256"], {}])
def test_digest_of_another_type(value: Any) -> None:
    """A JSON value that is not a string raises the same error as a malformed digest."""
    with pytest.raises(BadRequest):
        Digest.parse(value)


def test_digest_error_is_printable() -> None:
    """The error repeats a malformed digest escaped and shortened."""
    with pytest.raises(BadRequest) as caught:
        Digest.parse("\x1b[2J\n" + "x" * 10_000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_digest_of_content() -> None:
    """The digest of bytes is their SHA-256."""
    assert str(Digest.of(b"abc")) == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amd64", Platform("amd64")),
        ("arm64/v8", Platform("arm64", "v8")),
        ("arm/v7", Platform("arm", "v7")),
        ("ppc64le", Platform("ppc64le")),
        ("x86_64", Platform("x86_64")),
    ],
)
def test_platform(text: str, expected: Platform) -> None:
    """Parsing an architecture, with or without a variant, keeps its text."""
    assert Platform.parse(text) == expected
    assert str(expected) == text
    assert expected.os == "linux"


@pytest.mark.parametrize(
    "text", ["", "amd64/", "/v8", "AMD64", "arm64/8", "arm64/v8/x", "linux/arm64/v8", "a b", "a\n"]
)
def test_a_malformed_platform_is_rejected(text: str) -> None:
    """The error shows what an architecture looks like."""
    with pytest.raises(ValueError, match="`amd64` or `arm64/v8`"):
        Platform.parse(text)


def image_of(*layers: Descriptor) -> ResolvedImage:
    """Return a resolved image with these layers."""
    digest = Digest.of(b"manifest")
    return ResolvedImage(
        digest, Digest.of(b"index"), Descriptor(Digest.of(b"config"), 6), layers, "l", "r"
    )


def test_image_id() -> None:
    """The image id is the hex of the manifest's digest, not of the index's."""
    assert image_of().id == hashlib.sha256(b"manifest").hexdigest()


def test_download_size_counts_a_blob_once() -> None:
    """A layer that an image names twice is downloaded once."""
    a, b = Descriptor(Digest.of(b"a"), 10), Descriptor(Digest.of(b"b"), 5)
    assert image_of(a, b, a).download_size == 15
    assert image_of().download_size == 0


def test_report_as_document() -> None:
    """A content report is a flat JSON object of counts."""
    document = ContentReport(entries=2, size=10, devices=1).to_document()
    assert document["entries"] == 2
    assert document["devices"] == 1
    assert all(isinstance(count, int) for count in document.values())


def test_values_are_frozen() -> None:
    """The attributes of a built image cannot be changed."""
    image = BuiltImage(Path("x"), 1, HEX, ContentReport())
    with pytest.raises(AttributeError):
        image.size = 2  # type: ignore[misc]
