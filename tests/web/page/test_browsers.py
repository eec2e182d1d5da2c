"""The page is shown over TLS or to this machine only, and the cookie says so."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from twisted.web.http_headers import Headers

from shiftergw.errors import NotAllowed
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.page.browsers import check_confidential, cookie, token_of
from shiftergw.web.site import Call

LIMITS = ConnectionLimits(proxies=(ip_network("10.0.0.1/32"),))
HTTPS = {"X-Forwarded-Proto": "https"}


def call_from(peer: str, *, is_secure: bool = False, **headers: str) -> Call:
    """Return a call of a browser; `_` in names of headers stands for `-`."""
    values = Headers()
    for name, value in headers.items():
        for item in value.split("|"):
            values.addRawHeader(name.replace("_", "-"), item)
    return Call(b"GET", b"/page/", peer=peer, headers=values, is_secure=is_secure)


@pytest.mark.parametrize(
    "call",
    [
        call_from("127.0.0.1", Host="127.0.0.1:5000"),
        call_from("127.0.0.1", Host="localhost"),
        call_from("127.0.0.1", Host="LocalHost:5000"),
        call_from("::1", Host="[::1]:5000"),
        call_from("192.0.2.7", is_secure=True, Host="gateway.example.com"),
        call_from("10.0.0.1", Host="gateway.example.com", X_Forwarded_Proto="https"),
        call_from("", Host="gateway.example.com", X_Forwarded_Proto="HTTPS"),
    ],
)
def test_ways_on_which_nobody_reads_along(call: Call) -> None:
    """The loopback under its own names, TLS, and known proxies that have seen TLS."""
    check_confidential(call, LIMITS)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (call_from("192.0.2.7", Host="gateway.example.com"), "ssh -L"),
        (call_from("192.0.2.7", Host="127.0.0.1:5000"), "ssh -L"),
        (call_from("127.0.0.1", Host="gateway.example.com"), "ssh -L"),
        (call_from("127.0.0.1", Host="localhost.example.com"), "ssh -L"),
        (call_from("127.0.0.1", Host="localhost|localhost"), "ssh -L"),
        (call_from("127.0.0.1", Host="[::1"), "ssh -L"),
        (call_from("127.0.0.1"), "ssh -L"),
        (call_from("127.0.0.1", Host="localhost", X_Forwarded_Proto="https"), "WebLimits.proxies"),
        (call_from("127.0.0.1", Host="localhost", Via="1.1 x"), "WebLimits.proxies"),
        (call_from("192.0.2.7", is_secure=True, X_Forwarded_For="::1"), "WebLimits.proxies"),
        (call_from("10.0.0.1", Host="gateway.example.com"), "X-Forwarded-Proto"),
        (call_from("10.0.0.1", is_secure=True), "X-Forwarded-Proto"),
        (call_from("10.0.0.1", X_Forwarded_Proto="http"), "X-Forwarded-Proto"),
        (call_from("10.0.0.1", X_Forwarded_Proto="https|http"), "X-Forwarded-Proto"),
        (call_from("", Host="localhost"), "X-Forwarded-Proto"),
    ],
)
def test_every_other_way_is_refused(call: Call, remedy: str) -> None:
    """Plain HTTP beyond the loopback, names that lead here, and proxies that say nothing."""
    with pytest.raises(NotAllowed) as caught:
        check_confidential(call, LIMITS)
    assert remedy in caught.value.remedy


def test_the_cookie_over_tls() -> None:
    """The browser sends it to this host alone, over TLS alone, and shows it to no script."""
    for call in (
        call_from("192.0.2.7", is_secure=True, Host="gateway"),
        call_from("10.0.0.1", Host="gateway", X_Forwarded_Proto="https"),
    ):
        assert cookie(call, "abc", 60) == (
            "__Host-shiftergw=abc; Max-Age=60; HttpOnly; SameSite=Strict; Path=/; Secure"
        )


def test_the_cookie_on_the_loopback() -> None:
    """It has the port in its name: two gateways behind `ssh -L` have cookies of their own."""
    call = call_from("127.0.0.1", Host="127.0.0.1:5001", Cookie="a=b; shiftergw-5001=abc;x")
    assert cookie(call, "abc", 60) == "shiftergw-5001=abc; Max-Age=60; HttpOnly; SameSite=Strict"
    assert token_of(call) == "abc"
    assert token_of(call_from("127.0.0.1", Host="127.0.0.1", Cookie="shiftergw-5001=abc")) == ""
    assert token_of(call_from("127.0.0.1", Host="127.0.0.1")) == ""
