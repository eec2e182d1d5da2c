"""Encrypt small secrets with a key from a file of its own."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shiftergw.errors import ConfigurationError, GatewayError
from shiftergw.plumbing.disk_errors import DISK_FULL
from shiftergw.plumbing.files import nearest_existing, read_whole, sync_directory

WORKER_SCHEME = "shiftergw-worker"
"""The first word of the credential of a request from a worker."""

CREDENTIAL_SECONDS = 300
"""Seconds by which the clocks of two machines may differ, and for which a credential is valid."""

_WORKER_CREDENTIAL = re.compile(f"{WORKER_SCHEME} ([0-9]{{1,12}}) [0-9a-f]+", re.ASCII)
_KEY_BYTES = 32
_NONCE_BYTES = 12
_OWNER = "It must belong to the gateway's user, with mode 600."


class Seal:
    """Encrypts and decrypts short texts with AES-256-GCM; `context` binds a text to its purpose."""

    def __init__(self, key: bytes) -> None:
        """Use a key of 32 bytes."""
        self._cipher = AESGCM(key)
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Seal:
        """Read the key; create the file (0600) if it is absent. Blocks.

        Raises `ConfigurationError` if other users can read the file or it holds no key.
        """
        try:
            _make_key(path)
        except OSError as error:
            raise _not_made(path, error) from error
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Seal:
        """Read the key of an existing file. Blocks. Raises `ConfigurationError` as `from_file`."""
        try:
            content, state = read_whole(path)
        except OSError as error:
            raise ConfigurationError(
                f"The secret key {path} cannot be read: {error.strerror}.", remedy=_OWNER
            ) from error
        if state.st_mode & 0o077:
            raise ConfigurationError(
                f"The secret key {path} can be read by others.", remedy=f"chmod 600 {path}"
            )
        try:
            key = base64.b64decode(content.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"The secret key {path} does not hold 32 bytes in base64.",
                remedy="Remove it to have a new one made; work in flight then lacks its logins.",
            )
        return cls(key)

    @staticmethod
    def check_file(path: Path, private_directories: Collection[Path]) -> None:
        """Raise `ConfigurationError` if `from_file` would; create nothing. Blocks.

        `private_directories` are created before the key is.
        """
        if os.path.lexists(path):
            Seal.read(path)
            return
        directory = path.parent
        if directory in private_directories:
            directory = nearest_existing(directory)
        if not os.access(directory, os.W_OK | os.X_OK):
            problem = errno.EACCES if directory.is_dir() else errno.ENOENT
            raise _not_made(path, OSError(problem, os.strerror(problem)))

    def close(self, text: str, context: str) -> str:
        """Return the encrypted text in base64."""
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = nonce + self._cipher.encrypt(nonce, text.encode(), context.encode())
        return base64.b64encode(ciphertext).decode("ascii")

    def fingerprint(self, text: str, context: str) -> str:
        """Return a keyed digest of a text in hexadecimal; testing guesses needs the key."""
        message = b"\0".join([b"fingerprint", context.encode(), text.encode("utf-8", "replace")])
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:32]

    def sign_request(self, method: str, target: str, time: int) -> str:
        """Return the credential of a request between the machines of a site.

        It is valid for one method, one path with its query (`target`), and around this time in
        seconds; it shows that the sender has the site's key.
        """
        signature = self.fingerprint(f"{method} {target} {time}", "request of a worker")
        return f"{WORKER_SCHEME} {time} {signature}"

    def check_request(self, credential: str, method: str, target: str, now: float) -> bool:
        """Return whether `sign_request` has made a credential for this request, a moment ago."""
        match = _WORKER_CREDENTIAL.fullmatch(credential)
        if match is None or abs(int(match[1]) - now) > CREDENTIAL_SECONDS:
            return False
        expected = self.sign_request(method, target, int(match[1]))
        return hmac.compare_digest(expected.encode(), credential.encode())

    def open(self, ciphertext: str, context: str) -> str:
        """Return the decrypted text; raise `GatewayError` if key, context or bytes do not match."""
        try:
            raw = base64.b64decode(ciphertext)
            return self._cipher.decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], context.encode()
            ).decode()
        except (InvalidTag, ValueError) as error:
            raise GatewayError(
                "The stored login cannot be opened.",
                remedy="All machines of a site need the same SecretKeyFile.",
            ) from error


def _not_made(path: Path, error: OSError) -> ConfigurationError:
    problem = (
        f"The secret key {path} is absent, and cannot be made in {path.parent}: {error.strerror}."
    )
    if error.errno in DISK_FULL:
        return ConfigurationError(problem, remedy="Make room on its file system.")
    if error.errno == errno.EROFS:
        return ConfigurationError(problem, remedy="Mount its file system for writing.")
    return ConfigurationError(
        problem,
        remedy=f"As root, with the name of the gateway's user in place of USER: head -c 32"
        f" /dev/urandom | base64 | install -m 0600 -o USER /dev/stdin {path}",
    )


def _make_key(path: Path) -> None:
    """Create a new key at `path` unless there is one; atomic, also between processes."""
    if path.exists():
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(name)
        sync_directory(path.parent)
    finally:
        Path(name).unlink()
