"""What goes wrong between the gateway and a registry, in the words of `shiftergw.errors`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from html import unescape

from OpenSSL import SSL
from twisted.internet import error as network

from shiftergw.errors import (
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    printable,
)
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.head_limits import HeadTooLong
from shiftergw.plumbing.tls import CertificateRefused
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.logins import conceal
from shiftergw.sources.registry.retry import Interruption, InterruptionKind

_AUTHORITY_REMEDY = (
    "Tell the site's support; for a registry with an authority of its own the location's"
    " `sslcacert` names it."
)

_ALERT = re.compile(
    r"alert (?:certificate required|bad certificate|certificate unknown|certificate expired"
    r"|unknown ca)"
)
"""Alerts by which a server refuses a client certificate, or its absence (RFC 8446, 6.2)."""

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (network.DNSLookupError, "cannot be found: its name is not known."),
    (network.ConnectionRefusedError, "cannot be reached: connection refused."),
    (network.TimeoutError, "cannot be reached: it does not answer."),
    (network.TCPTimedOutError, "cannot be reached: it does not answer."),
    (network.ConnectError, "cannot be reached."),
)


_EXPLANATIONS = ("message", "details", "detail", "error_description", "error", "code")
"""Members of error objects that explain them, best first.

`message` and `code` are of the distribution-spec, `details` of Docker Hub's token service,
`error_description` and `error` of OAuth2 (RFC 6749, section 5.2).
"""

_STORE_CODE = re.compile(rb"<Code>([^<]{1,200})</Code>")
_STORE_MESSAGE = re.compile(rb"<Message>([^<]{1,1000})</Message>")
_TITLE = re.compile(rb"<title>([^<]{1,1000})</title>", re.IGNORECASE)


_TOO_MANY_REQUESTS = 429

_CDN_PROBLEMS = {
    520: "got an invalid answer from it",
    521: "was refused a connection to it",
    522: "cannot connect to it in time",
    523: "cannot reach it",
    524: "gets no answer from it in time",
    525: "cannot agree on TLS with it",
    526: "does not trust its certificate",
    527: "lost the connection to it",
    530: "cannot find it",
}
"""Statuses that no registry sends: a content delivery network tells what it met behind it."""

TRANSIENT_STATUSES = frozenset({408, _TOO_MANY_REQUESTS, 500, 502, 503, 504, *_CDN_PROBLEMS})
"""Statuses after which the same request may succeed a moment later."""

STORE_REFUSALS = frozenset({400, 401, 403})
"""Statuses with which object stores refuse a signed URL, such as one that has expired."""

_STORE_REMEDY = (
    "Try again later; if it lasts, tell the operators of the registry: it signs these requests"
    " itself, and a login does not matter to its store."
)


def status_failure(
    subject: str,
    host: str,
    status: int,
    text: str,
    retry_after: float | None,
    *,
    is_registry: bool,
) -> Interruption:
    """Return the error for one of `TRANSIENT_STATUSES`; `subject` begins the sentence.

    `host` has answered, with `text` as its explanation. Unless it `is_registry`, a store or another
    host to which the registry redirects, its limits are not limits of the login.
    """
    why = f"status {status}"
    is_limit = status == _TOO_MANY_REQUESTS
    if status in _CDN_PROBLEMS:
        origin = subject[0].lower() + subject[1:] if is_registry else host
        what = f"The CDN in front of {origin} {_CDN_PROBLEMS[status]} (status {status})"
        why = f"status {status} of its CDN"
    elif is_limit:
        what, why = f"{subject} asked to slow down", "rate limit"
    else:
        what = f"{subject} answered with status {status}"
    return Interruption(
        f"{what}: {text}" if text else f"{what}.",
        detail=host,
        retry_after=retry_after,
        why=why,
        kind=(InterruptionKind.RATE_LIMIT if is_limit and is_registry else InterruptionKind.BRIEF),
    )


def store_refusal(subject: str, host: str, status: int, text: str) -> RegistryUnavailable:
    """Return the error for a store that refuses even a URL that the registry has just signed."""
    words = f": {text}" if text else "."
    return RegistryUnavailable(
        f"{subject} sends the gateway to {host} for this content, which refuses it with status"
        f" {status}{words}",
        remedy=_STORE_REMEDY,
        detail=host,
    )


def redirect_refusal(
    subject: str, origin: WebOrigin, place: WebOrigin, status: int, text: str
) -> RegistryDenied:
    """Return the error for a place behind a redirect of the registry that refuses a request.

    `origin` is the registry. If only scheme or port differ, its address in the configuration is
    the one that is out of date.
    """
    words = f": {text}" if text else "."
    is_moved = place.host == origin.host
    address = f"{place.scheme}://{place.authority}" if is_moved else place.host
    remedy = (
        "Check the name of the image. A login is only sent to the registry itself; if the image is"
        f" one of {address}, pull it from there."
    )
    if is_moved:
        remedy = f"Tell the site's support: the `url` of the location should be {address}."
    return RegistryDenied(
        f"{subject} sends the gateway to {address}, which refuses the request with status"
        f" {status}{words}",
        remedy=remedy,
        detail=place.authority,
    )


def network_failure(subject: str, host: str, error: Exception) -> PullError:
    """Return the reason why a request got no answer; `subject` begins the sentence."""
    for cause in _causes(error):
        if isinstance(cause, PullError):
            return cause
        if isinstance(cause, CertificateRefused):
            return RegistryUntrusted(
                f"{subject} cannot be trusted: the certificate of {host} {cause.problem}.",
                remedy=_AUTHORITY_REMEDY if cause.fault == "authority" else cause.remedy,
                detail=f"{host}: {cause.certificate}",
            )
        if isinstance(cause, HeadTooLong):
            return RegistryUnavailable(f"{subject} sent {cause}.", detail=host)
        if isinstance(cause, SSL.Error):
            return _tls_failure(subject, host, printable(str(cause)))
        for kind, what in _REASONS:
            if isinstance(cause, kind):
                return Interruption(
                    f"{subject} {what}",
                    kind=InterruptionKind.UNREACHABLE,
                    why="unreachable",
                    detail=f"{host}: {cause}",
                )
    return Interruption(f"{subject} broke the connection.", detail=f"{host}: {error!r}")


def _tls_failure(subject: str, host: str, words: str) -> PullError:
    """Return the reason why a handshake failed; `words` are those of OpenSSL."""
    if _ALERT.search(words):
        return RegistryDenied(
            f"{subject} does not accept the gateway without a client certificate that it trusts.",
            remedy="Tell the site's support: `clientCertificate` of the location names it.",
            detail=f"{host}: {words}",
        )
    return Interruption(
        f"{subject} does not speak TLS as the gateway does.",
        remedy="Tell the site's support. If the registry has no TLS, its location needs a `url`"
        " with http://, and `shiftergw convert` the option --plain-http.",
        detail=f"{host}: {words}",
        kind=InterruptionKind.LASTING,
    )


def _causes(error: Exception) -> Iterator[BaseException]:
    """Yield an error and the reasons that Twisted's client wraps, innermost last."""
    yield error
    for reason in getattr(error, "reasons", ()):
        if isinstance(reason.value, Exception):
            yield from _causes(reason.value)


