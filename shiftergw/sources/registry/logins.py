"""Logins in requests, and the words of servers without the secrets that they repeat."""

from __future__ import annotations

import base64
from urllib.parse import quote, quote_plus

from shiftergw.model.requests import RegistryLogin


def basic(login: RegistryLogin) -> str:
    """Return a login as an `Authorization` field (RFC 7617, UTF-8)."""
    pair = f"{login.user}:{login.password}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def conceal(text: str, login: RegistryLogin | None, token: str = "") -> str:
    """Return words of a server without secrets, also as URLs and forms write them.

    `token` is one beside the secrets of `login`. The words must be complete: the beginning of a
    secret is not recognized.
    """
    secrets = [token]
    if login is not None:
        secrets += [basic(login).removeprefix("Basic "), login.password]
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, "***") if form else text
    return text
