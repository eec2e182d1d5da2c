"""Say in words what is wrong with a text that is not JSON, and where.

Python's parser reports where it stopped. The mistake is often before that place: a comma after the
last member is only noticed at the closing bracket. No text of the file is repeated: it may be a
password.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from shiftergw.errors import ConfigurationError

_QUOTES = "keys and texts stand in double quotes"
_MESSAGES = {
    "Extra data": "something follows after the end of the document",
    "Expecting ':' delimiter": "a colon is missing between a key and its value",
    "Unterminated string starting at": "the text that begins here has no closing quote",
    "Invalid control character at": "a line ends within a text: a closing quote is missing, or"
    " write \\n",
    "Invalid \\escape": "a backslash in a text is written as \\\\",
    "Invalid \\uXXXX escape": "\\u needs four hexadecimal digits; a backslash is written as \\\\",
}
_WORD = re.compile(r"[A-Za-z_]\w*")
_LITERALS = {"true": "true", "false": "false", "none": "null", "null": "null"}
_LONGEST_NUMBER = 4300
"""Digits that Python reads (`sys.set_int_max_str_digits`)."""


class Mistake(NamedTuple):
    """What is wrong, at a position in the text."""

    position: int
    what: str


def parse_json(text: str, **options: Any) -> Any:
    """Return the document; raise `ConfigurationError` with line, column and cause otherwise."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        mistake = explain(text, error)
    except RecursionError:
        mistake = Mistake(0, "the document is nested too deeply")
    except ValueError:
        number = re.search(rf"\d{{{_LONGEST_NUMBER + 1}}}", text)
        what = f"a number has more than {_LONGEST_NUMBER} digits"
        mistake = Mistake(number.start() if number else 0, what)
    line = text.count("\n", 0, mistake.position) + 1
    column = mistake.position - text.rfind("\n", 0, mistake.position)
    raise ConfigurationError(f"line {line}, column {column}: this is not JSON: {mistake.what}.")


def explain(text: str, error: json.JSONDecodeError) -> Mistake:
    """Return where the mistake is, and what it is."""
    message = error.msg.removesuffix(": ")
    rest = text[error.pos :].lstrip()
    index = len(text) - len(rest)
    before = text[:index].rstrip()
    end = len(before)
    # Python 3.13 stops at a comma before a closing bracket, older versions behind it.
    comma = end - 1 if before.endswith(",") else index
    bracket = text[comma + 1 :].lstrip()[:1]
    if text[comma : comma + 1] == "," and bracket in {"}", "]"}:
        return Mistake(comma, f"remove the comma before the {bracket}")
    if message in _MESSAGES:
        return Mistake(error.pos, _MESSAGES[message])
    if not rest:
        what = "the document ends too early: a closing } or ] is missing" if end else "it is empty"
        return Mistake(max(end - 1, 0), what)
    if rest.startswith(("//", "/*", "#")):
        return Mistake(index, "JSON has no comments: remove this one")
    if message == "Expecting ',' delimiter":
        return Mistake(max(end - 1, 0), "a comma, or a closing bracket, is missing after this")
    return Mistake(index, _about_a_value(rest, message))


def _about_a_value(rest: str, message: str) -> str:
    """Return what is wrong where a key or a value should begin."""
    word = _WORD.match(rest)
    if rest[0] in "'\u201c\u201d\u2018\u2019`":
        return _QUOTES
    if word is not None and message == "Expecting value":
        literal = _LITERALS.get(word[0].lower())
        return f"write {literal}, in lower case" if literal else _QUOTES
    if word is not None:
        return _QUOTES
    return "a value is missing" if message == "Expecting value" else "a key in quotes is missing"
