"""Make the table of routes in docs/http-api.md from the description of the interface.

    python -m tests.api_table       write the table anew

`tests/test_documents.py` fails while the page has another table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shiftergw.web import openapi

PAGE = Path(__file__).parent.parent / "docs" / "http-api.md"

HEAD = "| path | method | who | what | answer |\n|---|---|---|---|---|\n"
_TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)*")


def table() -> str:
    """Return the table, one row for each route."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows())


def in_document(text: str) -> str:
    """Return a page with the present table in the place of its table."""
    return _TABLE.sub(lambda _: table(), text)


def _rows() -> Iterator[tuple[str, ...]]:
    for path, method, description in openapi.described_routes():
        query = "&".join(f"{p.name}={p.name[0].upper()}" for p in description.query)
        place = re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), path)
        yield (
            f"`{place}{'?' if query else ''}{query}`",
            method,
            description.callers,
            description.summary,
            _answer(path, method),
        )


def _answer(path: str, method: str) -> str:
    """Return a sketch of an answer: its JSON with names of schemas, or its media type."""
    ((media_type, content),) = openapi.document()["paths"][path][method.lower()]["responses"][
        "200"
    ]["content"].items()
    if media_type != "application/json":
        return f"`{media_type}`"
    schema = content["schema"]
    return " or ".join(f"`{_sketch(choice)}`" for choice in schema.get("anyOf", [schema]))


def _sketch(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"[{_sketch(schema['items'])}, …]"
    if "const" in schema:
        return str(schema["const"]).lower()
    name = schema.get("$ref", "").rpartition("/")[2]
    definition = openapi.document()["components"]["schemas"].get(name, {})
    members = definition.get("properties", {})
    if len(members) != 1:
        return name or str(schema.get("type", "object"))
    ((member, inner),) = members.items()
    return f'{{"{member}": {_sketch(inner)}}}'


if __name__ == "__main__":
    PAGE.write_text(in_document(PAGE.read_text()))
