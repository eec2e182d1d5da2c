"""The description of the interface: it is valid, complete and true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from shiftergw.web import openapi
from shiftergw.web.pages import PAGES
from shiftergw.web.route_descriptions import DESCRIPTIONS, PAGE_DESCRIPTIONS
from shiftergw.web.routes import ROUTES
from tests.web.description import problems_of
from tests.web.fakes import Reply, Wire

PATH = "/api/openapi.json"


def test_the_description_is_valid() -> None:
    """It keeps the rules of OpenAPI 3.1, and so do the schemas in it."""
    OpenAPIV31SpecValidator(openapi.document()).validate()


def test_every_route_is_described() -> None:
    """Each route and page is in the description by its method, and nothing else is."""
    routes = {
        f"{route.method} {openapi.path_of(page, route)}"
        for page, first_route in ROUTES.items()
        for route in (first_route, *first_route.siblings)
    }
    assert routes == DESCRIPTIONS.keys()
    assert PAGES.keys() == PAGE_DESCRIPTIONS.keys()
    operations = {
        f"{method.upper()} {path}"
        for path, item in openapi.document()["paths"].items()
        for method in item
    }
    assert operations == routes | {f"GET {path}" for path in PAGES}


def test_routes_of_the_original_gateway_are_marked() -> None:
    """Clients of the original gateway find their routes by a tag."""
    original = {
        f"{method} {path}"
        for path, item in openapi.document()["paths"].items()
        for method, operation in item.items()
        if operation["tags"] == ["original"]
    }
    system, image = "{system}/", "{system}/{type}/{image}/"
    assert original == {
        "get /",
        *(f"get /api/{page}/{system}" for page in ("list", "autoexpire", "queue", "metrics")),
        *(f"get /api/{page}/{image}" for page in ("lookup", "expire")),
        *(f"post /api/{page}/{image}" for page in ("pull", "doimport")),
    }


def test_only_pages_need_no_credential() -> None:
    """Routes need munge, those of workers a signature of the site."""
    document = openapi.document()
    assert document["security"] == [{"munge": []}]
    other_schemes = {
        path: operation["security"]
        for path, item in document["paths"].items()
        for operation in item.values()
        if "security" in operation
    }
    no_scheme: list[Any] = []
    assert other_schemes == {
        **dict.fromkeys(PAGES, no_scheme),
        "/api/spool/{system}/{id}/": [{"worker": []}],
    }


def test_everybody_reads_the_description(wire: Wire) -> None:
    """It needs no credential, and says nothing about the site."""
    reply = wire.ask(PATH, headers=())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == json.loads(json.dumps(openapi.document()))
    assert b"mycluster" not in reply.body
    assert wire.ask(f"{PATH}/", "HEAD", headers=()).headers["content-length"] == str(
        len(reply.body)
    )
    assert wire.ask(PATH, "POST", headers=()).status == 405
    assert wire.ask("/api/other.json", headers=()).status == 404


def test_a_client_that_has_the_description_gets_it_once(wire: Wire) -> None:
    """A request with its ETag is answered without a body."""
    tag = wire.ask(PATH, headers=()).headers["etag"]
    wire.transport.clear()
    request = f"GET {PATH} HTTP/1.1\r\nHost: gateway\r\nIf-None-Match: {tag}\r\n\r\n"
    reply, body = Reply.parse(wire.send(request.encode()), "HEAD")
    assert (reply.status, reply.headers["etag"], body) == (304, tag, b"")
    assert wire.ask(PATH, headers=('If-None-Match: "another"',)).status == 200


def test_bodies_that_may_be_absent() -> None:
    """A pull needs no body; every other body has members that it needs."""
    operations = {
        f"{method} {path}": operation["requestBody"]["required"]
        for path, item in openapi.document()["paths"].items()
        for method, operation in item.items()
        if "requestBody" in operation
    }
    assert [name for name, is_required in operations.items() if not is_required] == [
        "post /api/pull/{system}/{type}/{image}/"
    ]
    assert len(operations) > 3


@pytest.mark.parametrize(
    ("request_line", "body", "problem"),
    [
        ("DELETE /api/upload/s/x", {"status": True, "new": 1}, "new"),
        ("DELETE /api/upload/s/x", {}, "status"),
        ("GET /api/autoexpire/s/", {"status": [1]}, "status[0]"),
        ("POST /api/upload/s/", {"status": True, "limit": -1}, "$"),
    ],
)
def test_answers_that_differ_from_the_description(
    request_line: str, body: Any, problem: str
) -> None:
    """A member too many or too few, or of another type, fails the tests that ask the site."""
    method, path = request_line.split()
    (text,) = problems_of(method, path, 200, "application/json", body)
    assert problem in text


def test_answers_of_another_media_type() -> None:
    """A media type that is not described fails the tests that ask the site."""
    assert problems_of("GET", "/livez", 200, "text/plain", None) == []
    assert problems_of("GET", "/livez", 200, "text/html", None) != []
    assert problems_of("GET", "/nowhere", 200, "application/json", {}) != []
