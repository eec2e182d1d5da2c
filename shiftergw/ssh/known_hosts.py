"""Which host keys are known: files in the format of OpenSSH's `known_hosts` (sshd(8)).

Nothing here asks anybody, and nothing is ever added: a key is known, or the connection fails.
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
"""The types of keys that we can check, the best first, with their signature algorithms.

RSA with SHA-1, which has the type's own name, is not among them (RFC 8332).
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
    """Return the type that a public key says it is; empty if it is none."""
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length] if len(blob) >= 4 + length else b""


def user_file() -> Path | None:
    """Return the list of the user who runs this, None if he has no home."""
    with suppress(RuntimeError):
        return Path("~/.ssh/known_hosts").expanduser()
    return None


def name_of(host: str, port: int) -> str:
    """Return what a host is called in the files."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


class HostKeys(Protocol):
    """Who says which host keys will do."""

    def algorithms(self, host: str, port: int) -> list[bytes]:
        """Return the signature algorithms to offer to this host, the best first."""
        ...

    def check(self, host: str, port: int, blob: bytes) -> None:
        """Return if this key of the host will do, and raise `DeliveryFailed` otherwise."""
        ...


@dataclass(frozen=True)
class KnownHostsLine:
    """A line of a file: `marker` is empty, `@revoked` or `@cert-authority`.

    `place` says where it stands, for admins.
    """

    place: str
    marker: str
    hosts: str
    blob: bytes

    def names(self, name: str) -> bool:
        """Say whether the line is about the host of this name."""
        if self.hosts.startswith("|"):
            return _is_hash_of(self.hosts, name)
        found = False
        for pattern in self.hosts.split(","):
            if _matches(name, pattern.removeprefix("!").lower()):
                if pattern.startswith("!"):
                    return False
                found = True
        return found


class KnownHosts:
    """The host keys of one or more files, as they were when they were read."""

    def __init__(self, text: str, place: str) -> None:
        """Parse the lines of `text`; `place` is where they stood, for admins.

        A line that cannot be understood is passed over as OpenSSH does, but for one that revokes a
        key: it raises `DeliveryFailed`.
        """
        self._place = place
        self._lines = list(_parse(text, place))

    @classmethod
    def read(cls, paths: Iterable[Path], *, must_exist: bool) -> KnownHosts:
        """Return what these files hold, blocking; `must_exist`: they may not be absent.

        Raises `DeliveryFailed`.
        """
        tried = list(paths)
        known = cls("", " ".join(map(str, tried)))
        for path in tried:
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
            known._lines += _parse(text, str(path))
        return known

    def algorithms(self, host: str, port: int) -> list[bytes]:
        """Return the signature algorithms to offer to this host, those of its known keys first.

        A server that has several keys shows the one of the first algorithm that it has.
        """
        known = {type_of(line.blob) for line in self.keys(host, port)}
        ordered = sorted(SIGNATURES, key=lambda kind: kind not in known)
        return [algorithm for kind in ordered for algorithm in SIGNATURES[kind]]

    def keys(self, host: str, port: int) -> list[KnownHostsLine]:
        """Return the lines with the keys that this host is known by; they may be revoked."""
        return list(self._about(host, port, ""))

    def revoking(self, host: str, port: int, blob: bytes) -> list[KnownHostsLine]:
        """Return the lines that revoke this key of the host."""
        return [line for line in self._about(host, port, "@revoked") if line.blob == blob]

    def check(self, host: str, port: int, blob: bytes) -> None:
        """Return if this host is known by this key, and raise `DeliveryFailed` otherwise."""
        shown = (
            f"{name_of(host, port)} showed {printable(type_of(blob), 40)} {fingerprint(blob)}; "
            f"known hosts are in {self._place}"
        )
        if self.revoking(host, port, blob):
            raise DeliveryFailed(
                "The system's host key has been revoked.", remedy=_REMEDY, detail=shown
            )
        known = [line.blob for line in self.keys(host, port)]
        if blob in known:
            return
        if known:
            held = ", ".join(f"{printable(type_of(k), 40)} {fingerprint(k)}" for k in known)
            raise DeliveryFailed(
                "The system's host key is not the one that is known: it has changed, "
                "or another machine answers in its place.",
                remedy=_REMEDY,
                detail=f"{shown}: {held}",
            )
        if any(self._about(host, port, "@cert-authority")):
            raise DeliveryFailed(
                "The system's host key is known by a certificate authority only, "
                "which this transport cannot check.",
                remedy="Tell the site's support: the host's own key must be in the list of known "
                f'hosts, or `"transport": "openssh"` be used. {_ADD}',
                detail=shown,
            )
        raise DeliveryFailed(
            "The system's host key is not known.",
            remedy=f"Tell the site's support: {_ADD}",
            detail=shown,
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
            hosts, kind, encoded = words[:3]
            blob = base64.b64decode(encoded, validate=True)
            understood = type_of(blob) == kind.encode()
        except (ValueError, Base64Error):
            understood = False
        if understood:
            yield KnownHostsLine(f"{place}, line {number}", marker, hosts, blob)
        elif marker == "@revoked":
            raise DeliveryFailed(
                "The list of known hosts has a line that cannot be understood.",
                remedy="Tell the site's support: the line revokes a key, and must be corrected.",
                detail=f"{place}, line {number}: {printable(line)}",
            )


def _is_hash_of(hashed: str, name: str) -> bool:
    """Say whether `|1|SALT|HASH` is the hash of a name: HMAC-SHA1 with the salt as its key."""
    try:
        version, salt, expected = hashed.removeprefix("|").split("|")
        digest = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
        return version == "1" and hmac.compare_digest(digest, base64.b64decode(expected))
    except ValueError:
        return False


def _matches(name: str, pattern: str) -> bool:
    """Match as OpenSSH does: `*` and `?` are special, brackets are not."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))
