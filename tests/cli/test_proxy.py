"""The HTTP proxy of the environment, between the command line and the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from shiftergw.cli.exits import Misuse
from shiftergw.cli.proxy import GatewayProxy, proxy_for
from tests.cli.command import shiftergw
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.web.fakes import IMAGE_ID, FakeGateway, listening, site_of

GATEWAY = "http://gw.site.example:5000/base"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"http_proxy": "http://proxy:3128"}, GatewayProxy("proxy", 3128)),
        ({"http_proxy": "http://proxy:3128/"}, GatewayProxy("proxy", 3128)),
        ({"http_proxy": "proxy"}, GatewayProxy("proxy", 1080)),
        ({"http_proxy": "http://[::1]:3128"}, GatewayProxy("::1", 3128)),
        ({"http_proxy": "http://u:p%40@proxy"}, GatewayProxy("proxy", 1080, "Basic dTpwQA==")),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"http_proxy": "proxy", "no_proxy": "*"}, None),
        ({"http_proxy": "proxy", "no_proxy": "a, gw.site.example"}, None),
        ({"http_proxy": "proxy", "no_proxy": ".site.example"}, None),
        ({"http_proxy": "proxy", "NO_PROXY": "site.example"}, None),
        ({"http_proxy": "proxy", "no_proxy": "te.example,,."}, GatewayProxy("proxy", 1080)),
        ({"http_proxy": "proxy", "no_proxy": "b", "NO_PROXY": "*"}, GatewayProxy("proxy", 1080)),
    ],
)
def test_the_environment(environ: dict[str, str], proxy: GatewayProxy | None) -> None:
    """The variables mean the same as to libcurl."""
    assert proxy_for(GATEWAY, environ) == proxy


def test_https_goes_directly() -> None:
    """A gateway with https is asked directly."""
    assert proxy_for("https://gw", {"http_proxy": "proxy"}) is None


@pytest.mark.parametrize(
    "text", ["socks5://proxy:1080", "http://:3128", "proxy:port", "http://[::1", "http://a_b"]
)
def test_invalid_proxies(text: str) -> None:
    """An invalid proxy is an error; it is not silently ignored."""
    with pytest.raises(Misuse, match="http_proxy is not http://HOST:PORT"):
        proxy_for(GATEWAY, {"http_proxy": text})


def test_a_proxys_password_is_not_shown() -> None:
    """The repr shows neither the password nor its encoded form."""
    proxy = proxy_for(GATEWAY, {"http_proxy": "http://u:hush@proxy"})
    assert "hush" not in repr(proxy)
    assert "Basic" not in repr(proxy)


class ActingProxy(Resource):
    """Records the requests to a proxy, and answers in the gateway's place."""

    def __init__(self) -> None:
        """Start without requests."""
        super().__init__()
        self.isLeaf = True
        self.requests: list[tuple[bytes, str | None]] = []

    def render(self, request: Request) -> bytes:
        """Answer."""
        self.requests.append((request.uri, request.getHeader("proxy-authorization")))
        return json.dumps({"status": "READY", "id": IMAGE_ID}).encode()


@pytest_twisted.ensureDeferred
async def test_requests_go_through_the_proxy() -> None:
    """The proxy gets the whole URL and its own login; `no_proxy` bypasses it."""
    acting, fake = ActingProxy(), FakeGateway()
    site: Any = Site(acting)
    async with listening(site) as proxy, listening(site_of(fake, reactor)) as port:
        env = {
            "SHIFTERGW_GATEWAY": "http://gw.site.example:5000",
            "SHIFTERGW_SYSTEM": "mycluster",
            "SHIFTERGW_CREDENTIAL": "good:ann",
            "http_proxy": f"http://u:p@127.0.0.1:{proxy}",
        }
        through: Any = await deferToThread(shiftergw, "pull", "a/b:1", env=env)
        env |= {"SHIFTERGW_GATEWAY": f"http://127.0.0.1:{port}", "no_proxy": "127.0.0.1"}
        past: Any = await deferToThread(shiftergw, "images", env=env)
    assert (through.returncode, through.stdout) == (0, f"{IMAGE_ID}\n")
    place = b"http://gw.site.example:5000/api/pull/mycluster/docker/a%2Fb%3A1/"
    assert acting.requests == [(place, "Basic dTpw")]
    assert past.returncode == 0
    assert [request[0] for request in fake.calls] == ["list"]


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_is_away() -> None:
    """A proxy that is away has the exit code of a gateway that is away."""
    env = {
        "SHIFTERGW_GATEWAY": "http://gw.site.example:5000",
        "SHIFTERGW_SYSTEM": "mycluster",
        "SHIFTERGW_CREDENTIAL": "good:ann",
        "http_proxy": f"http://127.0.0.1:{free_port()}",
    }
    result: Any = await deferToThread(shiftergw, "images", env=env)
    assert result.returncode == 3
    assert "cannot be reached" in result.stderr
