"""Check host keys against files in the format of OpenSSH's `known_hosts` (sshd(8)).

A key that is not known makes the connection fail; no prompt appears and no key is added here.
(`shiftergw ssh-trust` adds keys: see `known_hosts_file`.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.files import read_whole

DEFAULT_PORT = 22

SIGNATURES: dict[bytes, tuple[bytes, ...]] = {
    b"ssh-ed25519": (b"ssh-ed25519",),
    b"ecdsa-sha2-nistp256": (b"ecdsa-sha2-nistp256",),
    b"ecdsa-sha2-nistp384": (b"ecdsa-sha2-nistp384",),
    b"ecdsa-sha2-nistp521": (b"ecdsa-sha2-nistp521",),
    b"ssh-rsa": (b"rsa-sha2-512", b"rsa-sha2-256"),
}
"""The supported key types, the best first, with their signature algorithms.

RSA with SHA-1, which has the type's own name, is not supported (RFC 8332).
"""

GLOBAL_FILE = Path("/etc/ssh/ssh_known_hosts")

_ADD = (
    "`shiftergw ssh-trust SYSTEM` shows its fingerprint, and adds the key once somebody has "
    "compared that with the host's own."
)
_REMEDY = (
    "Tell the site's support: its list of known hosts has to be corrected, "
    "once somebody has made sure that it is the right host; `shiftergw ssh-trust SYSTEM` shows "
    "its fingerprints, and the old line."
)


def fingerprint(blob: bytes) -> str:
    """Return the fingerprint of a public key as `ssh-keygen -l` shows it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest())
    return f"SHA256:{digest.decode().rstrip('=')}"


def type_of(blob: bytes) -> bytes:
    """Return the type that a public key names; empty if it is not a public key."""
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length] if len(blob) >= 4 + length else b""


def user_file() -> Path | None:
    """Return the file of the user who runs this process; None without a home directory."""
    with suppress(RuntimeError):
        return Path("~/.ssh/known_hosts").expanduser()
    return None


