"""Verify simple signatures, OpenPGP messages, with `gpgv`.

`gpgv` is judged by its status lines alone (doc/DETAILS of GnuPG): it exits with 0 for the signature
of an expired key, and writes the payload of a signature by an unknown key. It gets the keyrings of
one requirement and reads no other, no options and no agent. All its files are in memory.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from shiftergw.errors import ChildFailed, ConfigurationError, ImageRefused, TimedOut, printable
from shiftergw.model.signatures import (
    SIGNATURE_SIZE_LIMIT,
    GpgKeys,
    RejectedSignature,
    SignatureBlob,
    TrustedKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.plumbing.process import Command, run_command
from shiftergw.signatures.armor import read_keyring
from shiftergw.signatures.simple_signing import read_payload

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

GPGV_SECONDS = 30.0
"""The time limit for one signature, which takes milliseconds."""

_STATUS_LIMIT = 4 * SIGNATURE_SIZE_LIMIT
"""Bytes of status lines; a signature can contain notations, which these repeat."""

_PREFIX = "[GNUPG:] "

_STATUS, _MESSAGE, _FIRST_KEYRING = 3, 4, 5
"""Descriptors of the child."""

_REJECTIONS = {
    "EXPKEYSIG": "it is signed by a key that has expired",
    "REVKEYSIG": "it is signed by a key that was revoked",
    "EXPSIG": "it has expired",
    "BADSIG": "its content was changed after it was signed",
    "NO_PUBKEY": "it is signed by a key that the policy does not accept",
    "ERRSIG": "it cannot be verified",
    "NODATA": "it is not a complete OpenPGP signature",
    "UNEXPECTED": "it is not an OpenPGP signature of one payload",
    "BADARMOR": "it is not an OpenPGP signature",
    "FAILURE": "gpgv cannot verify it",
    "ERROR": "gpgv cannot verify it",
}
"""Status words that reject a signature, and why, the most telling first."""

_IDENTITY_WORDS = ("EXPKEYSIG", "REVKEYSIG", "EXPSIG", "BADSIG", "NO_PUBKEY", "ERRSIG", "GOODSIG")
"""Status words whose first argument is the id of the key."""

_STRONG_HASHES = frozenset({"8", "9", "10", "11"})
"""SHA-256, SHA-384, SHA-512 and SHA-224 (RFC 9580, section 9.5); `gpgv` also takes SHA-1."""

_BINARY_DOCUMENT = "00"
"""The class of a signature of bytes (RFC 9580, section 5.2.1)."""

_VALIDSIG_ARGUMENTS = 10
_KEY = re.compile("[0-9A-F]{16,64}")


class GpgVerifier:
    """The `SignatureVerifier` of the kind `simple`."""

    def __init__(
        self, reactor: IReactorProcess, clock: IReactorTime, program: str = "gpgv"
    ) -> None:
        """Verify with `program`."""
        self._reactor = reactor
        self._clock = clock
        self._program = program

    async def check_program(self) -> None:
        """Raise `ConfigurationError` unless `gpgv` can be started."""
        command = Command([self._program, "--version"], gpg_environment(), total=GPGV_SECONDS)
        try:
            await run_command(command, self._reactor, self._clock)
        except (ChildFailed, TimedOut) as error:
            raise ConfigurationError(
                f"The policy requires signatures by GPG keys: {error.what}",
                remedy="Install the package gpgv on this machine.",
            ) from error

    async def verify(self, signature: SignatureBlob, keys: TrustedKeys) -> VerificationResult:
        """Return the claim of the signature, or why it does not hold for these keys."""
        if signature.kind != "simple" or not isinstance(keys, GpgKeys):
            return RejectedSignature("it is not an OpenPGP signature")
        if len(signature.signature) > SIGNATURE_SIZE_LIMIT:
            return RejectedSignature("it is larger than any signature of an image")
        try:
            keyrings = [read_keyring(keyring) for keyring in keys.keyrings]
        except ValueError as error:
            raise ConfigurationError(f"A keyring of the policy is unusable: {error}.") from error
        try:
            lines, payload = await self._run(signature.signature, keyrings)
            fingerprint = _fingerprint(lines)
            return VerifiedClaim(fingerprint, *_payload(payload, fingerprint))
        except _RejectionError as rejection:
            return RejectedSignature(rejection.reason, rejection.key)

    async def _run(
        self, message: bytes, keyrings: Sequence[bytes]
    ) -> tuple[list[list[str]], bytes]:
        """Return the status lines of `gpgv`, as words, and what it has written as the payload."""
        payload = bytearray()

        def collect(data: bytes) -> None:
            payload.extend(data)
            if len(payload) > SIGNATURE_SIZE_LIMIT:
                raise _RejectionError("its content is larger than that of an image's signature")

        with ExitStack() as stack:
            status, *files = (
                stack.enter_context(memory_file(content)) for content in (b"", message, *keyrings)
            )
            argv = [self._program, "--homedir", "/nonexistent", "--status-fd", str(_STATUS)]
            for number in range(len(keyrings)):
                argv += ["--keyring", f"/proc/self/fd/{_FIRST_KEYRING + number}"]
            argv += ["--output", "-", "--", f"/proc/self/fd/{_MESSAGE}"]
            command = Command(
                argv, gpg_environment(), descriptors=(status, *files), total=GPGV_SECONDS
            )
            try:
                await run_command(command, self._reactor, self._clock, collect)
            except TimedOut as error:
                raise _RejectionError("gpgv takes too long to verify it") from error
            except ChildFailed as error:
                # An exit code of its own means a bad signature, which the status lines explain.
                if error.exit_code is None:
                    raise ImageRefused(
                        "The signatures of the image cannot be verified at the moment.",
                        remedy="Tell the site's support; the gateway's log says more.",
                        detail=f"{error.what} {error.detail}",
                    ) from error
            return _words(os.pread(status, _STATUS_LIMIT, 0)), bytes(payload)


class _RejectionError(Exception):
    """A signature does not hold; `key` is the one that it names, if it is known."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.key = key


