"""URLs of configurations and redirects have one origin each, or are refused."""

from __future__ import annotations

import pytest

from shiftergw.errors import ConfigurationError
from shiftergw.sources.registry.location import Location, WebOrigin, target_of


@pytest.mark.parametrize(
    ("url", "expected", "host_field"),
    [
        ("https://Registry.Example/x?y", WebOrigin("https", "registry.example", 443), None),
        ("http://registry.example", WebOrigin("http", "registry.example", 80), None),
        ("https://a:5000", WebOrigin("https", "a", 5000), "a:5000"),
        ("http://[::1]:5000/v2/", WebOrigin("http", "::1", 5000), "[::1]:5000"),
        ("https://[::1]", WebOrigin("https", "::1", 443), "[::1]"),
        ("https://a.test./", WebOrigin("https", "a.test.", 443), None),
        (f"https://{'a' * 63}.b", WebOrigin("https", f"{'a' * 63}.b", 443), None),
    ],
)
def test_an_origin(url: str, expected: WebOrigin, host_field: str | None) -> None:
    """Scheme, host and port are read, with the default ports."""
    assert WebOrigin.of(url) == expected
    assert expected.host_field == (host_field or expected.host)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "file:///etc/passwd",
        "https://",
        "https://user@a/",
        "https://user:password@a/",
        "https://a\\@b/",
        "https://a b/",
        "https://a/\r\nX: y",
        "https://a:99999/",
        "https://ä/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 130}example/",
        "https://a..example/",
        "//a/b",
        "",
    ],
)
def test_urls_that_are_not_an_origin(url: str) -> None:
    """Other schemes, user names and odd characters are refused."""
    with pytest.raises(ValueError, match=r"."):
        WebOrigin.of(url)


def test_targets_of_redirects() -> None:
    """Relative URLs are joined; absolute ones are unchanged, because they may be signed."""
    base = "https://a:1/v2/x/blobs/1"
    assert target_of(base, "/y") == "https://a:1/y"
    assert target_of(base, "2") == "https://a:1/v2/x/blobs/2"
    assert target_of(base, "//b/c") == "https://b/c"
    signed_url = "https://b/./c;d?e=%2f&&f=#"
    assert target_of(base, signed_url) == signed_url.removesuffix("#")
    with pytest.raises(ValueError, match=r"."):
        target_of(base, "gopher://b")


def test_a_location() -> None:
    """The path of a URL is ignored, and docker.io has the address of Docker Hub's registry."""
    location = Location("x", "https://registry.example:5000/some/path", trusted_hosts=("a", "b:1"))
    assert location.base == "https://registry.example:5000"
    assert not location.is_docker_hub
    assert location.trusts(WebOrigin("https", "a", 7))
    assert location.trusts(WebOrigin("https", "b", 1))
    assert not location.trusts(WebOrigin("https", "b", 2))
    hub = Location("docker.io", "https://docker.io")
    assert hub.base == "https://registry-1.docker.io"
    assert hub.is_docker_hub
    assert Location("hub", "https://index.docker.io").base == "https://index.docker.io"
    assert not Location("x", "https://notdocker.io").is_docker_hub


@pytest.mark.parametrize(
    ("name", "url", "expected"),
    [
        ("registry-1.docker.io", "https://mirror.example.org", True),
        ("docker.io", "http://mirror.example.org:5000", True),
        ("Docker.io", "https://mirror.example.org", True),
        ("hub", "https://registry-1.docker.io", True),
        ("mirror.example.org", "https://mirror.example.org", False),
        ("notdocker.io", "https://mirror.example.org", False),
    ],
)
def test_mirrors_of_docker_hub(name: str, url: str, *, expected: bool) -> None:
    """A mirror is Docker Hub by the name of its location."""
    assert Location(name, url).is_docker_hub is expected


def test_a_location_without_a_url() -> None:
    """An invalid URL is a fault of the configuration; the error names the location."""
    with pytest.raises(ConfigurationError, match="'x'"):
        _ = Location("x", "registry.example").origin
