"""The places of an image are listed without a request."""

from __future__ import annotations

from typing import Any

import pytest_twisted

from shiftergw.model.explanations import ImagePlace, RequestLimit
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location, Mirror
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.proxy import Proxies
from tests.sources.registry.faulty import ALICE
from tests.sources.registry.network import REACTOR, open_client
from tests.sources.registry.test_quotas import CountingSite, resolve

TAG = ImageReference.parse("docker.io/app:1")
DIGEST = ImageReference.parse(f"docker.io/app@sha256:{'0' * 64}")


def client_of(location: Location, environment: dict[str, str]) -> RegistryClient:
    """Return a client that knows one location."""
    names = RegistryNames(
        {location.name: location},
        lambda reference: (location.name, reference.name.partition("/")[2]),
    )
    return RegistryClient(REACTOR, names, Proxies(environment))


def test_mirrors_and_proxies(tmp_path: Any) -> None:
    """Each place has its path and its proxy, and mirrors the gateway's login; no password."""
    login = tmp_path / "login"
    login.write_text("robot:secret")
    login.chmod(0o600)
    host = "cache.example.org"
    mirrors = (
        Mirror(Location(host, f"https://{host}", path="hub", is_mirror=True), login),
        Mirror(Location("local:5000", "http://local:5000", is_mirror=True), use="digest-only"),
        Mirror(Location("flat", "https://flat", is_mirror=True), standalone=True, use="tag-only"),
    )
    location = Location("docker.io", "https://docker.io", mirrors=mirrors)
    client = client_of(
        location, {"https_proxy": "http://me:pw@proxy:3128", "no_proxy": "docker.io"}
    )
    robot, flat, origin = client.places(TAG, RegistryLogin("alice", "hidden"))
    url, path = f"https://{host}", "hub/library/app"
    assert robot == ImagePlace("mirror", host, url, path, "proxy:3128", "robot")
    assert (flat.name, flat.repository, flat.standalone) == ("flat", "library/app", True)
    assert (origin.kind, origin.name, origin.proxy) == ("registry", "docker.io", "")
    assert [place.name for place in client.places(DIGEST, None)] == [
        host,
        "local:5000",
        "docker.io",
    ]
    assert "secret" not in str(robot)
    assert "hidden" not in str(origin)


@pytest_twisted.ensureDeferred
async def test_limits() -> None:
    """The limit in the last answer belongs to the login of its request."""
    async with CountingSite(100).running() as url, open_client(url) as client:
        reference = ImageReference.parse("team/app")
        assert client.places(reference, None)[0].limits == ()
        await resolve(client)
        text = "98 of 100 requests in 6 hours are left"
        assert client.places(reference, ALICE)[0].limits == (RequestLimit("", 98, text),)
