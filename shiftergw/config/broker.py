"""Check `BrokerURL`: the URL of a broker, with the files of its TLS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

BROKER_FILES = {"cacertfile": "ca_certs", "certfile": "certfile", "keyfile": "keyfile"}
"""Options of the URL for TLS files, as of RabbitMQ's own clients, and Python's names of them."""


def _problem_of_authority(url: str) -> str:
    """Return the problem of user, password, host or port in a URL; empty if there is none."""
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if authority.count("@") > 1:
        return "has an @ in the user's name or password: there it is written as %40"
    if re.search("%(?![0-9A-Fa-f]{2})", authority):
        return "has a % without two hexadecimal digits: in a password it is written as %25"
    try:
        urlsplit(url).port  # noqa: B018 - raises
    except ValueError:
        return "is no URL: in a user's name and password, special characters are written as %XX"
    return ""


def problems_of_url(url: str) -> Iterator[str]:
    """Yield the problems of the URL of a broker, quoting only names of options."""
    if not re.match("amqps?://", url):
        yield "must begin with amqp:// or amqps://: the broker is RabbitMQ"
        return
    if ";" in url:
        yield "names one broker; a ; in a user's name or password is written as %3B"
        return
    if problem := _problem_of_authority(url):
        yield problem
        return
    parts = urlsplit(url)
    if "#" in url:
        yield "has a # in it: in a user's name and password it is written as %23"
    options = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in options]
    if any(name not in BROKER_FILES for name in names):
        valid = ", ".join(BROKER_FILES)
        yield f"has an option that is none of these: {valid}; in a password, ? is written as %3F"
        return
    if names and parts.scheme == "amqp":
        yield f"{names[0]} has no meaning without TLS: amqps://"
    if "keyfile" in names and "certfile" not in names:
        yield "keyfile needs certfile"
    for name, path in options:
        if not path.startswith("/"):
            yield f"{name} must be an absolute path"
