"""What the page asks of a browser's request: the way it has come, and the cookie of its session.

The page is shown over TLS, or to the gateway's own machine, which is also the end of `ssh -L`. A
cookie or an entry that travels as plain text could be used by everybody who reads it on the way. A
request that comes through a proxy counts as confidential only if the proxy is one of
`WebLimits.proxies` and says that the browser has used TLS.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from shiftergw.errors import NotAllowed
from shiftergw.web.connections import ConnectionLimits

if TYPE_CHECKING:
    from shiftergw.web.site import Call

TLS_COOKIE = "__Host-shiftergw"
"""The cookie over TLS: browsers take it only from its host itself (RFC 6265bis, section 4.1.3)."""

LOOPBACK_COOKIE = "shiftergw-"
"""The cookie on the loopback, with the port: cookies do not distinguish the ports of a host."""

_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via")
"""Headers that proxies add."""

MOST_VALUE = 200
"""Characters of a value in a query."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


def check_confidential(call: Call, limits: ConnectionLimits) -> None:
    """Raise `NotAllowed` for a request that others may have read on its way."""
    if limits.is_proxy(call.peer):
        if call.header("X-Forwarded-Proto").lower() == "https":
            return
        raise NotAllowed(
            "The page is shown over TLS only, and the proxy in front of the gateway does not say"
            " that your browser uses it.",
            remedy="Open the address with https://. If you have done so, the site's proxy must set"
            " `X-Forwarded-Proto`.",
        )
    if any(call.header(name) for name in _PROXY_HEADERS):
        raise NotAllowed(
            "The request comes through a proxy that the gateway does not know.",
            remedy="Open the page without a proxy, or ask the site's support to name the proxy in"
            " `WebLimits.proxies`.",
        )
    if not call.is_secure and not _is_local(call):
        raise NotAllowed(
            "The page is shown over TLS, or to the gateway's own machine: others could read along.",
            remedy="Use https:// if the site has it, or `ssh -L 5000:127.0.0.1:5000 GATEWAY` and"
            " http://127.0.0.1:5000/.",
        )


def _is_local(call: Call) -> bool:
    """Return whether a request has come over the loopback, and its browser has meant that.

    A name in `Host` that is not the loopback's belongs to a proxy on this machine, or to a web page
    elsewhere whose name suddenly leads here.
    """
    host, _ = host_of(call)
    return _is_loopback(call.peer) and (host == "localhost" or _is_loopback(host))


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_own_host(call: Call) -> None:
    """Raise `NotAllowed` for a name of the host that a site elsewhere may have made lead here.

    A listener without tokens would show everything to the scripts of that site (DNS rebinding).
    Addresses, and names without a dot, belong to nobody elsewhere.
    """
    host, _ = host_of(call)
    if "." in host and not _is_address(host):
        raise NotAllowed(
            "The admin listener has no such name.",
            remedy="Open the page at an IP address or at `localhost`.",
        )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def host_of(call: Call) -> tuple[str, str]:
    """Return the host in lower case, without brackets, and the port of `Host`; "" if absent."""
    match = _HOST.fullmatch(call.header("Host"))
    return (match[1].strip("[]").lower(), match[2] or "") if match else ("", "")


def cookie_name(call: Call) -> str:
    """Return the name of the cookie of a session, for the way that a request has come."""
    if call.is_secure or call.header("X-Forwarded-Proto"):
        return TLS_COOKIE
    _, port = host_of(call)
    return f"{LOOPBACK_COOKIE}{port}"


def token_of(call: Call) -> str:
    """Return the token in the cookie of a request; "" without that cookie."""
    name = cookie_name(call)
    for pair in call.header("Cookie").split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value
    return ""


def cookie(call: Call, token: str, seconds: float) -> str:
    """Return the value of `Set-Cookie` for a session; with 0 `seconds` the browser forgets it.

    On the loopback it has no `Path`: the browser sends it to the page only.
    """
    name = cookie_name(call)
    place = "; Path=/; Secure" if name == TLS_COOKIE else ""
    return f"{name}={token}; Max-Age={seconds:.0f}; HttpOnly; SameSite=Strict{place}"


def query_value(call: Call, name: str, limit: int = MOST_VALUE) -> str:
    """Return the first `limit` characters of a value; "" if there is none that can be read."""
    try:
        values = parse_qs(call.query.decode("ascii"), max_num_fields=20, errors="replace")
    except ValueError:
        return ""
    return values.get(name, [""])[0][:limit]
