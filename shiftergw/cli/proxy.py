"""The HTTP proxy of the environment, by the rules of libcurl, and so of `shifterimg`."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from shiftergw.cli.exits import Misuse
from shiftergw.cli.hosts import is_host

PORT = 1080
"""libcurl's default port for a proxy."""

_NOT_A_PROXY = "http_proxy is not http://HOST:PORT."


@dataclass(frozen=True, slots=True)
class GatewayProxy:
    """An HTTP proxy; `authorization` is the value of `Proxy-Authorization`, or ""."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


def proxy_for(url: str, environ: Mapping[str, str]) -> GatewayProxy | None:
    """Return the proxy for a gateway's URL; only plain http goes through a proxy.

    `http_proxy` counts in lower case only: a CGI script's HTTP_PROXY comes from its caller.
    `no_proxy` lists hosts and domains that are reached directly. Raises `Misuse` if `http_proxy`
    is not a URL.
    """
    text = environ.get("http_proxy", "")
    target = urlsplit(url)
    no_proxy = environ.get("no_proxy") or environ.get("NO_PROXY", "")
    if not text or target.scheme != "http" or _is_direct(target.hostname or "", no_proxy):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        host, port = proxy.hostname or "", proxy.port or PORT
    except ValueError:
        raise Misuse(_NOT_A_PROXY) from None
    if proxy.scheme != "http" or not is_host(host):
        raise Misuse(_NOT_A_PROXY)
    if proxy.username is None:
        return GatewayProxy(host, port)
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return GatewayProxy(host, port, f"Basic {b64encode(login.encode()).decode()}")


def _is_direct(host: str, no_proxy: str) -> bool:
    """Return whether a list has the host, a domain of it (with or without a dot), or `*`."""
    names = [name.lower().lstrip(".") for name in re.split("[, ]+", no_proxy) if name]
    return any(name in {"*", host} or (name and host.endswith(f".{name}")) for name in names)