def error_text(body: bytes, login: RegistryLogin | None = None, token: str = "") -> str:
    """Return what the body of an error says, as one printable line; "" if it says nothing.

    The secrets of `login`, and `token`, are left out.

    Understands the JSON of registries (distribution-spec, "Error Codes") and of token services, the
    XML of object stores, and the titles of HTML pages.
    """
    text = conceal(_json_text(body) or _xml_text(body), login, token)
    return printable(" ".join(text.split()))


def _json_text(body: bytes) -> str:
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict):
            entries = document.get("errors")
            texts = map(_entry_text, entries if isinstance(entries, list) else [])
            return "; ".join(filter(None, texts)) or _entry_text(document)
    return ""


def _entry_text(entry: object) -> str:
    """Return the first member of an error object that explains it to people."""
    if isinstance(entry, str):
        return entry
    values = (entry.get(name) for name in _EXPLANATIONS) if isinstance(entry, dict) else ()
    return next((value for value in values if isinstance(value, str) and value), "")


def _xml_text(body: bytes) -> str:
    """Return the code and the message of an object store, or the title of an HTML page."""
    patterns = (_TITLE,) if _TITLE.search(body) else (_STORE_CODE, _STORE_MESSAGE)
    matches = (pattern.search(body) for pattern in patterns)
    texts = (unescape(match[1].decode("utf-8", "backslashreplace")) for match in matches if match)
    return ": ".join(texts)
