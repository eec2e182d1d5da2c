"""Translate errors of the broker's driver into `Unavailable`: what is wrong, and its remedy.

The texts are for admins. They contain no users and no passwords, but names of hosts and files.
"""

from __future__ import annotations

import re
import socket
import ssl

from amqp import exceptions as amqp
from kombu.exceptions import OperationalError

from shiftergw.errors import Unavailable, printable

BROKER_ALARM = Unavailable(
    "The broker takes no messages: it is short of memory or disk.",
    remedy="`rabbitmq-diagnostics alarms` on the broker says of which; work resumes by itself.",
)

_WRONG_NAME = (
    "is for another name, or for none (its common name does not count)",
    "List the broker's host in its subjectAltName, or write a host into BrokerURL that it lists.",
)
_CERTIFICATE = {
    9: ("is not valid yet", "Look at the clocks of the broker and of this machine."),
    10: ("has expired", "Renew it on the broker; or this machine's clock is wrong."),
    62: _WRONG_NAME,
    64: _WRONG_NAME,
}
"""The second half of a sentence and a remedy, by OpenSSL's number of a certificate error."""

_UNKNOWN_AUTHORITY = (7, 18, 19, 20, 21)
"""OpenSSL's numbers of errors that an unknown authority of a certificate causes."""

_OS_ERRORS: tuple[tuple[type[OSError], str, str], ...] = (
    (socket.gaierror, "The broker's host is not known.", "Correct the host in BrokerURL."),
    (
        ConnectionRefusedError,
        "Nothing listens at the broker's port.",
        "Start RabbitMQ, or correct BrokerURL.",
    ),
    (
        TimeoutError,
        "The broker does not answer in time.",
        "Look whether it hangs, and at the network.",
    ),
    (
        FileNotFoundError,
        "A file that BrokerURL names is not there.",
        "Correct cacertfile, certfile, keyfile.",
    ),
    (
        PermissionError,
        "A file that BrokerURL names may not be read.",
        "Correct the rights of cacertfile, certfile, keyfile.",
    ),
)

_INVALID_FILE = ("KEY_VALUES_MISMATCH", "NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND")


def describe_error(error: BaseException) -> str:
    """Return the class and text of a driver's error, without the password of a URL in it."""
    return printable(re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}"), 300)


def translate_error(error: BaseException) -> Unavailable:
    """Return the error of ours that corresponds to an error of the driver.

    It names the cause and the remedy; the text of the driver is its detail.
    """
    if isinstance(error, OperationalError) and error.__cause__ is not None:
        error = error.__cause__
    text, remedy = _explain(error)
    return Unavailable(text, remedy=remedy, detail=describe_error(error))


def _explain(error: BaseException) -> tuple[str, str]:
    if isinstance(error, ssl.SSLError):
        return _explain_tls_error(error)
    if isinstance(error, amqp.AMQPError | amqp.MessageNacked):
        return _explain_refusal(error)
    for kind, text, remedy in _OS_ERRORS:
        if isinstance(error, kind):
            return text, remedy
    return (
        "The connection to the broker is lost.",
        "Look at the broker's log; for a port with TLS write amqps://, with certfile if it asks.",
    )


def _explain_tls_error(error: ssl.SSLError) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return (
                "The broker's certificate is signed by an authority that is not known here.",
                "Name its file by cacertfile in BrokerURL, or by SSL_CERT_FILE.",
            )
        predicate, remedy = _CERTIFICATE.get(
            error.verify_code, (f"is refused: {error.verify_message}", "Look at the certificate.")
        )
        return f"The broker's certificate {predicate}.", remedy
    reason = (error.reason or str(error)).upper()
    # With TLS 1.3 the alert about a missing client certificate follows the handshake, if it comes.
    if "ALERT" in reason or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return (
            "The broker ends the TLS handshake.",
            "If it asks for certificates, name ours by certfile and keyfile in BrokerURL.",
        )
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return (
            "The broker's port speaks no TLS.",
            "Name the port with TLS, mostly 5671, or write amqp:// to connect without TLS.",
        )
    if "PEM LIB" in reason or reason in _INVALID_FILE:
        return (
            "A file that BrokerURL names holds no certificate, or no key that belongs to it.",
            "Correct cacertfile, certfile, keyfile.",
        )
    return "TLS to the broker fails.", "Look at the broker's log, and at its port."


def _explain_refusal(error: Exception) -> tuple[str, str]:
    if isinstance(error, amqp.MessageNacked):
        return (
            "The broker refuses messages: a queue there is as long as it may be.",
            "Take the limit of length from the queues of the systems (rabbitmqctl list_policies).",
        )
    if isinstance(error, amqp.AccessRefused) and "refused using" in str(error):
        return (
            "The broker does not let us in: user or password are wrong.",
            "Correct them in BrokerURL, or on the broker.",
        )
    if isinstance(error, amqp.NotAllowed) and "not found" in str(error):
        return (
            "The broker has no such virtual host.",
            "Correct it in BrokerURL, or `rabbitmqctl add_vhost`.",
        )
    if isinstance(error, amqp.AccessRefused | amqp.NotAllowed):
        return (
            "The broker gives the user of BrokerURL no rights there.",
            "`rabbitmqctl set_permissions -p VIRTUALHOST USER '.*' '.*' '.*'`",
        )
    if isinstance(error, amqp.PreconditionFailed):
        return (
            "A queue or an exchange on the broker was made by somebody else, with other options.",
            "Delete it there: it is made anew. Options belong into a policy of the broker.",
        )
    return "The broker refuses a command.", "Look at its log. Is it a RabbitMQ?"
