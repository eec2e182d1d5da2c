"""The section `Locations`: mirrors, client certificates and the location for any registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiftergw.app.locations import configured_locations, layout_directories
from shiftergw.config.locations import MirrorSection
from shiftergw.errors import ConfigurationError
from shiftergw.model.references import ImageReference
from tests.configurations import load_config

PLACE = "Locations/registry.example.com"


def mirrors_of(*mirrors: Any) -> tuple[MirrorSection, ...]:
    """Return the mirrors of a configuration."""
    return (
        load_config({f"{PLACE}/mirrors": [*mirrors]})
        .config.locations["registry.example.com"]
        .mirrors
    )


@pytest.mark.parametrize(
    ("mirror", "base", "path"),
    [
        ("https://m.example", "https://m.example", ""),
        ("https://m.example:8443/", "https://m.example:8443", ""),
        ("http://m.example/hub/proxy/", "http://m.example", "hub/proxy"),
        ({"url": "https://m.example", "prefix": "/hub-proxy/"}, "https://m.example", "hub-proxy"),
        ({"url": "https://m.example/a", "prefix": "b"}, "https://m.example", "a/b"),
        ({"url": "https://[FD00::1]:5000/a"}, "https://[fd00::1]:5000", "a"),
    ],
)
def test_mirrors(mirror: Any, base: str, path: str) -> None:
    """A mirror is a URL, or an object with one; its path is in front of the repositories."""
    (section,) = mirrors_of(mirror)
    assert (section.base, section.path, section.standalone) == (base, path, False)


def test_keys_of_a_mirror() -> None:
    """Mirrors keep their order, and each has files and switches of its own."""
    first, second = mirrors_of(
        "https://a.example",
        {
            "url": "https://b.example",
            "login": "mirror.login",
            "sslcacert": "/ca.pem",
            "clientCertificate": "own.pem",
            "leastTls": "1.3",
            "trustedHosts": ["Store.example"],
            "standalone": True,
        },
    )
    assert (first.host, second.host) == ("a.example", "b.example")
    assert second.login == Path("/etc/shiftergw/mirror.login")
    assert (second.ca_certificate, second.client_key) == (Path("/ca.pem"), None)
    assert (second.least_tls, second.trusted_hosts) == ("1.3", ("store.example",))
    assert second.standalone


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({f"{PLACE}/mirrors": "https://m"}, "registry.example.com.mirrors: must be a list"),
        ({f"{PLACE}/mirrors": [1]}, "registry.example.com.mirrors.0: must be an object"),
        ({f"{PLACE}/mirrors": [{}]}, "registry.example.com.mirrors.0.url: is required"),
        ({f"{PLACE}/mirrors": ["m.example"]}, "registry.example.com.mirrors.0.url: must be"),
        ({f"{PLACE}/mirrors": ["https://u:p@m"]}, "registry.example.com.mirrors.0.url: must be"),
        ({f"{PLACE}/mirrors": ["https://m/UP"]}, "registry.example.com.mirrors.0.url: must be"),
        (
            {f"{PLACE}/mirrors": [{"url": "https://m", "prefix": "a/../b"}]},
            "registry.example.com.mirrors.0.prefix: must be a path",
        ),
        (
            {f"{PLACE}/mirrors": [{"url": "https://m", "clientKey": "k"}]},
            "registry.example.com.mirrors.0.clientKey: needs clientCertificate",
        ),
        ({f"{PLACE}/clientKey": "k"}, "registry.example.com.clientKey: needs clientCertificate"),
        ({f"{PLACE}/leastTls": "1.1"}, "registry.example.com.leastTls: must be"),
        ({f"{PLACE}/allow": []}, "registry.example.com.allow: is a list of the location"),
        (
            {"Locations/*": {"remotetype": "dockerv2", "url": "https://x"}},
            r"Locations.*.url: cannot",
        ),
        (
            {"Locations/*": {"remotetype": "dockerv2", "clientCertificate": "x"}},
            "Locations.*.clientCertificate: cannot be the same for every registry",
        ),
        (
            {"Locations/*": {"remotetype": "dockerv2", "mirrors": []}},
            "Locations.*.mirrors: cannot be the same for every registry",
        ),
        (
            {"Locations/*": {"remotetype": "dockerv2", "allow": ["https://x"]}},
            'Locations.*.allow: must be a list of "host"',
        ),
        (
            {"Locations/*": {"remotetype": "dockerv2"}, "DefaultImageLocation": "*"},
            "DefaultImageLocation: must be one of the Locations: registry.example.com",
        ),
    ],
)
def test_problems(changes: dict[str, Any], problem: str) -> None:
    """The error about a wrong value names its place."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(changes)
    assert problem in caught.value.what
    assert "u:p" not in caught.value.what


