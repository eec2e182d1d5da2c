"""The conversation of a login, message by message as the RFCs print it."""

from __future__ import annotations

import re

import pytest

from shiftergw.store.mongo.address import Login
from shiftergw.store.mongo.login import LoginFailed, Scram, mechanism_of

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
USER = Login("user", "pencil")


@pytest.mark.parametrize(
    ("mechanism", "conversation"), [("SCRAM-SHA-256", SHA256), ("SCRAM-SHA-1", SHA1)]
)
def test_the_printed_conversations(mechanism: str, conversation: tuple[str, str, str, str]) -> None:
    """We say what the specifications print, and believe what they let the server answer."""
    nonce, challenge, proof, signature = conversation
    scram = Scram(USER, mechanism, nonce)
    assert scram.first().decode() == f"n,,n=user,r={nonce}"
    proved = scram.prove(challenge.encode())
    assert proved.message.decode() == proof
    proved.check(signature.encode())
    for wrong in (signature[:-2] + "A=", "e=other-error", "", signature.replace("v=", "x=")):
        with pytest.raises(LoginFailed, match="itself"):
            proved.check(wrong.encode())


@pytest.mark.parametrize(
    ("challenge", "told"),
    [
        (SHA256[1].replace("r=rO", "r=RO"), "not for us"),
        ("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "not for us"),
        (SHA256[1].replace("i=4096", "i=4095"), "4095 iterations"),
        (SHA256[1].replace("i=4096", "i=99999999999"), "99999999999 iterations"),
        (SHA256[1].replace("i=4096", "i=many"), "cannot be read"),
        (re.sub(",s=[^,]*", "", SHA256[1]), "cannot be read"),
        (re.sub(",s=[^,]*", ",s=?", SHA256[1]), "cannot be read"),
        ("", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_challenges_that_are_none(challenge: str, told: str) -> None:
    """A server that is none, or another's answer, gets no proof of the password."""
    scram = Scram(USER, "SCRAM-SHA-256", SHA256[0])
    with pytest.raises(LoginFailed, match=told):
        scram.prove(challenge.encode("utf-8", "surrogateescape"))


def test_every_conversation_is_another() -> None:
    """What was heard once is worth nothing; a user's name cannot add to the message."""
    login = Login("a,r=b=c", "x")
    messages = {Scram(login, "SCRAM-SHA-256").first() for _ in range(20)}
    assert len(messages) == 20
    assert all(message.startswith(b"n,,n=a=2Cr=3Db=3Dc,r=") for message in messages)


@pytest.mark.parametrize(
    ("told", "offered", "expected"),
    [
        (None, ["SCRAM-SHA-1", "SCRAM-SHA-256"], "SCRAM-SHA-256"),
        (None, ["SCRAM-SHA-1"], "SCRAM-SHA-1"),
        (None, [], "SCRAM-SHA-256"),
        (None, None, "SCRAM-SHA-1"),
        ("SCRAM-SHA-1", ["SCRAM-SHA-256"], "SCRAM-SHA-1"),
        ("MONGODB-X509", None, "MONGODB-X509"),
    ],
)
def test_mechanisms(told: str | None, offered: list[str] | None, expected: str) -> None:
    """What the URI says counts; else the best that the server has of this user."""
    assert mechanism_of(Login("u", "p", mechanism=told), offered) == expected


def test_a_login_shows_no_password() -> None:
    """Whatever is logged of a login, it is not the password."""
    assert "pencil" not in repr(USER) + repr(Scram(USER, "SCRAM-SHA-256"))
