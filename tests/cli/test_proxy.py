"""The proxy of the environment, between the command line and its gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from shiftergw.cli.exits import Misuse
from shiftergw.cli.proxy import GatewayProxy, proxy_for
from tests.cli.command import shiftergw
from tests.parts import free_port
from tests.web.fakes import IMAGE_ID, FakeGateway, listening, site_of

reactor: Any = global_reactor
GATEWAY = "http://gw.site.example:5000/base"


@pytest.mark.parametrize(
    ("environ", "found"),
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
def test_the_environment(environ: dict[str, str], found: GatewayProxy | None) -> None:
    """The variables mean what they mean to libcurl."""
    assert proxy_for(GATEWAY, environ) == found


def test_https_goes_directly() -> None:
    """`http_proxy` is for http."""
    assert proxy_for("https://gw", {"http_proxy": "proxy"}) is None


@pytest.mark.parametrize(
    "text", ["socks5://proxy:1080", "http://:3128", "proxy:port", "http://[::1", "http://a_b"]
)
def test_what_is_no_http_proxy(text: str) -> None:
    """To go past it in silence would not be what the user has asked for."""
    with pytest.raises(Misuse, match="http_proxy is not http://HOST:PORT"):
        proxy_for(GATEWAY, {"http_proxy": text})


def test_a_proxys_password_is_not_shown() -> None:
    """Neither as it is, nor encoded."""
    proxy = proxy_for(GATEWAY, {"http_proxy": "http://u:hush@proxy"})
    assert "hush" not in repr(proxy)
    assert "Basic" not in repr(proxy)


class ActingProxy(Resource):
    """Notes what a proxy is told, and answers itself in the gateway's place."""

    def __init__(self) -> None:
        """Have seen nothing."""
        super().__init__()
        self.isLeaf = True
        self.seen: list[tuple[bytes, str | None]] = []

    def render(self, request: Request) -> bytes:
        """Answer."""
        self.seen.append((request.uri, request.getHeader("proxy-authorization")))
        return json.dumps({"status": "READY", "id": IMAGE_ID}).encode()


@pytest_twisted.ensureDeferred
async def test_requests_go_through_the_proxy() -> None:
    """It is told the gateway's whole address and its own login; `no_proxy` goes past it."""
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
    assert acting.seen == [(place, "Basic dTpw")]
    assert past.returncode == 0
    assert [asked[0] for asked in fake.calls] == ["list"]


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_is_away() -> None:
    """It is as if the gateway were."""
    env = {
        "SHIFTERGW_GATEWAY": "http://gw.site.example:5000",
        "SHIFTERGW_SYSTEM": "mycluster",
        "SHIFTERGW_CREDENTIAL": "good:ann",
        "http_proxy": f"http://127.0.0.1:{free_port()}",
    }
    result: Any = await deferToThread(shiftergw, "images", env=env)
    assert result.returncode == 3
    assert "cannot be reached" in result.stderr