def test_warnings() -> None:
    """A misspelled key of a mirror, and a login that is sent in the clear, cause warnings."""
    mirror = {"url": "http://m.example", "login": "f", "prefixx": "a"}
    warnings = load_config({f"{PLACE}/mirrors": [mirror]}).warnings
    where = "Locations.registry.example.com.mirrors.0"
    assert warnings == (
        f'{where}.prefixx: unknown key, not used; did you mean "prefix"?',
        f"{where}.login: is sent without TLS, and everybody on the network can read it",
    )


def test_the_location_for_any_registry_has_no_url() -> None:
    """The name `*` is no host."""
    section = load_config({"Locations/*": {"remotetype": "dockerv2"}}).config.locations["*"]
    assert (section.url, section.allow, section.deny) == ("", None, ())


SITE = "Locations/site"
LAYOUT = {"remotetype": "oci-layout", "url": "file:///shared/images"}


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("file:///shared/images", "/shared/images"),
        ("file://localhost/shared/images/", "/shared/images"),
        ("file:/shared/images", "/shared/images"),
        ("file:///shared/our%20images", "/shared/our images"),
    ],
)
def test_directories(url: str, directory: str) -> None:
    """A location can be a directory; it is no registry."""
    config = load_config({SITE: LAYOUT | {"url": url}}).config
    assert config.locations["site"].directory == Path(directory)
    assert layout_directories(config) == {"site": Path(directory)}
    assert "site" not in configured_locations(config)
    assert config.locate(ImageReference.parse("site/team/app:1")) == ("site", "team/app")
    assert config.locations["registry.example.com"].directory is None


def test_common_keys_of_directories() -> None:
    """A directory may have the keys that many configurations have, and that have no effect."""
    location = LAYOUT | {"authMethod": "token", "authentication": "http"}
    assert load_config({SITE: location}).warnings == ()


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ({"remotetype": "oci-layout"}, "Locations.site.url: is required: file://"),
        (LAYOUT | {"url": "https://a.example"}, "must be file:// and an absolute path"),
        (LAYOUT | {"url": "file://host/images"}, "must be file:// and an absolute path"),
        (LAYOUT | {"url": "file:images"}, "must be file:// and an absolute path"),
        (LAYOUT | {"url": "file:///a?b"}, "must be file:// and an absolute path"),
        (LAYOUT | {"url": "file:///a%00"}, "must be file:// and an absolute path"),
        (LAYOUT | {"mirrors": []}, "Locations.site.mirrors: has no meaning for a directory"),
        (LAYOUT | {"sslcacert": "/x"}, "Locations.site.sslcacert: has no meaning"),
        ({"remotetype": "dockerv2", "url": "file:///a"}, "must be https:// and the host"),
    ],
)
def test_directories_that_cannot_be_read(location: dict[str, Any], problem: str) -> None:
    """A directory has an absolute path, and none of the keys of registries."""
    with pytest.raises(ConfigurationError) as caught:
        load_config({SITE: location})
    assert problem in str(caught.value)
