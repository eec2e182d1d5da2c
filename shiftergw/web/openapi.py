"""Describe the HTTP interface in OpenAPI 3.1.

The description is made of the table of routes, their descriptions, and the models of bodies and
answers. It depends on the version of the program alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from shiftergw import __version__
from shiftergw.web.answer_models import Error
from shiftergw.web.route_descriptions import (
    BYTES,
    DESCRIPTIONS,
    IMAGE,
    IMAGE_TYPE,
    JSON,
    PAGE_DESCRIPTIONS,
    SYSTEM,
    TEXT,
    WORKERS,
    Description,
    Parameter,
)
from shiftergw.web.routes import ROUTES, Names, Route

_SCHEMAS = "#/components/schemas/{model}"

_ABOUT = """\
Pulls images from container registries, and makes a squashfs file of each on the systems of a site.

HEAD works wherever GET only reads. Every path may lack its last slash. Answers are one line of
JSON; clients ignore members that they do not know. The error of every request has the same form.
"""

_TAGS = {
    "original": "Routes of the original gateway, as `shifterimg` requests them. Their form stays.",
    "further": "Routes that the original gateway does not have.",
}

_SCHEMES = {
    "munge": "A fresh munge credential, which counts once. Its payload is empty, or a JSON object"
    ' with logins of registries: `{"authorized_locations": {"LOCATION": "user:password"}}`.',
    "worker": "A digest of method, path, query and time, keyed with the `SecretKeyFile` of the"
    " site.",
}
"""What the header `authentication` may have."""

_PARTS = {"system": SYSTEM, "type": IMAGE_TYPE, "image": IMAGE}
"""The parameters of paths by their names; an id is another one for each route."""

_HEADERS = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}

_REQUEST_ID = {
    "description": "The id of the request in the log of the gateway: that which the request had, if"
    " it is well-formed, or a new one.",
    "schema": {"type": "string"},
}


class _Schemas(GenerateJsonSchema):
    """Generates schemas whose members have no titles and no default values."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        # A dataclass is rendered with all its members; a model says which of them may be absent.
        return field["type"] == "dataclass-field" or super().field_is_required(field, total)


def path_of(page: str, route: Route) -> str:
    """Return the path of a route, with the names of its parameters in braces."""
    names = {Names.SYSTEM: "", Names.IMAGE: "{type}/{image}/", Names.ID: "{id}/"}
    return f"/api/{page}/{{system}}/{names[route.names]}"


def described_routes() -> Iterator[tuple[str, str, Description]]:
    """Yield the path, the method and the description of each page and route, in their order."""
    for path, description in PAGE_DESCRIPTIONS.items():
        yield path, "GET", description
    for page, first_route in ROUTES.items():
        for route in (first_route, *first_route.siblings):
            path = path_of(page, route)
            yield path, route.method, DESCRIPTIONS[f"{route.method} {path}"]


@cache
def document() -> Mapping[str, Any]:
    """Return the description of the interface."""
    types = {"Error": Error}
    for path, method, description in described_routes():
        types[f"{method} {path}"] = description.answer
        if description.body not in {None, bytes}:
            types[f"{method} {path} body"] = description.body
    references, definitions = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in types.items()],
        ref_template=_SCHEMAS,
        schema_generator=_Schemas,
    )
    schemas = {name: schema for (name, _), schema in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for path, method, description in described_routes():
        operation = _operation(path, method, description, schemas)
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shiftergw",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "security": [{"munge": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                name: {
                    "type": "apiKey",
                    "in": "header",
                    "name": "authentication",
                    "description": text,
                }
                for name, text in _SCHEMES.items()
            },
            "headers": {"X-Request-Id": _REQUEST_ID},
            "responses": {"Error": _error(JSON), "PageError": _error(JSON, TEXT)},
            "schemas": definitions["$defs"],
        },
    }


def _operation(
    path: str, method: str, description: Description, schemas: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the operation object of a route."""
    is_page = path in PAGE_DESCRIPTIONS
    operation: dict[str, Any] = {
        "operationId": _operation_id(path, method),
        "summary": f"{description.summary}.",
        "description": f"For {description.callers}.",
        "tags": ["original" if description.is_original else "further"],
        "parameters": [
            *(_parameter(parameter, "path") for parameter in _parts_of(path, description)),
            *(_parameter(parameter, "query") for parameter in description.query),
        ],
        "responses": {
            "200": _answer(description, schemas[f"{method} {path}"]),
            "default": {"$ref": f"#/components/responses/{'PageError' if is_page else 'Error'}"},
        },
    }
    if description.body is bytes:
        operation["requestBody"] = {"required": True, "content": {BYTES: {}}}
    elif description.body is not None:
        content = {JSON: {"schema": schemas[f"{method} {path} body"]}}
        operation["requestBody"] = {"required": _needs_body(description), "content": content}
    if is_page:
        operation["security"] = []
    elif description.callers == WORKERS:
        operation["security"] = [{"worker": []}]
    return operation


def _needs_body(description: Description) -> bool:
    """Return whether the body of a route may not be absent, which is the same as null."""
    return NoneType not in get_args(description.body)


def _operation_id(path: str, method: str) -> str:
    """Return a name of a route for programs, such as `get_list` or `post_pull_image`."""
    page = path.split("/")[2] if path.startswith("/api/") else path[1:] or "root"
    end = path.rstrip("/").rpartition("/")[2].strip("{}")
    suffix = f"_{end}" if end in {"image", "id"} else ""
    return f"{method.lower()}_{page.replace('.', '_')}{suffix}"


def _parts_of(path: str, description: Description) -> Iterator[Parameter]:
    for name in re.findall(r"\{(\w+)\}", path):
        parameter = _PARTS.get(name, description.id)
        assert parameter is not None
        yield parameter


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": place,
        "description": parameter.description,
        "required": parameter.is_required,
        "schema": parameter.schema,
    }


def _answer(description: Description, schema: Mapping[str, Any]) -> dict[str, Any]:
    content = {} if description.media_type == BYTES else {"schema": schema}
    return {
        "description": f"{description.summary}.",
        "headers": _HEADERS,
        "content": {description.media_type: content},
    }


def _error(*media_types: str) -> dict[str, Any]:
    """Return the response object of errors, which are JSON or, for some pages, one word of text."""
    schemas = {JSON: {"$ref": _SCHEMAS.format(model="Error")}, TEXT: {"type": "string"}}
    return {
        "description": "The request was refused, or has failed.",
        "headers": _HEADERS,
        "content": {media_type: {"schema": schemas[media_type]} for media_type in media_types},
    }
