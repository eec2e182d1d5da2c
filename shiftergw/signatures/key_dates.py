"""Read when the keys of a policy expire, to warn before they do.

`gpg` lists OpenPGP keys with the dates that their self-signatures give them (doc/DETAILS of GnuPG,
"Format of the colon listings"). The verification itself needs `gpgv` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from shiftergw.errors import printable
from shiftergw.model.signatures import FulcioAuthority
from shiftergw.plumbing.process import Command, run_command
from shiftergw.signatures.certificates import FulcioTrust
from shiftergw.signatures.gpg import GPGV_SECONDS, gpg_environment, memory_file

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

GPG = "gpg"
"""The program that lists keys; machines that only verify signatures need not have it."""

_OPTIONS = (
    *("--batch", "--quiet", "--no-options", "--no-autostart", "--lock-never"),
    *("--no-auto-check-trustdb", "--trust-model", "always", "--no-default-keyring"),
)
_VALIDITY, _CREATION, _EXPIRY, _USER_ID, _CAPABILITIES = 1, 5, 6, 9, 11
"""Numbers of the fields of a line, from 0."""

_UNUSABLE = frozenset("rid")
"""The validity of keys that were revoked, are invalid, or are disabled."""


@dataclass(frozen=True, slots=True)
class KeyDates:
    """When signatures by a key count: from `start` until `end`, or for ever; not if revoked.

    `name` is the fingerprint of an OpenPGP key, or the subject of a certificate.
    """

    name: str
    start: datetime
    end: datetime | None
    is_revoked: bool = False


async def openpgp_key_dates(
    keyring: bytes, reactor: IReactorProcess, clock: IReactorTime
) -> list[KeyDates]:
    """Return the dates of the keys in a binary keyring that may sign.

    A key may have several subkeys for signatures: the one that is valid longest counts. Raises
    `ChildFailed` if `gpg` cannot be started or cannot read the keyring, and `TimedOut`.
    """
    with TemporaryDirectory(prefix="gpg-") as home, memory_file(keyring) as descriptor:
        argv = [GPG, "--homedir", home, *_OPTIONS, "--keyring", "/proc/self/fd/3"]
        command = Command(
            [*argv, "--with-colons", "--list-keys"],
            gpg_environment(),
            descriptors=(descriptor,),
            total=GPGV_SECONDS,
        )
        output = await run_command(command, reactor, clock)
    text = output.stdout.decode("utf-8", "backslashreplace")
    return list(_read_listing([line.split(":") for line in text.splitlines()]))


def _read_listing(lines: Sequence[Sequence[str]]) -> Iterator[KeyDates]:
    """Yield the keys of a listing, each with its subkeys."""
    starts = [number for number, fields in enumerate(lines) if fields[0] == "pub"]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        block = lines[start:end]
        name = next((fields[_USER_ID] for fields in block if fields[0] == "fpr"), "unknown")
        primary, *_ = keys = [fields for fields in block if fields[0] in {"pub", "sub"}]
        signers = [
            key
            for key in keys
            if "s" in key[_CAPABILITIES] and not {key[_VALIDITY], primary[_VALIDITY]} & _UNUSABLE
        ]
        ends = [_earlier(_time(key[_EXPIRY]), _time(primary[_EXPIRY])) for key in signers]
        yield KeyDates(
            printable(name),
            _time(primary[_CREATION]) or datetime.fromtimestamp(0, UTC),
            None if None in ends else max(filter(None, ends), default=None),
            is_revoked=not signers,
        )


def _time(field: str) -> datetime | None:
    return datetime.fromtimestamp(int(field), UTC) if field.isdecimal() else None


def _earlier(first: datetime | None, second: datetime | None) -> datetime | None:
    """Return the earlier of two ends, of which each may be None: never."""
    return min(filter(None, (first, second)), default=None)


def authority_dates(authority: FulcioAuthority) -> list[KeyDates]:
    """Return the dates of the certificates of an authority; raise `ValueError` as `FulcioTrust`."""
    return [
        KeyDates(
            printable(anchor.subject.rfc4514_string()) or "without a subject",
            anchor.not_valid_before_utc,
            anchor.not_valid_after_utc,
        )
        for anchor in FulcioTrust.read(authority).anchors
    ]
