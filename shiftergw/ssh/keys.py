"""The gateway's SSH keys, from a file or an agent. Secrets do not leave this module."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.keys import Key

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.files import read_whole
from shiftergw.ssh.known_hosts import SIGNATURES, type_of

if TYPE_CHECKING:
    from shiftergw.plumbing.threads import Threads

AGENT_SECONDS = 10.0
_LONGEST_FILE = 64 << 10
_LONGEST_ANSWER = 256 << 10
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_PUBLIC = re.compile(
    rb"\s*(?:(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[\w@.-]+ AAAA|-+ ?BEGIN (?:SSH2 |RSA )?PUBLIC KEY)"
)
"""The beginning of a public key: OpenSSH's line, RFC 4716, PEM."""

# draft-ietf-sshm-ssh-agent: messages, and flags of a request to sign
_REQUEST_IDENTITIES, _IDENTITIES = 11, 12
_REQUEST_SIGNATURE, _SIGNATURE = 13, 14
_FLAGS = {b"rsa-sha2-256": 2, b"rsa-sha2-512": 4}


class Signer(Protocol):
    """A key that can sign."""

    @property
    def blob(self) -> bytes:
        """Return the public key in the format of SSH."""
        ...

    async def sign(self, data: bytes, algorithm: bytes) -> bytes:
        """Return a signature in the format of SSH. Raises `DeliveryFailed`."""
        ...


