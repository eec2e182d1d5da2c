"""What goes wrong between the gateway and a registry, in the words of `shiftergw.errors`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

from OpenSSL import SSL
from twisted.internet import error as network

from shiftergw.errors import PullError, RegistryUnavailable, RegistryUntrusted, printable
from shiftergw.plumbing.head_limits import HeadTooLong
from shiftergw.plumbing.tls import CertificateRefused
from shiftergw.sources.registry.retry import Interrupted

_AUTHORITY_REMEDY = (
    "Tell the site's support; for a registry with an authority of its own the location's"
    " `sslcacert` names it."
)

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (network.DNSLookupError, "cannot be found: its name is not known."),
    (network.ConnectionRefusedError, "cannot be reached: connection refused."),
    (network.TimeoutError, "cannot be reached: it does not answer."),
    (network.TCPTimedOutError, "cannot be reached: it does not answer."),
    (network.ConnectError, "cannot be reached."),
)


def network_failure(who: str, host: str, error: Exception) -> PullError:
    """Return the reason why a request got no answer; `who` begins the sentence."""
    for cause in _causes(error):
        if isinstance(cause, PullError):
            return cause
        if isinstance(cause, CertificateRefused):
            return RegistryUntrusted(
                f"{who} cannot be trusted: the certificate of {host} {cause.problem}.",
                remedy=_AUTHORITY_REMEDY if cause.fault == "authority" else cause.remedy,
                detail=f"{host}: {cause.certificate}",
            )
        if isinstance(cause, HeadTooLong):
            return RegistryUnavailable(f"{who} sent {cause}.", detail=host)
        if isinstance(cause, SSL.Error):
            return Interrupted(
                f"{who} does not speak TLS as the gateway does.",
                detail=f"{host}: {printable(str(cause))}",
                lasting=True,
            )
        for kind, what in _REASONS:
            if isinstance(cause, kind):
                detail = f"{host}: {cause}"
                return Interrupted(
                    f"{who} {what}", detail=detail, why="unreachable", unreachable=True
                )
    return Interrupted(f"{who} broke the connection.", detail=f"{host}: {error!r}")


def _causes(error: Exception) -> Iterator[BaseException]:
    """Yield an error and the reasons that Twisted's client wraps, innermost last."""
    yield error
    for reason in getattr(error, "reasons", ()):
        if isinstance(reason.value, Exception):
            yield from _causes(reason.value)


def error_text(body: bytes) -> str:
    """Return the messages of a registry's error body (distribution-spec, "Error Codes").

    What is no such body gives nothing.
    """
    with suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):
        errors = json.loads(body)["errors"]
        said = [str(one.get("message") or one.get("code") or "") for one in errors]
        return printable("; ".join(text for text in said if text))
    return ""
