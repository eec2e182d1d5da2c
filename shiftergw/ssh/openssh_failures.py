"""Explain why OpenSSH's `ssh` has failed, by the messages that it prints."""

from __future__ import annotations

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import ProgramNotStarted, SystemUnavailable, UnexplainedExit

_UNREACHABLE = (
    "Connection refused", "No route to host", "Network is unreachable",
    "Connection timed out", "Operation timed out", "banner exchange",
)  # fmt: skip
_BROKEN_CONNECTION = (
    "losed by ", "reset by peer", "Broken pipe", "client_loop", "kex_exchange", "ssh_dispatch",
    "mux_client", "Connection to ", "ssh: ", "Bad packet", "Corrupted MAC",
)  # fmt: skip
_NOT_STARTED = ("exec request failed on channel", "subsystem request failed on channel")

_TRUST = "`shiftergw ssh-trust SYSTEM` shows its key's fingerprint"


def ssh_failure(output: str, detail: str) -> DeliveryFailed:
    """Return the error for a failure of ssh itself, according to its messages."""
    kind: type[DeliveryFailed] = DeliveryFailed
    if any(words in output for words in _NOT_STARTED):
        kind, problem = (
            ProgramNotStarted,
            "The system's SSH server does not start what the gateway needs.",
        )
        remedy = "the gateway's user must be allowed it"
    elif "REMOTE HOST IDENTIFICATION HAS CHANGED" in output:
        problem = "The system shows another host key than the one that is known."
        remedy = f"somebody may be between; {_TRUST}, and the old one"
    elif "REVOKED" in output:
        problem = "The system shows a host key that was revoked."
        remedy = "the system needs another host key"
    elif "Host key verification failed" in output:
        problem = "The system's host key is not known."
        remedy = f"{_TRUST}, and adds the key after somebody has compared that with the host's own"
    elif "UNPROTECTED PRIVATE KEY" in output:
        problem = "The gateway's key for the system can be read by others."
        remedy = "set its mode to 0600"
    elif "Permission denied (" in output or "Too many authentication failures" in output:
        problem = "The system refused the gateway's login."
        remedy = "add the gateway's key to the account's authorized_keys"
    elif "Could not resolve hostname" in output:
        kind, problem = SystemUnavailable, "The name of the system's host has no address."
        remedy = "correct `host`, or the name servers of the gateway's machine"
    elif any(words in output for words in _UNREACHABLE):
        kind, problem = SystemUnavailable, "The system cannot be reached."
        remedy = "see whether it is up, and its name and port"
    elif "Timeout, server" in output:
        kind, problem, remedy = SystemUnavailable, "The system stopped answering.", ""
    else:
        # Programs exit with 255, too; Perl's `die` does.
        kind = (
            SystemUnavailable
            if any(words in output for words in _BROKEN_CONNECTION)
            else UnexplainedExit
        )
        problem, remedy = "The connection to the system broke.", ""
    advice = f"Tell the site's support: {remedy}." if remedy else None
    return kind(problem, remedy=advice, detail=detail)
