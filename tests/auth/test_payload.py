"""The logins in a credential."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.auth.payload import logins
from shiftergw.errors import BadRequest
from shiftergw.model.requests import RegistryLogin


def written_by_the_client(locations: dict[str, str]) -> bytes:
    r"""Return what `shifterimg` writes: it escapes `" \ \n \b \f \r \t` and nothing else."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\b": "\\b", "\f": "\\f", "\r": "\\r"}
    escapes["\t"] = "\\t"

    def quote(text: str) -> str:
        return '"' + "".join(escapes.get(character, character) for character in text) + '"'

    inner = ",".join(f"{quote(name)}:{quote(text)}" for name, text in locations.items())
    return f'{{"authorized_locations":{{{inner}}}}}'.encode()


@given(
    locations=st.dictionaries(
        st.text(),
        st.tuples(st.text().filter(lambda user: ":" not in user), st.text()),
        max_size=4,
    )
)
def test_payloads_of_the_client(locations: dict[str, tuple[str, str]]) -> None:
    """All text arrives as the user typed it, control characters and colons included."""
    payload = written_by_the_client({name: ":".join(login) for name, login in locations.items()})
    assert logins(payload) == {name: RegistryLogin(*login) for name, login in locations.items()}


@pytest.mark.parametrize(
    "payload", [b"", b" \n", b"{}", b'{"authorized_locations":{}}', b'{"x":1}']
)
def test_no_logins(payload: bytes) -> None:
    """An empty payload has no logins, and other members are ignored."""
    assert logins(payload) == {}


def test_bytes_of_another_encoding() -> None:
    """A password that is not UTF-8 is read byte by byte."""
    payload = b'{"authorized_locations":{"default":"m\xfcller:pass\xe9"}}'
    assert logins(payload) == {"default": RegistryLogin("müller", "passé")}


@pytest.mark.parametrize(
    "payload",
    [
        b"hunter2",
        b"[]",
        b"null",
        b'"hunter2"',
        b'{"authorized_locations":{"default":"a:hunter2"}',
        b'{"authorized_locations":"hunter2"}',
        b'{"authorized_locations":["a:hunter2"]}',
        b'{"authorized_locations":null}',
        b'{"authorized_locations":{"default":1}}',
        b'{"authorized_locations":{"default":null}}',
        b'{"authorized_locations":{"default":["a:hunter2"]}}',
        b'{"authorized_locations":{"default":"hunter2"}}',
        b'{"authorized_locations":{"default":"a:hunter2\\ud800"}}',
        b'{"authorized_locations":{"\\udc00":"a:hunter2"}}',
        b'{"authorized_locations":{"default":' + b"9" * 5000 + b"}}",
        b"[" * 60000,
    ],
    ids=lambda payload: repr(payload[:60]),
)
def test_invalid_payloads(payload: bytes) -> None:
    """Invalid payloads are refused with a remedy, and no part of the error quotes them."""
    with pytest.raises(BadRequest, match=r"shifterimg login") as caught:
        logins(payload)
    error = caught.value
    assert "hunter2" not in f"{error}{error.detail}"
    assert (error.__cause__, error.__context__) == (None, None)
    assert "9999" not in "".join(traceback.format_exception(error))


def test_an_identity_token() -> None:
    """An identity token is a login of the user `<token>`, and may contain colons."""
    payload = b'{"authorized_locations":{"quay.io":"<token>:a:b","ghcr.io":"token:a:b"}}'
    by_location = logins(payload)
    assert by_location["quay.io"] == RegistryLogin("<token>", "a:b")
    assert by_location["quay.io"].is_identity_token
    assert not by_location["ghcr.io"].is_identity_token


@given(
    st.one_of(
        st.binary(), st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
    )
)
def test_any_payload(payload: bytes) -> None:
    """Every payload is parsed or raises `BadRequest`."""
    with suppress(BadRequest):
        assert all(isinstance(login, RegistryLogin) for login in logins(payload).values())
