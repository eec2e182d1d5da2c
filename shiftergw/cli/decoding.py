"""Build frozen values of the program from JSON that a gateway has sent, and check all types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from shiftergw.cli.answers import InvalidAnswer
from shiftergw.model.names import is_count, is_time

T = TypeVar("T")

MOST_ITEMS = 1000
"""Items of a list or an object in a value, at most."""

LONGEST_TEXT = 1 << 16
"""Characters of a text in a value, at most."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


_SCALARS: Mapping[Any, Callable[[object], bool]] = {
    str: _is_text,
    bool: lambda value: isinstance(value, bool),
    int: is_count,
    float: is_time,
    NoneType: lambda value: value is None,
}
"""What is valid as a member of each type: an integer is a count, any other number a time."""


def decode(kind: type[T], value: Any) -> T:
    """Return an object of the dataclass `kind`; raise `InvalidAnswer` for a value of another form.

    Unknown members are ignored, since a later gateway may send more.
    """
    result: T = _decode(kind, value)
    return result


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return _decode_object(kind, value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return _decode_union(arguments, value)
    if origin is Literal:
        return _require(value, isinstance(value, str) and value in arguments)
    if origin is tuple:
        _require(value, isinstance(value, list) and len(value) <= MOST_ITEMS)
        return tuple(_decode(arguments[0], item) for item in value)
    if origin is not None:
        is_object = origin is Mapping and isinstance(value, dict)
        _require(value, is_object and len(value) <= MOST_ITEMS)
        return {_decode(arguments[0], k): _decode(arguments[1], v) for k, v in value.items()}
    return _require(value, _SCALARS[kind](value))


def _decode_union(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _decode(kind, value)
        except InvalidAnswer:
            continue
    raise InvalidAnswer


def _decode_object(kind: Any, value: Any) -> Any:
    _require(value, isinstance(value, dict))
    hints = get_type_hints(kind)
    members = {}
    for member in fields(kind):
        if member.name in value:
            members[member.name] = _decode(hints[member.name], value[member.name])
        else:
            has_default = member.default is not MISSING or member.default_factory is not MISSING
            _require(value, has_default)
    return kind(**members)


def _require(value: Any, condition: bool) -> Any:
    """Return the value; raise `InvalidAnswer` unless the condition holds."""
    if not condition:
        raise InvalidAnswer
    return value
