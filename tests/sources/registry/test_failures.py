"""The bodies of errors of any server are reduced to one line of words."""

from __future__ import annotations

import pytest

from shiftergw.errors import FOREIGN_TEXT_LIMIT
from shiftergw.sources.registry.failures import error_text

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
