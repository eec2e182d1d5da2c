"""The registries of the configuration become those of the registry client."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.app.locations import configured_locations, find_unnamed
from shiftergw.config import Config
from shiftergw.config.registries_conf import read_rules
from shiftergw.sources.registry.location import Location, Mirror
from tests.configurations import load_config

RULES = """
[[registry]]
prefix = "example.com/foo"
location = "internal.example.net:5000/bar"
[[registry.mirror]]
location = "mirror.example.net/m"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "*.example.org"
insecure = true
[[registry]]
prefix = "docker.io/library"
location = "hub.example.net"
[[registry]]
location = "bad.example"
blocked = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return a configuration with rules of registries.conf, and one location for the rest."""
    changes = {"Locations/*": {"remotetype": "dockerv2", "allow": ["*.io"], "leastTls": "1.3"}}
    file = tmp_path / "registries.conf"
    file.write_text(RULES)
    config = load_config(changes).config
    return config.model_copy(update={"registry_rules": read_rules(file)[0]})


def test_a_location_and_its_mirrors() -> None:
    """Mirrors keep their order, their paths, their files and their switches."""
    mirrors = ["https://a.example/hub", {"url": "http://b:5000", "login": "/l", "standalone": True}]
    locations = configured_locations(
        load_config(
            {
                "Locations/docker.io": {
                    "remotetype": "dockerv2",
                    "sslcacert": "/ca.pem",
                    "clientCertificate": "/c.pem",
                    "clientKey": "/k.pem",
                    "leastTls": "1.3",
                    "trustedHosts": ["store"],
                    "mirrors": mirrors,
                }
            }
        ).config
    )
    assert list(locations) == ["registry.example.com", "docker.io"]
    assert locations["docker.io"] == Location(
        "docker.io",
        "https://docker.io",
        Path("/ca.pem"),
        ("store",),
        Path("/c.pem"),
        Path("/k.pem"),
        "1.3",
        mirrors=(
            Mirror(Location("a.example", "https://a.example", path="hub", is_mirror=True)),
            Mirror(
                Location("b:5000", "http://b:5000", is_mirror=True),
                Path("/l"),
                standalone=True,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("host", "repository", "base", "path"),
    [
        ("example.com", "foo/app", "https://internal.example.net:5000", "bar/app"),
        ("example.com", "foo", "https://internal.example.net:5000", "bar"),
        ("a.example.org", "x/y", "http://a.example.org", "x/y"),
        ("docker.io", "library/ubuntu", "https://hub.example.net", "ubuntu"),
        ("ghcr.io", "a/b", "https://ghcr.io", "a/b"),
    ],
)
def test_registries_without_a_location(
    config: Config, host: str, repository: str, base: str, path: str
) -> None:
    """A rule of registries.conf says where a name leads; other hosts mean themselves."""
    location = find_unnamed(config, host, repository)
    assert location is not None
    assert (location.name, location.base, location.path_of(repository)) == (host, base, path)
    assert location.must_be_public is (host == "ghcr.io")
    assert location.least_tls == ("1.3" if host == "ghcr.io" else "1.2")


def test_mirrors_of_a_rule(config: Config) -> None:
    """A mirror of a rule has the repositories below the prefix below a path of its own."""
    location = find_unnamed(config, "example.com", "foo/app")
    assert location is not None
    (mirror,) = location.mirrors
    assert mirror.location.base == "https://mirror.example.net"
    assert mirror.location.path_of("foo/app") == "m/app"
    assert (mirror.use, mirror.standalone, mirror.login_file) == ("digest-only", False, None)


@pytest.mark.parametrize("host", ["bad.example", "example.com", "denied.example"])
def test_registries_that_are_not_allowed(config: Config, host: str) -> None:
    """Registries that are blocked or not listed are not used, whatever an older record names."""
    assert find_unnamed(config, host, "x") is None
