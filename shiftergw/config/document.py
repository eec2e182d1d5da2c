"""Parse the text of imagemanager.json, and list its problems.

A *path* is a place in the document as its author sees it: `Platforms.mycluster.local.imageDir`. A
problem or a warning is one line: the path, what is wrong, what is allowed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from shiftergw.config.syntax import parse_json
from shiftergw.config.values import Surroundings
from shiftergw.errors import ConfigurationError, printable


class Section(BaseModel):
    """An object of the document; the aliases of the fields are its keys, other keys are ignored."""

    model_config = ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    never_read: ClassVar[frozenset[str]] = frozenset()
    """Keys of samples and old configurations that have no effect."""

    @classmethod
    def validate_document(cls, document: Any, surroundings: Surroundings) -> Self:
        """Return the checked values; raise pydantic's `ValidationError` with all problems."""
        # pydantic's strict rules for JSON are the right ones: a list becomes a tuple, text a path.
        return cls.model_validate_json(json.dumps(document), context=surroundings)


class _Object(dict[str, Any]):
    """A JSON object, and the keys that it has more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.duplicates = sorted({key for key in keys if keys.count(key) > 1})


def parse(text: str) -> Any:
    """Return the document; raise `ConfigurationError` with line and column if it is not JSON."""
    return parse_json(text, object_pairs_hook=_Object)


def refusal(problems: Sequence[str]) -> ConfigurationError:
    """Return an error with all problems, one per line."""
    return ConfigurationError(
        "\n".join(["this configuration cannot be used; correct:", *problems]), remedy=""
    )


def place(*path: object) -> str:
    """Return the path of a place in the document."""
    return ".".join(printable(str(step)) for step in path) or "the document"


def objects_in(document: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and content of each object in a table, such as `Platforms`."""
    table = document.get(key)
    if isinstance(table, dict):
        yield from ((name, inner) for name, inner in table.items() if isinstance(inner, dict))


def duplicate_keys(value: Any, *path: object) -> Iterator[str]:
    """Yield a problem for every key that an object in a document has more than once."""
    if isinstance(value, _Object):
        yield from (f"{place(*path, key)}: appears more than once" for key in value.duplicates)
    steps = enumerate(value) if isinstance(value, list) else ()
    for step, inner in value.items() if isinstance(value, dict) else steps:
        yield from duplicate_keys(inner, *path, step)


DEEPEST = 20
"""Levels of objects and lists; the deepest known key is at the fifth."""

_LARGEST = 2**63 - 1
_HALF = "has half a character in it: \\ud800 to \\udfff come in pairs"


def unreadable(value: Any, *path: object) -> Iterator[str]:
    """Yield a problem for values that are valid JSON, but that no key allows."""
    if len(path) > DEEPEST:
        yield f"{place(*path[:3])}: is nested more than {DEEPEST} levels deep"
        return
    if isinstance(value, int) and abs(value) > _LARGEST:
        yield f"{place(*path)}: is too large: at most {_LARGEST}"
    if isinstance(value, str) and not _is_text(value):
        yield f"{place(*path)}: {_HALF}"
    steps = enumerate(value) if isinstance(value, list) else ()
    for step, inner in value.items() if isinstance(value, dict) else steps:
        if isinstance(step, str) and not _is_text(step):
            yield f"{place(*path, step)}: {_HALF}"
        else:
            yield from unreadable(inner, *path, step)


def _is_text(text: str) -> bool:
    """Return whether a text can be encoded; a text from JSON may have surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unknown(model: type[Section], value: Any, *path: object) -> Iterator[str]:
    """Yield a warning for every key that `model`, or a section in it, does not have."""
    if not isinstance(value, dict):
        return
    fields = {field.alias: field for field in model.model_fields.values() if field.alias}
    for key, inner in value.items():
        if key in fields:
            annotation = fields[key].annotation
            for section in filter(_is_section, (annotation, *get_args(annotation))):
                if get_origin(annotation) is dict and isinstance(inner, dict):
                    for name, part in inner.items():
                        yield from unknown(section, part, *path, key, name)
                elif isinstance(inner, list):
                    for number, part in enumerate(inner):
                        yield from unknown(section, part, *path, key, number)
                else:
                    yield from unknown(section, inner, *path, key)
        elif key not in model.never_read:
            yield f"{place(*path, key)}: unknown key, not used{_nearest(key, fields)}"


def _is_section(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, Section)


def _nearest(key: str, fields: Mapping[str, Any]) -> str:
    spellings = {name.lower(): name for name in fields}
    matches = difflib.get_close_matches(key.lower(), spellings, 1)
    return f'; did you mean "{spellings[matches[0]]}"?' if matches else ""


_WRONG = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "model_type": "must be an object",
    "path_type": "must be a path",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "value_error": "{error}",
}
"""The words for pydantic's types of errors."""


def problems_of(error: ValidationError) -> Iterator[str]:
    """Yield one line for each problem that pydantic reports."""
    for problem in error.errors(include_url=False):
        kind, context = problem["type"], problem.get("ctx", {})
        text = _WRONG[kind].format(**context) if kind in _WRONG else problem["msg"]
        may_quote = kind not in _ABSENT and problem["loc"][:1] not in _SECRET
        quote = _quote(problem["input"]) if may_quote else ""
        yield f"{place(*problem['loc'])}: {text}{quote}"


_SECRET = {("MongoDBURI",), ("BrokerURL",)}
"""Places that may hold passwords: their values are not quoted."""

_ABSENT = {"missing", "too_short", "string_too_short"}


def _quote(value: Any) -> str:
    if isinstance(value, dict):
        return " (it is an object)"
    if isinstance(value, list | tuple):
        return " (it is a list)"
    if isinstance(value, str) and "@" in value:  # perhaps a URL with a password
        return ""
    return f" (it is {printable(json.dumps(value, ensure_ascii=False), 60)})"
