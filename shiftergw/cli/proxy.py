"""The proxy of the environment, as libcurl, and so `shifterimg`, honours it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from shiftergw.cli.exits import Misused
from shiftergw.cli.hosts import is_host

PORT = 1080
"""libcurl's, for a proxy without one."""

_NOT_A_PROXY = "http_proxy is not http://HOST:PORT."


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the value of a header, or ""."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a gateway's URL; only plain http goes through one.

    `http_proxy` counts in lower case alone: a CGI script's HTTP_PROXY comes from its caller.
    `no_proxy` names hosts and domains without one. Raises `Misused` for what is no URL.
    """
    text = environ.get("http_proxy", "")
    target = urlsplit(url)
    excepted = environ.get("no_proxy") or environ.get("NO_PROXY", "")
    if not text or target.scheme != "http" or _is_excepted(target.hostname or "", excepted):
        return None
    try:
        parsed = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parsed.hostname or "", parsed.port or PORT
    except ValueError:
        raise Misused(_NOT_A_PROXY) from None
    if parsed.scheme != "http" or not is_host(host):
        raise Misused(_NOT_A_PROXY)
    if parsed.username is None:
        return Proxy(host, port)
    login = f"{unquote(parsed.username)}:{unquote(parsed.password or '')}"
    return Proxy(host, port, f"Basic {b64encode(login.encode()).decode()}")


def _is_excepted(host: str, excepted: str) -> bool:
    """Say whether a host is in a list of hosts, of domains (with or without a dot), or of `*`."""
    names = [name.lower().lstrip(".") for name in re.split("[, ]+", excepted) if name]
    return any(name in {"*", host} or (name and host.endswith(f".{name}")) for name in names)
