"""Values that are written as another JSON type than ours, as the original gateway let them be.

Python compares and converts loosely, so its configurations have numbers and booleans as text, text
as numbers, and log levels in the words of Python's `logging`. They are read as what they say, each
with a warning; what says nothing is left as it is, and refused by the rules of its key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from shiftergw.config.document import Section, place

_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?\s*", re.ASCII)

_LEVELS = {"warning": "warn", "fatal": "critical", "notset": "debug"}
"""Words of Python's `logging` for which we have another."""

_OLD_WORDS: Mapping[str, Callable[[str], str]] = {
    "LogLevel": lambda word: _LEVELS.get(word.strip().lower(), word.strip().lower()),
    "remotetype": lambda word: {"dockerhub": "dockerv2"}.get(word.lower(), word.lower()),
}
"""Keys with a choice of words, and what other words of old mean."""


def lenient(
    model: type[Section], document: Mapping[str, Any], *path: object
) -> tuple[dict[str, Any], list[str]]:
    """Return a section of the document with values of the right types, and a warning for each."""
    fields = {field.alias: field for field in model.model_fields.values() if field.alias}
    result: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in document.items():
        where = (*path, key)
        field = fields.get(key)
        if field is None:
            result[key] = value
        elif value is None and not field.is_required() and NoneType not in _kinds(field):
            warnings.append(f"{place(*where)}: is null, so the default counts; remove it")
        else:
            result[key], more = _value(key, field, value, where)
            warnings += more
    return result, warnings


def _value(
    key: str, field: FieldInfo, value: Any, where: tuple[object, ...]
) -> tuple[Any, list[str]]:
    kinds = _kinds(field)
    section = next((kind for kind in kinds if _is_section(kind)), None)
    if section is not None and isinstance(value, dict):
        if get_origin(field.annotation) is not dict:
            return lenient(section, value, *where)
        parts = {
            name: lenient(section, part, *where, name) if isinstance(part, dict) else (part, [])
            for name, part in value.items()
        }
        warnings = [warning for _, more in parts.values() for warning in more]
        return {name: part for name, (part, _) in parts.items()}, warnings
    if key in _OLD_WORDS and isinstance(value, str):
        read: Any = _OLD_WORDS[key](value)
    elif not field.repr or _has_rules(field, kinds):
        read = value  # it has rules of its own, or may be a secret, which no warning may show
    else:
        read = _read(value, kinds)
    if type(read) is type(value) and read == value:
        return value, []
    return read, [f"{place(*where)}: {_shown(value)} is read as {_shown(read)}; write it so"]


def _kinds(field: FieldInfo) -> list[Any]:
    """Return all that the annotation of a field is made of."""
    kinds: list[Any] = [field.annotation]
    for kind in kinds:
        kinds += get_args(kind)
    return kinds


def _has_rules(field: FieldInfo, kinds: Sequence[Any]) -> bool:
    """Return whether a field reads its value by a function of its own."""
    return any(isinstance(rule, BeforeValidator) for rule in (*field.metadata, *kinds))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _read(value: Any, kinds: Sequence[Any]) -> Any:
    """Return a value as one of the types that its key takes, unchanged if it says none of them."""
    if bool in kinds:
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        return _WORDS.get(word, value)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if int in kinds and isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if float in kinds and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    takes_text = str in kinds and Path not in kinds
    if takes_text and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