def gpg_environment() -> dict[str, str]:
    """Return the environment of the programs of GnuPG: their words are not translated."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a file in memory with this content."""
    descriptor = os.memfd_create("gpgv")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _words(status: bytes) -> list[list[str]]:
    """Return the words of each status line."""
    lines = status.decode("utf-8", "backslashreplace").split("\n")
    return [line.removeprefix(_PREFIX).split(" ") for line in lines if line.startswith(_PREFIX)]


def _fingerprint(lines: Sequence[Sequence[str]]) -> str:
    """Return the fingerprint of the primary key, if the status lines vouch for one signature."""
    counts = Counter(line[0] for line in lines)
    for word, reason in _REJECTIONS.items():
        if counts[word]:
            key = _unverified_key(lines)
            raise _RejectionError(f"{reason} ({key})" if key else reason, key)
    valid_lines = [line[1:] for line in lines if line[0] == "VALIDSIG"]
    if counts["GOODSIG"] != 1 or counts["PLAINTEXT"] != 1 or len(valid_lines) != 1:
        raise _RejectionError("it is not exactly one OpenPGP signature of one payload")
    (arguments,) = valid_lines
    if len(arguments) < _VALIDSIG_ARGUMENTS or not _KEY.fullmatch(arguments[9]):
        raise _RejectionError("gpgv does not name its key")
    fingerprint = arguments[9]
    if arguments[7] not in _STRONG_HASHES:
        raise _RejectionError("its hash algorithm is too weak", fingerprint)
    if arguments[8] != _BINARY_DOCUMENT:
        raise _RejectionError("it is not a signature of bytes", fingerprint)
    return fingerprint


def _payload(content: bytes, fingerprint: str) -> tuple[str, str]:
    try:
        return read_payload(content)
    except ValueError as error:
        raise _RejectionError(printable(str(error)), fingerprint) from error


def _unverified_key(lines: Sequence[Sequence[str]]) -> str:
    """Return the id or fingerprint of the key that a rejected signature names, or nothing."""
    for line in lines:
        if line[0] in _IDENTITY_WORDS and len(line) > 1 and _KEY.fullmatch(line[1]):
            return line[1]
    return ""
