"""How a user proves to a MongoDB server who he is, and the server that it knows him.

SCRAM (RFC 5802 and 7677, MongoDB's Authentication specification): the password never travels, and
the server shows at the end that it has what was derived from it. No sockets here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from dataclasses import dataclass
from typing import Any

from pymongo.saslprep import saslprep
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from shiftergw.mongo.address import MongoLogin
from shiftergw.plumbing.timing import shielded

DIGESTS = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
"""The mechanisms, the better one first."""

FEWEST_ROUNDS = 4096
MOST_ROUNDS = 1_000_000
"""Rounds of PBKDF2 that a server may ask for. With fewer a password is soon guessed from what was
heard; more take the gateway's processor (a million half a second) and protect no better.
"""

LONGEST_CHALLENGE = 4096
"""Bytes of a server's first message: nonce, salt and rounds."""

MOST_KEYS = 8
"""Derived keys that are kept: one for each mechanism and salt, so one or two."""


_ROUNDS_SETTING = {"sha256": "scramSHA256IterationCount", "sha1": "scramIterationCount"}

_Inputs = tuple[str, bytes, bytes, int]
"""Of PBKDF2: digest, password, salt, rounds."""


class LoginFailed(Exception):
    """The server does not know this user and password, or is not the one that does."""


def mechanism_of(login: MongoLogin, offered: list[str] | None) -> str:
    """Return how to log in: as told, else the best of what the server offers this user."""
    if login.mechanism is not None:
        return login.mechanism
    if offered is None:  # old servers do not say
        return "SCRAM-SHA-1"
    return next((name for name in DIGESTS if name in offered), "SCRAM-SHA-256")


@dataclass(frozen=True, slots=True)
class Proof:
    """The client's last message, and what the server must answer to it."""

    message: bytes
    expected: bytes

    def check(self, answer: bytes) -> None:
        """Raise `LoginFailed` unless the server has shown that it knows the user."""
        if not hmac.compare_digest(_values(answer).get("v", ""), self.expected.decode()):
            raise LoginFailed("the server does not know the user's password itself")


class SaltedPasswords:
    """Derives keys from passwords by PBKDF2, in threads, each once.

    Every connection logs in anew, with the same salt: the key is kept instead (RFC 5802, section
    5.1, allows that). It is worth as much as the password, and stays in memory like it.
    """

    def __init__(self, reactor: Any) -> None:
        """Use the threads of `reactor`."""
        self._reactor = reactor
        self._keys: dict[_Inputs, bytes] = {}
        self._running: dict[_Inputs, Deferred[None]] = {}

    async def derive(self, digest: str, password: bytes, salt: bytes, rounds: int) -> bytes:
        """Return the key of a password; a second caller waits for the first one's.

        A thread cannot be cancelled: what it derives is kept although its caller gave up.
        """
        inputs = digest, password, salt, rounds
        if inputs not in self._keys and inputs not in self._running:
            work: Deferred[bytes] = deferToThreadPool(
                self._reactor, self._reactor.getThreadPool(), hashlib.pbkdf2_hmac, *inputs
            )
            self._running[inputs] = work.addCallback(lambda key: self._keep(inputs, key))
        if inputs in self._running:
            await shielded(self._running[inputs])
        return self._keys[inputs]

    def _keep(self, inputs: _Inputs, key: bytes) -> None:
        del self._running[inputs]
        if len(self._keys) >= MOST_KEYS:
            del self._keys[next(iter(self._keys))]
        self._keys[inputs] = key


class Scram:
    """The client's side of one conversation."""

    def __init__(self, login: MongoLogin, mechanism: str, nonce: str = "") -> None:
        """Begin; `nonce` is for tests."""
        self._digest = DIGESTS[mechanism]
        self._password = _password(login, self._digest)
        user = login.user.replace("=", "=3D").replace(",", "=2C")
        self._nonce = nonce or b64encode(os.urandom(24)).decode()
        self._bare = f"n={user},r={self._nonce}"

    def first(self) -> bytes:
        """Return the first message."""
        return f"n,,{self._bare}".encode()

    async def prove(self, challenge: bytes, passwords: SaltedPasswords) -> Proof:
        """Return the answer to the server's first message; raise `LoginFailed` if it is invalid."""
        values = {} if len(challenge) > LONGEST_CHALLENGE else _values(challenge)
        try:
            nonce, salt = values["r"], b64decode(values["s"], validate=True)
            rounds = int(values["i"])
        except (KeyError, ValueError, NotBase64):
            raise LoginFailed("the server's challenge cannot be read") from None
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce):
            raise LoginFailed("the server's challenge is not for us")
        if not FEWEST_ROUNDS <= rounds <= MOST_ROUNDS:
            raise LoginFailed(
                f"the server asks for {rounds} rounds of PBKDF2, and {FEWEST_ROUNDS} to"
                f" {MOST_ROUNDS} are allowed; set its {_ROUNDS_SETTING[self._digest]}, and then"
                " the user's password once more"
            )
        salted = await passwords.derive(self._digest, self._password, salt, rounds)
        key = self._mac(salted, b"Client Key")
        stored = hashlib.new(self._digest, key).digest()
        without_proof = f"c=biws,r={nonce}"
        said = f"{self._bare},{challenge.decode()},{without_proof}".encode()
        proof = bytes(a ^ b for a, b in zip(key, self._mac(stored, said), strict=True))
        return Proof(
            f"{without_proof},p={b64encode(proof).decode()}".encode(),
            b64encode(self._mac(self._mac(salted, b"Server Key"), said)),
        )

    def _mac(self, key: bytes, text: bytes) -> bytes:
        return hmac.digest(key, text, self._digest)


def _password(login: MongoLogin, digest: str) -> bytes:
    if digest == "sha256":
        return str(saslprep(login.password)).encode()
    # What servers before SCRAM kept of a password, and still derive SHA-1's from.
    old = f"{login.user}:mongo:{login.password}".encode()
    return hashlib.md5(old, usedforsecurity=False).hexdigest().encode()


def _values(message: bytes) -> dict[str, str]:
    """Return the values of a message by their letters."""
    parts = message.decode("utf-8", "replace").split(",")
    return {part[:1]: part[2:] for part in parts if part[1:2] == "="}
