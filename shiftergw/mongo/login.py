"""SCRAM: the user and the MongoDB server prove to each other that they know the password.

See RFC 5802, RFC 7677 and MongoDB's Authentication specification. The password itself is never
sent, and at the end the server proves that it has a key derived from it. This module uses no
sockets.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymongo.saslprep import saslprep
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from shiftergw.mongo.address import MongoLogin
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.timing import shield

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

DIGESTS = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
"""The digests of the mechanisms, the better one first."""

FEWEST_ROUNDS = 4096
MOST_ROUNDS = 1_000_000
"""Rounds of PBKDF2 that a server may request.

With fewer, an eavesdropper could soon guess the password. More rounds cost the gateway's processor
time (half a second for a million) and protect no better.
"""

LONGEST_CHALLENGE = 4096
"""Bytes of a server's first message at most: nonce, salt and rounds."""

MOST_KEYS = 8
"""Derived keys in memory at most. There is one for each mechanism and salt: one or two."""


_ROUNDS_SETTING = {"sha256": "scramSHA256IterationCount", "sha1": "scramIterationCount"}

_Inputs = tuple[str, bytes, bytes, int]
"""The inputs of PBKDF2: digest, password, salt, rounds."""


class LoginFailed(Exception):
    """The server refuses this user and password, or cannot prove that it knows them."""


def mechanism_of(login: MongoLogin, mechanisms: list[str] | None) -> str:
    """Return the mechanism of the login, or else the best of the server's for this user."""
    if login.mechanism is not None:
        return login.mechanism
    if mechanisms is None:  # old servers do not list them
        return "SCRAM-SHA-1"
    return next((name for name in DIGESTS if name in mechanisms), "SCRAM-SHA-256")


@dataclass(frozen=True, slots=True)
class Proof:
    """The client's last message, and the signature that the server must answer with."""

    message: bytes
    expected: bytes

    def check(self, answer: bytes) -> None:
        """Raise `LoginFailed` unless the answer proves that the server knows the password."""
        if not hmac.compare_digest(_attributes(answer).get("v", ""), self.expected.decode()):
            raise LoginFailed("the server does not know the user's password itself")


class SaltedPasswords:
    """Derive keys from passwords by PBKDF2 in threads, and remember them.

    Each connection logs in with the same salt, so the key is derived once (RFC 5802, section 5.1,
    allows that). A key is as secret as the password, and stays in memory like the password.
    """

    def __init__(self, reactor: Reactor) -> None:
        """Use the threads of `reactor`."""
        self._reactor = reactor
        self._keys: dict[_Inputs, bytes] = {}
        self._running: dict[_Inputs, Deferred[None]] = {}

    async def derive(self, digest: str, password: bytes, salt: bytes, rounds: int) -> bytes:
        """Return the key of a password; callers with the same inputs share one thread.

        A thread cannot be cancelled, so its key is remembered even if its caller is cancelled.
        """
        inputs = digest, password, salt, rounds
        if inputs not in self._keys and inputs not in self._running:
            threads = with_threads(self._reactor)
            work: Deferred[bytes] = deferToThreadPool(
                threads, threads.getThreadPool(), hashlib.pbkdf2_hmac, *inputs
            )
            self._running[inputs] = work.addCallback(lambda key: self._remember(inputs, key))
        if inputs in self._running:
            await shield(self._running[inputs])
        return self._keys[inputs]

    def _remember(self, inputs: _Inputs, key: bytes) -> None:
        del self._running[inputs]
        if len(self._keys) >= MOST_KEYS:
            del self._keys[next(iter(self._keys))]
        self._keys[inputs] = key


class Scram:
    """The client's side of one SCRAM conversation."""

    def __init__(self, login: MongoLogin, mechanism: str, nonce: str = "") -> None:
        """Start a conversation; `nonce` is for tests."""
        self._digest = DIGESTS[mechanism]
        self._password = _password(login, self._digest)
        user = login.user.replace("=", "=3D").replace(",", "=2C")
        self._nonce = nonce or b64encode(os.urandom(24)).decode()
        self._first_bare = f"n={user},r={self._nonce}"

    def first(self) -> bytes:
        """Return the first message."""
        return f"n,,{self._first_bare}".encode()

    async def prove(self, challenge: bytes, passwords: SaltedPasswords) -> Proof:
        """Return the answer to the server's first message; raise `LoginFailed` if it is invalid."""
        values = {} if len(challenge) > LONGEST_CHALLENGE else _attributes(challenge)
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
        salted_password = await passwords.derive(self._digest, self._password, salt, rounds)
        # The names are those of RFC 5802, section 3.
        client_key = self._hmac(salted_password, b"Client Key")
        stored_key = hashlib.new(self._digest, client_key).digest()
        without_proof = f"c=biws,r={nonce}"
        auth_message = f"{self._first_bare},{challenge.decode()},{without_proof}".encode()
        client_signature = self._hmac(stored_key, auth_message)
        proof = bytes(a ^ b for a, b in zip(client_key, client_signature, strict=True))
        server_key = self._hmac(salted_password, b"Server Key")
        return Proof(
            f"{without_proof},p={b64encode(proof).decode()}".encode(),
            b64encode(self._hmac(server_key, auth_message)),
        )

    def _hmac(self, key: bytes, text: bytes) -> bytes:
        return hmac.digest(key, text, self._digest)


def _password(login: MongoLogin, digest: str) -> bytes:
    if digest == "sha256":
        return str(saslprep(login.password)).encode()
    # Servers stored this digest before SCRAM; SCRAM-SHA-1 still uses it as the password.
    credential = f"{login.user}:mongo:{login.password}".encode()
    return hashlib.md5(credential, usedforsecurity=False).hexdigest().encode()


def _attributes(message: bytes) -> dict[str, str]:
    """Return the attributes of a message: values by letters."""
    parts = message.decode("utf-8", "replace").split(",")
    return {part[:1]: part[2:] for part in parts if part[1:2] == "="}
