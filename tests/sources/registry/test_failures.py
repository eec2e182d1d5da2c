"""The bodies of errors of any server are reduced to one line of words."""

from __future__ import annotations

import pytest

from shiftergw.errors import FOREIGN_TEXT_LIMIT
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.failures import error_text, redirect_refusal
from shiftergw.sources.registry.location import WebOrigin

EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Request has expired</Message><Expires>now</Expires></Error>
"""
AZURE = """\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code>\
<Message>Server failed to authenticate the request.
RequestId:1&amp;2</Message></Error>""".encode()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"},{"code":"UNKNOWN"}]}', "no; UNKNOWN"),
        (b'{"errors":["first","second"]}', "first; second"),
        (b'{"details":"use a token, you have 2FA"}', "use a token, you have 2FA"),
        (b'{"error":"invalid_grant","error_description":"bad login"}', "bad login"),
        (b'{"message":"","error":"denied"}', "denied"),
        (EXPIRED, "AccessDenied: Request has expired"),
        (AZURE, "AuthenticationFailed: Server failed to authenticate the request. RequestId:1&2"),
        (
            b"<HTML><Title>522: Connection timed out</Title><Code>x</Code>",
            "522: Connection timed out",
        ),
        (b"<html>", ""),
        (b"[]", ""),
        (b'{"errors":1}', ""),
        (b'{"errors":[1,{"message":2},{}]}', ""),
        (b"[" * 100_000, ""),
        (b"", ""),
    ],
)
def test_words(body: bytes, text: str) -> None:
    """Registries, token services, object stores and CDNs each have their own form."""
    assert error_text(body) == text


def test_words_of_strangers() -> None:
    """Words of unknown servers are one printable line of bounded length."""
    text = error_text(b'{"message":"a\\u001b[31m\\n\\u202eb' + b"x" * 5000 + b'"}')
    assert text.startswith(r"a\x1b[31m \x202ebxxx")
    assert len(text) == FOREIGN_TEXT_LIMIT


@pytest.mark.parametrize("form", ["s3 crét/", "s3%20cr%C3%A9t%2F", "s3+cr%C3%A9t%2F", "a.b-c"])
def test_words_with_a_secret(form: str) -> None:
    """Neither a password nor a token is repeated, in whatever form a server quotes it."""
    body = f'{{"message":"{"-" * 290}{form}{"-" * 50}"}}'.encode()
    text = error_text(body, RegistryLogin("ann", "s3 crét/"), "a.b-c")
    assert text.startswith("-" * 290 + "***---")


@pytest.mark.parametrize(
    ("url", "address", "remedy"),
    [
        ("https://cdn.example/v2/", "cdn.example", "if the image is one of cdn.example"),
        (
            "https://reg.example/v2/",
            "https://reg.example:443",
            "the `url` of the location should be https://reg.example:443.",
        ),
    ],
)
def test_a_refusal_behind_a_redirect(url: str, address: str, remedy: str) -> None:
    """Another host may have the image; the same host at another port is the registry itself."""
    origin, place = WebOrigin.of("http://reg.example"), WebOrigin.of(url)
    error = redirect_refusal("The registry 'reg'", origin, place, 401, "no")
    assert f"sends the gateway to {address}, which refuses" in error.what
    assert remedy in error.remedy
