"""What goes wrong with a broker, in words: what it is, and what an admin does about it."""

from __future__ import annotations

import re
import socket
import ssl

from amqp import exceptions as amqp
from kombu.exceptions import OperationalError

from shiftergw.errors import Unavailable, printable

BLOCKED = Unavailable(
    "The broker takes no messages: it is short of memory or disk.",
    remedy="`rabbitmq-diagnostics alarms` on the broker says of which; it goes on by itself.",
)

_ANOTHER_NAME = (
    "is for another name, or for none (its common name does not count)",
    "List the broker's host in its subjectAltName, or write a host into BrokerURL that it lists.",
)
_CERTIFICATE = {
    9: ("is not valid yet", "Look at the clocks of the broker and of this machine."),
    10: ("has expired", "Renew it on the broker; or this machine's clock is wrong."),
    62: _ANOTHER_NAME,
    64: _ANOTHER_NAME,
}
"""By OpenSSL's number for what is wrong with a certificate."""

_STRANGER = (7, 18, 19, 20, 21)
"""OpenSSL's numbers for a certificate whose authority is not known."""


_OTHER: tuple[tuple[type[OSError], str, str], ...] = (
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

_NO_CERTIFICATE = ("KEY_VALUES_MISMATCH", "NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND")


def explained(error: BaseException) -> str:
    """Return what a driver's error says, without a password that may stand in a URL there."""
    return printable(re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}"), 300)


def fault(error: BaseException) -> Unavailable:
    """Return an error of the driver as one of ours, with its remedy; the driver's word is detail.

    What and remedy are for admins: they say nothing of users or passwords, but much of the site.
    """
    if isinstance(error, OperationalError) and error.__cause__ is not None:
        error = error.__cause__
    what, remedy = _words(error)
    return Unavailable(what, remedy=remedy, detail=explained(error))


def _words(error: BaseException) -> tuple[str, str]:
    if isinstance(error, ssl.SSLError):
        return _about_tls(error)
    if isinstance(error, amqp.AMQPError | amqp.MessageNacked):
        return _about_refusal(error)
    for kind, what, remedy in _OTHER:
        if isinstance(error, kind):
            return what, remedy
    return (
        "The connection to the broker is lost.",
        "Look at the broker's log; for a port with TLS write amqps://, with certfile if it asks.",
    )


def _about_tls(error: ssl.SSLError) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _STRANGER:
            return (
                "The broker's certificate is signed by an authority that is not known here.",
                "Name its file by cacertfile in BrokerURL, or by SSL_CERT_FILE.",
            )
        wrong, remedy = _CERTIFICATE.get(
            error.verify_code, (f"is refused: {error.verify_message}", "Look at the certificate.")
        )
        return f"The broker's certificate {wrong}.", remedy
    reason = (error.reason or str(error)).upper()
    # With TLS 1.3 a certificate that is lacking is told after the handshake, if at all.
    if "ALERT" in reason or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return (
            "The broker ends the TLS handshake.",
            "If it asks for certificates, name ours by certfile and keyfile in BrokerURL.",
        )
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return (
            "The broker's port speaks no TLS.",
            "Name the port with TLS, mostly 5671, or write amqp:// if it shall be without.",
        )
    if "PEM LIB" in reason or reason in _NO_CERTIFICATE:
        return (
            "A file that BrokerURL names holds no certificate, or no key that belongs to it.",
            "Correct cacertfile, certfile, keyfile.",
        )
    return "TLS to the broker fails.", "Look at the broker's log, and at its port."


def _about_refusal(error: Exception) -> tuple[str, str]:
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
            "A queue or an exchange on the broker was made by somebody else, and otherwise.",
            "Delete it there: it is made anew. Options belong into a policy of the broker.",
        )
    return "The broker refuses what we ask.", "Its log says more; is it a RabbitMQ?"