def name_of(host: str, port: int) -> str:
    """Return the name of a host in the files."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


class HostKeys(Protocol):
    """Decides which host keys are acceptable."""

    def algorithms(self, host: str, port: int) -> list[bytes]:
        """Return the signature algorithms to offer to a host, the best first."""
        ...

    def check(self, host: str, port: int, blob: bytes) -> None:
        """Raise `DeliveryFailed` unless this key of a host is acceptable."""
        ...


@dataclass(frozen=True)
class KnownHostsLine:
    """A line of a file: `marker` is empty, `@revoked` or `@cert-authority`.

    `place` names file and line number for admins.
    """

    place: str
    marker: str
    hosts: str
    blob: bytes

    def names(self, name: str) -> bool:
        """Return whether the line applies to the host of this name."""
        if self.hosts.startswith("|"):
            return _is_hash_of(self.hosts, name)
        is_match = False
        for pattern in self.hosts.split(","):
            if _matches(name, pattern.removeprefix("!").lower()):
                if pattern.startswith("!"):
                    return False
                is_match = True
        return is_match


class KnownHosts:
    """The host keys of one or more files at the time of reading."""

    def __init__(self, text: str, place: str) -> None:
        """Parse the lines of `text`; `place` names their file for admins.

        An invalid line is ignored, as OpenSSH does, unless it revokes a key: then this raises
        `DeliveryFailed`.
        """
        self._place = place
        self._lines = list(_parse(text, place))

    @classmethod
    def read(cls, paths: Iterable[Path], *, must_exist: bool) -> KnownHosts:
        """Read files; with `must_exist`, an absent file is an error. Blocks.

        Raises `DeliveryFailed`.
        """
        files = list(paths)
        known_hosts = cls("", " ".join(map(str, files)))
        for path in files:
            try:
                text = read_whole(path)[0].decode("utf-8", "backslashreplace")
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not must_exist:
                    continue
                raise DeliveryFailed(
                    "The list of known hosts cannot be read.",
                    remedy="Tell the site's support: `knownHosts` says where it is, and "
                    "`shiftergw ssh-trust SYSTEM` makes it.",
                    detail=str(error),
                ) from error
            known_hosts._lines += _parse(text, str(path))
        return known_hosts

    def algorithms(self, host: str, port: int) -> list[bytes]:
        """Return the signature algorithms to offer to a host, those of its known keys first.

        A server with several keys shows the key of the first algorithm that it supports.
        """
        known_types = {type_of(line.blob) for line in self.keys(host, port)}
        types = sorted(SIGNATURES, key=lambda key_type: key_type not in known_types)
        return [algorithm for key_type in types for algorithm in SIGNATURES[key_type]]

    def keys(self, host: str, port: int) -> list[KnownHostsLine]:
        """Return the lines with the keys of this host, revoked keys included."""
        return list(self._about(host, port, ""))

    def revoking(self, host: str, port: int, blob: bytes) -> list[KnownHostsLine]:
        """Return the lines that revoke this key of the host."""
        return [line for line in self._about(host, port, "@revoked") if line.blob == blob]

    def check(self, host: str, port: int, blob: bytes) -> None:
        """Raise `DeliveryFailed` unless this key of the host is known and not revoked."""
        detail = (
            f"{name_of(host, port)} showed {printable(type_of(blob), 40)} {fingerprint(blob)}; "
            f"known hosts are in {self._place}"
        )
        if self.revoking(host, port, blob):
            raise DeliveryFailed(
                "The system's host key has been revoked.", remedy=_REMEDY, detail=detail
            )
        known_keys = [line.blob for line in self.keys(host, port)]
        if blob in known_keys:
            return
        if known_keys:
            keys = ", ".join(f"{printable(type_of(k), 40)} {fingerprint(k)}" for k in known_keys)
            raise DeliveryFailed(
                "The system's host key is not the one that is known: it has changed, "
                "or another machine answers in its place.",
                remedy=_REMEDY,
                detail=f"{detail}: {keys}",
            )
        if any(self._about(host, port, "@cert-authority")):
            raise DeliveryFailed(
                "The system's host key is known by a certificate authority only, "
                "which this transport cannot check.",
                remedy="Tell the site's support: the host's own key must be in the list of known "
                f'hosts, or `"transport": "openssh"` be used. {_ADD}',
                detail=detail,
            )
        raise DeliveryFailed(
            "The system's host key is not known.",
            remedy=f"Tell the site's support: {_ADD}",
            detail=detail,
        )

    def _about(self, host: str, port: int, marker: str) -> Iterator[KnownHostsLine]:
        name = name_of(host, port)
        return (line for line in self._lines if line.marker == marker and line.names(name))


def _parse(text: str, place: str) -> Iterator[KnownHostsLine]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        try:
            hosts, key_type, base64_blob = words[:3]
            blob = base64.b64decode(base64_blob, validate=True)
            is_valid = type_of(blob) == key_type.encode()
        except (ValueError, Base64Error):
            is_valid = False
        if is_valid:
            yield KnownHostsLine(f"{place}, line {number}", marker, hosts, blob)
        elif marker == "@revoked":
            raise DeliveryFailed(
                "The list of known hosts has a line that cannot be understood.",
                remedy="Tell the site's support: the line revokes a key, and must be corrected.",
                detail=f"{place}, line {number}: {printable(line)}",
            )


def _is_hash_of(entry: str, name: str) -> bool:
    """Return whether `|1|SALT|HASH` is the hash of a name: HMAC-SHA1 with the salt as its key."""
    try:
        version, salt, expected = entry.removeprefix("|").split("|")
        digest = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
        return version == "1" and hmac.compare_digest(digest, base64.b64decode(expected))
    except ValueError:
        return False


def _matches(name: str, pattern: str) -> bool:
    """Return whether a name matches, by OpenSSH's rules: brackets are not special."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))
