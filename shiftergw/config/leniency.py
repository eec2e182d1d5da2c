"""Read values that old configurations write in another JSON type, as the original gateway did.

The original compared and converted values as Python does, so its configurations have numbers and
booleans as text, text as numbers, and log levels in the words of Python's `logging`. Such a value
is converted to the type of its key, with a warning. A value without a meaning in that type stays
unchanged, and the rules of the key refuse it.
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
"""Levels of Python's `logging` that have another name here."""

_SYNONYMS: Mapping[str, Callable[[str], str]] = {
    "LogLevel": lambda word: _LEVELS.get(word.strip().lower(), word.strip().lower()),
    "remotetype": lambda word: {"dockerhub": "dockerv2"}.get(word.lower(), word.lower()),
}
"""Keys with a choice of words: a function that replaces a word of old configurations."""


def convert_section(
    model: type[Section], document: Mapping[str, Any], *path: object
) -> tuple[dict[str, Any], list[str]]:
    """Convert the values of a section, at `path` in the document, to the types of their keys.

    Returns the converted section, and a warning for each value that was changed or left out.
    """
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
            result[key], value_warnings = _convert_value(key, field, value, where)
            warnings += value_warnings
    return result, warnings


def _convert_value(
    key: str, field: FieldInfo, value: Any, where: tuple[object, ...]
) -> tuple[Any, list[str]]:
    """Convert the value of a key; a subsection, or a table of sections, with all its values."""
    kinds = _kinds(field)
    section = next((kind for kind in kinds if _is_section(kind)), None)
    if section is not None and isinstance(value, dict):
        if get_origin(field.annotation) is not dict:
            return convert_section(section, value, *where)
        parts = {
            name: (
                convert_section(section, part, *where, name)
                if isinstance(part, dict)
                else (part, [])
            )
            for name, part in value.items()
        }
        warnings = [warning for _, part_warnings in parts.values() for warning in part_warnings]
        return {name: part for name, (part, _) in parts.items()}, warnings
    if key in _SYNONYMS and isinstance(value, str):
        result: Any = _SYNONYMS[key](value)
    elif not field.repr or any(
        isinstance(rule, BeforeValidator) for rule in (*field.metadata, *kinds)
    ):
        # The key has its own function that reads all forms of its value, or the value may be a
        # secret, which must not be in a warning.
        result = value
    else:
        result = _convert_scalar(value, kinds)
    if type(result) is type(value) and result == value:
        return value, []
    return result, [f"{place(*where)}: {_format(value)} is read as {_format(result)}; write it so"]


def _kinds(field: FieldInfo) -> list[Any]:
    """Return the annotation of a field, and the types and metadata in it at every depth."""
    kinds: list[Any] = [field.annotation]
    for kind in kinds:
        kinds += get_args(kind)
    return kinds


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _convert_scalar(value: Any, kinds: Sequence[Any]) -> Any:
    """Convert a value to a type that its key accepts; return it unchanged if none fits."""
    if bool in kinds:
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        return _WORDS.get(word, value)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if int in kinds and isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if float in kinds and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    accepts_text = str in kinds and Path not in kinds
    if accepts_text and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _format(value: Any) -> str:
    """Return a value as its author would write it in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
