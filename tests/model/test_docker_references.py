"""Tests of docker references: expansion, scopes, and rules of comparison."""

from __future__ import annotations

import pytest

from shiftergw.model.docker_references import (
    DockerReference,
    expanded_prefix,
    is_same_or_repository,
    replace_prefix,
)

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox", "docker.io/library/busybox"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("user/image:1.0", "docker.io/user/image:1.0"),
        ("docker.io/busybox", "docker.io/library/busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox"),
        ("localhost/x", "localhost/x"),
        ("Host/x", "host/x"),
        ("harbor:443/x", "harbor:443/x"),
        ("reg.example.org:443/a:t", "reg.example.org/a:t"),
        ("reg.example.org:5000/a/b:t", "reg.example.org:5000/a/b:t"),
        (f"REG.example.org/a@{DIGEST}", f"reg.example.org/a@{DIGEST}"),
        (f"reg.example.org/a:t@{DIGEST}", f"reg.example.org/a:t@{DIGEST}"),
        ("[::1]:5000/a", "[::1]:5000/a"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    """References without a host belong to Docker Hub, and hosts are in lower case."""
    assert str(DockerReference.parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "A:1", "a b", "a:", "a@sha256", "a\n", "a//b", "ä", "a:t:u", "x/" * 600 + "a"],
)
def test_no_reference(text: str) -> None:
    """Anything outside the grammar is refused."""
    with pytest.raises(ValueError, match="docker reference"):
        DockerReference.parse(text)


def test_scopes() -> None:
    """Scopes are the reference, its repository, namespaces, the host, and parent domains."""
    reference = DockerReference.parse("a.example.org:5000/n/m:t")
    assert list(reference.scopes()) == [
        "a.example.org:5000/n/m:t",
        "a.example.org:5000/n/m",
        "a.example.org:5000/n",
        "a.example.org:5000",
        "*.example.org",
        "*.org",
    ]


def test_a_digest_hides_the_tag() -> None:
    """A tag beside a digest was not looked up, so it is not a scope."""
    reference = DockerReference.parse(f"localhost/m:t@{DIGEST}")
    assert list(reference.scopes()) == [f"localhost/m@{DIGEST}", "localhost/m", "localhost"]


@pytest.mark.parametrize("text", ["a/b:t", "", "*.example.org", "a/", f"a@{DIGEST}", "a b"])
def test_prefixes_have_neither_tag_nor_digest(text: str) -> None:
    """A prefix is a host, a namespace or a repository."""
    with pytest.raises(ValueError, match="namespace"):
        expanded_prefix(text)


@pytest.mark.parametrize(
    ("image", "signature", "matches"),
    [
        ("a.b/c:1", "a.b/c:1", True),
        ("a.b/c:1", "a.b/c:2", False),
        ("a.b/c:1", "a.b/d:1", False),
        ("a.b/c:1", "a.b/c", False),
        ("a.b/c:1", f"a.b/c@{DIGEST}", False),
        (f"a.b/c@{DIGEST}", "a.b/c:2", True),
        (f"a.b/c:1@{DIGEST}", "a.b/c:2", True),
        (f"a.b/c@{DIGEST}", "a.b/d:2", False),
        (f"a.b/c@{DIGEST}", "a.b/c", False),
        ("a.b/c", "a.b/c:1", False),
    ],
)
def test_match_repo_digest_or_exact(image: str, signature: str, matches: bool) -> None:
    """A tag must be the same; with a digest the repository must be."""
    references = DockerReference.parse(image), DockerReference.parse(signature)
    assert is_same_or_repository(*references) is matches


@pytest.mark.parametrize(
    ("prefix", "signed_prefix", "expected"),
    [
        ("m.org:5000/vendor", "vendor.com", "vendor.com/p/i:1"),
        ("m.org:5000", "vendor.com/x", "vendor.com/x/vendor/p/i:1"),
        ("m.org:5000/vendor/p/i", "vendor.com/i", "vendor.com/i:1"),
        ("m.org:5000/ven", "vendor.com", "m.org:5000/vendor/p/i:1"),
        ("m.org", "vendor.com", "m.org:5000/vendor/p/i:1"),
    ],
)
def test_remapping(prefix: str, signed_prefix: str, expected: str) -> None:
    """Whole components of the name are replaced; the tag stays."""
    image = DockerReference.parse("m.org:5000/vendor/p/i:1")
    assert str(replace_prefix(image, prefix, signed_prefix)) == expected