class _FileKey:
    """A private key in memory."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self.blob: bytes = key.public().blob()

    async def sign(self, data: bytes, algorithm: bytes) -> bytes:
        """Sign on this thread, which takes milliseconds."""
        signature: bytes = self._key.sign(data, algorithm)
        return signature

    def __repr__(self) -> str:
        """Return a text without the key, which `Key.__repr__` of Conch would show."""
        return "<key of a file>"


def read_key(path: Path, passphrase_file: Path | None) -> Signer:
    """Read a private key in OpenSSH's format or PEM. Blocks.

    Raises `DeliveryFailed` if other users can read the key or its passphrase, if the key cannot be
    read, or if the passphrase is absent or wrong.
    """
    content = _read_secret(path, "key", "key")
    passphrase = None
    if passphrase_file is not None:
        passphrase = _read_secret(
            passphrase_file, "passphrase of the key", "passphraseFile"
        ).rstrip(b"\r\n")
    is_encrypted = _is_encrypted(content)
    if is_encrypted and not passphrase:
        raise _unusable(
            "The gateway's SSH key needs a passphrase.", "`passphraseFile` says where.", path
        )
    try:
        load = (
            serialization.load_ssh_private_key
            if content.lstrip().startswith(_OPENSSH)
            else serialization.load_pem_private_key
        )
        key = load(content, passphrase if is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The text of the error may quote the file, and would be in the traceback.
        key = None
    if not isinstance(
        key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    ):
        if is_encrypted:
            raise _unusable(
                "The gateway's SSH key cannot be opened.",
                "the passphrase may be wrong, or the file damaged.",
                path,
            )
        raise _unusable(
            "The gateway's SSH key cannot be used.",
            "it must be RSA, ECDSA or Ed25519, in OpenSSH's format or PEM.",
            path,
        )
    try:
        return _FileKey(Key(key))
    except KeyError:
        raise _unusable(
            "The gateway's SSH key cannot be used.", "SSH does not know its curve.", path
        ) from None


def check_not_public(content: bytes, path: Path) -> None:
    """Raise `DeliveryFailed` if the content is a public key, not a private one."""
    if _PUBLIC.match(content):
        raise _unusable(
            "The gateway's SSH key is a public key; the private one is needed.",
            "`key` must name the private key, the file without .pub beside it.",
            path,
        )


def _is_encrypted(content: bytes) -> bool:
    """Return whether a private key needs a passphrase."""
    if content.lstrip().startswith(_OPENSSH):
        try:
            serialization.load_ssh_private_key(content, None)
        except TypeError:
            return True
        except (ValueError, UnsupportedAlgorithm):
            return False
        return False
    return b"ENCRYPTED" in content


def _read_secret(path: Path, subject: str, key: str) -> bytes:
    """Read a small file that only its owner can read.

    `subject` names the content in errors, `key` is the configuration key that names the file.
    """
    try:
        content, status = read_whole(path, _LONGEST_FILE)
    except OSError as error:
        raise DeliveryFailed(
            f"The gateway's SSH {subject} cannot be read.",
            remedy=f"Tell the site's support: `{key}` must name a file of the gateway's user.",
            detail=str(error),
        ) from None
    if key == "key":  # a public key is readable for all, and chmod is not the remedy
        check_not_public(content, path)
    if status.st_mode & 0o077:
        raise _unusable(
            f"The gateway's SSH {subject} can be read by others, so it is not used.",
            "give it the mode 600 (chmod).",
            path,
        )
    return content


def _unusable(problem: str, advice: str, path: Path) -> DeliveryFailed:
    return DeliveryFailed(problem, remedy=f"Tell the site's support: {advice}", detail=str(path))


class _AgentKey:
    """A key of an agent."""

    def __init__(self, place: str, blob: bytes, threads: Threads) -> None:
        self._place = place
        self.blob = blob
        self._threads = threads

    async def sign(self, data: bytes, algorithm: bytes) -> bytes:
        """Let the agent sign, in a thread."""
        flags = _FLAGS.get(algorithm, 0)
        request = NS(self.blob) + NS(data) + flags.to_bytes(4, "big")
        answer = await self._threads.run(_ask, self._place, _REQUEST_SIGNATURE, request, _SIGNATURE)
        return getNS(answer)[0]


async def agent_keys(environment: Mapping[str, str], threads: Threads) -> list[Signer]:
    """Return the supported keys of the agent of `SSH_AUTH_SOCK`. Raises `DeliveryFailed`."""
    place = environment.get("SSH_AUTH_SOCK", "")
    if not place:
        raise DeliveryFailed(
            "The gateway has no SSH key for this system.",
            remedy="Tell the site's support: `key` names no file, and no SSH agent runs.",
        )
    answer = await threads.run(_ask, place, _REQUEST_IDENTITIES, b"", _IDENTITIES)
    keys: list[Signer] = [
        _AgentKey(place, blob, threads)
        for blob in _identities(answer)
        if type_of(blob) in SIGNATURES
    ]
    if not keys:
        raise DeliveryFailed(
            "The gateway's SSH agent holds no key that can be used.",
            remedy="Tell the site's support: it must be RSA, ECDSA or Ed25519.",
            detail=place,
        )
    return keys


def _identities(answer: bytes) -> Iterator[bytes]:
    count, rest = int.from_bytes(answer[:4], "big"), answer[4:]
    while count and rest:
        blob, _, rest = getNS(rest, 2)
        count -= 1
        yield blob


def _ask(place: str, kind: int, request: bytes, expected: int) -> bytes:
    """Send one request to an agent; return the body of its answer. Blocks."""
    with _agent_errors(place), socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(AGENT_SECONDS)
        agent.connect(place)
        agent.sendall(NS(bytes((kind,)) + request))
        length = int.from_bytes(_receive_exactly(agent, 4), "big")
        if not 1 <= length <= _LONGEST_ANSWER:
            raise OSError("its answer has no proper length")
        answer = _receive_exactly(agent, length)
        if answer[0] != expected:
            raise OSError("it refused")
        return answer[1:]


def _receive_exactly(agent: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = agent.recv(count - len(content))
        if not piece:
            raise OSError("it closed the connection")
        content += piece
    return content


@contextmanager
def _agent_errors(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            "The gateway's SSH agent does not do what it was asked.",
            remedy="Tell the site's support.",
            detail=f"{place}: {printable(str(error))}",
        ) from error
