"""The location that the name of an image means."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotAllowed
from shiftergw.model.references import ImageReference
from tests.configurations import load_config

QUAY: dict[str, Any] = {"Locations/Quay.io": {"remotetype": "dockerv2"}}
PORTS: dict[str, Any] = {
    "Locations/host:5000": {"remotetype": "dockerv2"},
    "Locations/tls:443": {"remotetype": "dockerv2"},
    "Locations/plain": {"remotetype": "dockerv2", "url": "http://plain"},
}
HUB: dict[str, Any] = {"Locations/registry-1.docker.io": {"remotetype": "dockerv2"}}


def locate(config: Config, name: str) -> tuple[str, str]:
    """Return the location of a name as users write it, and the repository there."""
    return config.locate(ImageReference.parse(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Without a host a name is a repository of the default location.
        ("alpine:3", ("registry.example.com", "alpine")),
        ("library/ubuntu", ("registry.example.com", "library/ubuntu")),
        ("group/app:1", ("registry.example.com", "group/app")),
        ("quay.io:1", ("registry.example.com", "quay.io")),
        # A name that is written out may have a host in its repository.
        ("registry.example.com/docker.io/x:1", ("registry.example.com", "docker.io/x")),
        # Names of locations have no case.
        ("Quay.io/x/y:1", ("Quay.io", "x/y")),
        ("quay.io/x/y:1", ("Quay.io", "x/y")),
        ("QUAY.IO/x/y:1", ("Quay.io", "x/y")),
        ("Registry.Example.com/x", ("registry.example.com", "x")),
        # The default port goes without saying.
        ("quay.io:443/x", ("Quay.io", "x")),
        ("tls/x:1", ("tls:443", "x")),
        ("tls:443/x:1", ("tls:443", "x")),
        ("host:5000/x:1", ("host:5000", "x")),
        ("HOST:5000/x:1", ("host:5000", "x")),
        ("plain:80/x:1", ("plain", "x")),
        ("docker://quay.io/x", ("Quay.io", "x")),
        ("https://QUAY.io/x/y/", ("Quay.io", "x/y")),
    ],
)
def test_locate(name: str, expected: tuple[str, str]) -> None:
    """A name that begins with a location is in it, however the user spells the host."""
    assert locate(load_config(QUAY | PORTS).config, name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "unknown.example/x/y:1",
        "other.example.com:5000/app:1",
        "localhost/x",
        "plain:443/x",
        "quay.io:5000/x",
        "docker.io/library/alpine:3",
        "[fd00::1]:5000/x",
        "Foo/x",
    ],
)
def test_an_unknown_host_is_refused(name: str) -> None:
    """A host that is no location is never searched as a repository of the default location."""
    with pytest.raises(BadRequest) as caught:
        locate(load_config(QUAY | PORTS).config, name)
    host = name.partition("/")[0]
    assert caught.value.what == f"This gateway has no registry {host}."
    for words in ("registry.example.com", "Quay.io", "host:5000", "`Locations`"):
        assert words in caught.value.remedy
    repository = ImageReference.parse(name).name
    assert f"`registry.example.com/{repository}`" in caught.value.remedy


@pytest.mark.parametrize(
    "host", ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.io"]
)
@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("registry-1.docker.io", "https://registry-1.docker.io"),
        ("docker.io", "https://mirror.example.org"),
        ("index.docker.io", "https://index.docker.io"),
        ("hub", "https://registry-1.docker.io"),
    ],
)
def test_docker_hub_has_several_names(location: str, url: str, host: str) -> None:
    """All names of Docker Hub mean the location that is Docker Hub, by its name or its URL."""
    config = load_config({f"Locations/{location}": {"remotetype": "dockerv2", "url": url}}).config
    assert locate(config, f"{host}/library/alpine:3") == (location, "library/alpine")


def test_two_names_of_docker_hub_are_two_locations() -> None:
    """Each name means its own location where both exist."""
    config = load_config(HUB | {"Locations/docker.io": {"remotetype": "dockerv2"}}).config
    assert locate(config, "docker.io/x") == ("docker.io", "x")
    assert locate(config, "registry-1.docker.io/x") == ("registry-1.docker.io", "x")
    assert locate(config, "index.docker.io/x") == ("registry-1.docker.io", "x")


def test_locations_that_users_cannot_tell_apart() -> None:
    """Two locations with the same name to users cause a warning; the exact name is preferred."""
    result = load_config(QUAY | {"Locations/quay.io:443": {"remotetype": "dockerv2"}})
    (warning,) = result.warnings
    assert warning.startswith("Locations.quay.io:443: Quay.io is the same name to users")
    assert locate(result.config, "quay.io:443/x") == ("quay.io:443", "x")


def test_logins_have_the_names_of_locations() -> None:
    """A login that a user has stored under another spelling belongs to the location."""
    config = load_config(QUAY | HUB).config
    assert config.location_named("QUAY.io") == "Quay.io"
    assert config.location_named("docker.io") == "registry-1.docker.io"
    assert config.location_named("Other.example:443") == "other.example"
    assert load_config(QUAY).config.location_named("index.docker.io") == "docker.io"


def test_stored_tags() -> None:
    """An image is found under its normalized name, and as an earlier gateway stored it."""
    assert str(ImageReference.parse("QUAY.io/x")) == "quay.io/x:latest"
    assert ImageReference.stored_tags("QUAY.io/x") == [
        "quay.io/x:latest",
        "QUAY.io/x",
        "QUAY.io/x:latest",
    ]
    assert ImageReference.stored_tags("x:1") == ["x:1"]


ANY_REGISTRY = {"remotetype": "dockerv2"}


@pytest.mark.parametrize(
    ("lists", "name", "expected"),
    [
        ({}, "ghcr.io/a/b:1", ("ghcr.io", "a/b")),
        ({}, "GHCR.io:443/a/b:1", ("ghcr.io", "a/b")),
        ({}, "localhost:5000/a", ("localhost:5000", "a")),
        ({}, "docker.io/ubuntu", ("docker.io", "ubuntu")),
        ({}, "registry-1.docker.io/ubuntu", ("docker.io", "ubuntu")),
        ({"allow": ["ghcr.io"]}, "ghcr.io/a:1", ("ghcr.io", "a")),
        ({"allow": ["ghcr.io"]}, "ghcr.io:8443/a:1", ("ghcr.io:8443", "a")),
        ({"allow": ["*.example.org"]}, "a.b.example.org/x", ("a.b.example.org", "x")),
        ({"allow": ["ghcr.io:443"]}, "ghcr.io/a", ("ghcr.io", "a")),
        ({"allow": ["GHCR.io"]}, "ghcr.io/a", ("ghcr.io", "a")),
        ({"allow": ["registry-1.docker.io"]}, "docker.io/ubuntu", ("docker.io", "ubuntu")),
    ],
)
def test_any_registry(lists: dict[str, Any], name: str, expected: tuple[str, str]) -> None:
    """The location `*` stands for hosts that are no location, if its lists have them."""
    assert locate(load_config({"Locations/*": ANY_REGISTRY | lists}).config, name) == expected


@pytest.mark.parametrize(
    ("lists", "name"),
    [
        ({"allow": []}, "ghcr.io/a:1"),
        ({"allow": ["ghcr.io"]}, "evil.ghcr.io/a:1"),
        ({"allow": ["ghcr.io"]}, "evilghcr.io/a:1"),
        ({"allow": ["ghcr.io:443"]}, "ghcr.io:8443/a:1"),
        ({"allow": ["*.example.org"]}, "example.org/x"),
        ({"allow": ["*.example.org"]}, "evilexample.org/x"),
        ({"deny": ["ghcr.io"]}, "GHCR.io/a:1"),
        ({"deny": ["ghcr.io"]}, "ghcr.io:8443/a:1"),
        ({"deny": ["registry-1.docker.io"]}, "docker.io/ubuntu"),
        ({"deny": ["docker.io"]}, "registry-1.docker.io/ubuntu"),
        ({"deny": ["*.docker.io"]}, "docker.io/ubuntu"),
        ({"deny": ["index.docker.io"]}, "Docker.io:443/ubuntu"),
        ({"allow": ["*.example.org"], "deny": ["bad.example.org"]}, "bad.example.org/x"),
    ],
)
def test_registries_that_are_not_allowed(lists: dict[str, Any], name: str) -> None:
    """The error about a host that the lists refuse names the lists."""
    config = load_config({"Locations/*": ANY_REGISTRY | lists}).config
    with pytest.raises(NotAllowed, match="does not pull from the registry") as caught:
        locate(config, name)
    assert "`allow` and `deny`" in caught.value.remedy


def test_named_locations_win() -> None:
    """The lists of the location `*` do not concern registries with a location of their own."""
    config = load_config(QUAY | {"Locations/*": ANY_REGISTRY | {"deny": ["quay.io"]}}).config
    assert locate(config, "quay.io/x") == ("Quay.io", "x")
    assert locate(config, "x/y") == ("registry.example.com", "x/y")
