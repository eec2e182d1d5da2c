"""The conversation of a login, message by message as in the examples of the RFCs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from shiftergw.mongo.address import MongoLogin
from shiftergw.mongo.login import MOST_KEYS, LoginFailed, SaltedPasswords, Scram, mechanism_of
from shiftergw.plumbing.timing import pause
from tests.installed_reactor import reactor
from tests.patience import patient

# RFC 7677, section 3.
SHA256 = (
    "rOprNGfwEbeRWgbNEkqO",
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    (
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    ),
    "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
)
# MongoDB's Authentication specification: SHA-1 of its own digest of the password.
SHA1 = (
    "fyko+d2lbbFgONRv9qkxdawL",
    "r=fyko+d2lbbFgONRv9qkxdawLHo+Vgk7qvUOKUwuWLIWg4l/9SraGMHEE,s=rQ9ZY3MntBeuP3E1TDVC4w==,i=10000",
    (
        "c=biws,r=fyko+d2lbbFgONRv9qkxdawLHo+Vgk7qvUOKUwuWLIWg4l/9SraGMHEE,"
        "p=MC2T8BvbmWRckDw8oWl5IVghwCY="
    ),
    "v=UMWeI25JD1yNYZRMpZ4VHvhZ9e0=",
)
USER = MongoLogin("user", "pencil")


@pytest.mark.parametrize(
    ("mechanism", "conversation"), [("SCRAM-SHA-256", SHA256), ("SCRAM-SHA-1", SHA1)]
)
@pytest_twisted.ensureDeferred
async def test_the_examples_of_the_rfcs(
    mechanism: str, conversation: tuple[str, str, str, str]
) -> None:
    """Our messages are those of the examples, and the servers' answers are accepted."""
    nonce, challenge, proof, signature = conversation
    scram = Scram(USER, mechanism, nonce)
    assert scram.first().decode() == f"n,,n=user,r={nonce}"
    client_proof = await scram.prove(challenge.encode(), SaltedPasswords(reactor))
    assert client_proof.message.decode() == proof
    client_proof.check(signature.encode())
    for wrong in (signature[:-2] + "A=", "e=other-error", "", signature.replace("v=", "x=")):
        with pytest.raises(LoginFailed, match="itself"):
            client_proof.check(wrong.encode())


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (SHA256[1].replace("r=rO", "r=RO"), "not for us"),
        ("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "not for us"),
        (SHA256[1].replace("i=4096", "i=4095"), "4095 rounds of PBKDF2, and 4096 to 1000000 are"),
        (SHA256[1].replace("i=4096", "i=99999999999"), "99999999999 rounds"),
        (SHA256[1].replace("i=4096", "i=1000001"), "set its scramSHA256IterationCount"),
        (SHA256[1].replace("i=4096", f"i={'9' * 5000}"), "cannot be read"),
        (SHA256[1].replace("s=", f"s={'QUFB' * 2000}"), "cannot be read"),
        (SHA256[1].replace("i=4096", "i=many"), "cannot be read"),
        (re.sub(",s=[^,]*", "", SHA256[1]), "cannot be read"),
        (re.sub(",s=[^,]*", ",s=?", SHA256[1]), "cannot be read"),
        ("", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_challenges_get_no_proof(challenge: str, reason: str) -> None:
    """A server with an invalid challenge, or another's answer, gets no proof of the password."""
    scram = Scram(USER, "SCRAM-SHA-256", SHA256[0])
    with pytest.raises(LoginFailed, match=reason):
        await scram.prove(challenge.encode("utf-8", "surrogateescape"), SaltedPasswords(reactor))


def test_each_conversation_is_different() -> None:
    """A recorded conversation is useless, and a user's name cannot add attributes."""
    login = MongoLogin("a,r=b=c", "x")
    messages = {Scram(login, "SCRAM-SHA-256").first() for _ in range(20)}
    assert len(messages) == 20
    assert all(message.startswith(b"n,,n=a=2Cr=3Db=3Dc,r=") for message in messages)


@pytest.mark.parametrize(
    ("mechanism", "mechanisms", "expected"),
    [
        (None, ["SCRAM-SHA-1", "SCRAM-SHA-256"], "SCRAM-SHA-256"),
        (None, ["SCRAM-SHA-1"], "SCRAM-SHA-1"),
        (None, [], "SCRAM-SHA-256"),
        (None, None, "SCRAM-SHA-1"),
        ("SCRAM-SHA-1", ["SCRAM-SHA-256"], "SCRAM-SHA-1"),
        ("MONGODB-X509", None, "MONGODB-X509"),
    ],
)
def test_mechanisms(mechanism: str | None, mechanisms: list[str] | None, expected: str) -> None:
    """The mechanism of the URI is used, or else the best of the server for this user."""
    assert mechanism_of(MongoLogin("u", "p", mechanism=mechanism), mechanisms) == expected


def test_a_login_shows_no_password() -> None:
    """The representation of a login for the log contains no password."""
    assert "pencil" not in repr(USER) + repr(Scram(USER, "SCRAM-SHA-256"))


class Derivations:
    """PBKDF2 that notes the threads it runs in, and can be suspended."""

    def __init__(self) -> None:
        """Begin without a suspension."""
        self.threads: list[threading.Thread] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._derive = hashlib.pbkdf2_hmac

    def __call__(self, *inputs: Any) -> bytes:
        """Derive a key."""
        self.threads.append(threading.current_thread())
        assert self.go_on.wait(patient(30))
        return self._derive(*inputs)


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Derivations]:
    """Return the instance that derives keys in this test."""
    fake_derivations = Derivations()
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", fake_derivations)
    yield fake_derivations
    fake_derivations.go_on.set()


@pytest_twisted.ensureDeferred
async def test_keys_are_derived_in_threads_and_once(derivations: Derivations) -> None:
    """Concurrent logins share one derivation, later ones its key.

    Another salt, password or number of rounds has a key of its own.
    """
    passwords = SaltedPasswords(reactor)
    inputs = ("sha256", b"pencil", b"salt", 5000)
    keys = await gatherResults(Deferred.fromCoroutine(passwords.derive(*inputs)) for _ in range(3))
    assert keys == [hashlib.pbkdf2_hmac(*inputs)] * 3
    del derivations.threads[1:]
    assert await passwords.derive(*inputs) == keys[0]
    assert derivations.threads != [threading.main_thread()]
    assert len(derivations.threads) == 1
    variants = [
        ("sha1", *inputs[1:]),
        ("sha256", b"pen", b"salt", 5000),
        ("sha256", b"pencil", b"sal", 5000),
        ("sha256", b"pencil", b"salt", 5001),
    ]
    assert len({await passwords.derive(*variant) for variant in variants} | {keys[0]}) == 5
    assert len(derivations.threads) == 5


@pytest_twisted.ensureDeferred
async def test_a_derivation_does_not_block_the_reactor(derivations: Derivations) -> None:
    """A caller that gives up leaves the key of a million rounds to the next caller."""
    derivations.go_on.clear()
    passwords = SaltedPasswords(reactor)
    first = Deferred.fromCoroutine(passwords.derive("sha256", b"x", b"salt", 5000))
    first.addErrback(lambda _: None)
    await pause(0.01, reactor)
    first.cancel()
    second = Deferred.fromCoroutine(passwords.derive("sha256", b"x", b"salt", 5000))
    await pause(0.01, reactor)
    assert not second.called
    derivations.go_on.set()
    await second
    assert len(derivations.threads) == 1


@pytest_twisted.ensureDeferred
async def test_few_keys_stay_in_memory(derivations: Derivations) -> None:
    """A server that invents salts cannot fill the memory."""
    passwords = SaltedPasswords(reactor)
    for number in range(3 * MOST_KEYS):
        await passwords.derive("sha256", b"x", b"%d" % number, 5000)
    await passwords.derive("sha256", b"x", b"%d" % number, 5000)
    assert len(derivations.threads) == 3 * MOST_KEYS
    await passwords.derive("sha256", b"x", b"0", 5000)
    assert len(derivations.threads) == 3 * MOST_KEYS + 1
