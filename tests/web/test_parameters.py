"""Paths, credentials and bodies as values."""

from __future__ import annotations

import pytest

from shiftergw.errors import BadRequest, NotAuthenticated, NotFound
from shiftergw.web import parameters
from shiftergw.web.parameters import RequestPath


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", RequestPath("/")),
        (b"/livez", RequestPath("/livez")),
        (b"/livez/", RequestPath("/livez")),
        (b"/api/openapi.json", RequestPath("/api/openapi.json")),
        (b"/api/list/s/", RequestPath("list", "s")),
        (b"/api/list/s", RequestPath("list", "s")),
        (b"/api/lookup/s/docker/x/", RequestPath("lookup", "s", "docker", "x")),
        (b"/api/lookup/s/docker/a%2Fb%3A1/", RequestPath("lookup", "s", "docker", "a/b:1")),
        (b"/api/pull/s/docker/%2F%2Fa%2Fb%3A1/", RequestPath("pull", "s", "docker", "//a/b:1")),
        (b"/api/pull/s/docker/https%3A%2F%2Fa/", RequestPath("pull", "s", "docker", "https://a")),
        (b"/api/lookup/s/docker/a/b:1", RequestPath("lookup", "s", "docker", "a/b:1")),
        (b"/api/lookup/s/docker/a%252Fb/", RequestPath("lookup", "s", "docker", "a%2Fb")),
        (b"/api/pull/s/custom/%C3%A9%2B%40/", RequestPath("pull", "s", "custom", "é+@")),
        (b"http://gateway:5000/api/list/s/", RequestPath("list", "s")),
        (b"http://gateway", RequestPath("/")),
    ],
)
def test_a_path_is_decoded_once_and_cut(path: bytes, expected: RequestPath) -> None:
    """Five segments, one optional slash at the end, the image's own slashes either way."""
    assert RequestPath.parse(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        b"//",
        b"//api/list/s/",
        b"/api/list/s//",
        b"/api/lookup/s/docker/x//",
        b"/api/lookup/s/docker/x%2F/",
        b"/api/lookup/s/docker//x",
        b"/api/lookup/s/docker////x",
        b"/api/lookup/s///x",
        b"/api/lookup//docker/x",
        b"/api",
        b"/a/b",
        b"*",
        b"api/list/s",
    ],
)
def test_a_path_that_names_nothing(path: bytes) -> None:
    """Empty segments, doubled slashes and paths of another length are not found."""
    with pytest.raises(NotFound):
        RequestPath.parse(path)


def test_a_path_that_is_not_text() -> None:
    """A path with bytes that are not UTF-8 is a bad request."""
    with pytest.raises(BadRequest):
        RequestPath.parse(b"/api/lookup/s/docker/%ff/")


def test_one_credential_counts() -> None:
    """A single header with text is the credential."""
    assert parameters.credential([b"MUNGE:abc:"]) == "MUNGE:abc:"


@pytest.mark.parametrize("values", [[], [b""], [b"good:a:a", b"good:b:b"], [b"\xff"]])
def test_any_other_credential_is_refused(values: list[bytes]) -> None:
    """Without a credential, or with an empty one, two, or bytes, a request is not authenticated."""
    with pytest.raises(NotAuthenticated):
        parameters.credential(values)


@pytest.mark.parametrize("body", [b"", b"  \n", b"null", b"{}"])
def test_a_body_without_parameters(body: bytes) -> None:
    """No body, `null` and `{}` are the same."""
    assert parameters.members(body) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"1",
        b'"a"',
        b"false",
        b"\xff",
        b'{"a":1,"a":2}',
        b"[" * 60_000,
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":{"b":1,"b":1}}',
    ],
)
def test_a_body_that_is_no_object(body: bytes) -> None:
    """A body that is not a JSON object, has a member twice, or is too deep or long is refused."""
    with pytest.raises(BadRequest):
        parameters.members(body)
