"""Parse JSON, and explain errors of syntax with their place in the text.

Python's parser reports the position where it stopped. The mistake is often before this position:
the parser notices a comma after the last member only at the closing bracket. The explanations do
not quote the text, since it may contain a password.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from shiftergw.errors import ConfigurationError

_QUOTES = "keys and texts must be in double quotes"
_MESSAGES = {
    "Extra data": "something follows after the end of the document",
    "Expecting ':' delimiter": "a colon is missing between a key and its value",
    "Unterminated string starting at": "the text that begins here has no closing quote",
    "Invalid control character at": "a line ends within a text: a closing quote is missing, or"
    " write \\n",
    "Invalid \\escape": "a backslash in a text is written as \\\\",
    "Invalid \\uXXXX escape": "\\u needs four hexadecimal digits; a backslash is written as \\\\",
}
"""Explanations of errors of Python's parser, by its messages."""
_WORD = re.compile(r"[A-Za-z_]\w*")
_LITERALS = {"true": "true", "false": "false", "none": "null", "null": "null"}
_LONGEST_NUMBER = 4300
"""Digits of the longest integer that Python parses (`sys.set_int_max_str_digits`)."""


class Mistake(NamedTuple):
    """An error of syntax: its position in the text, and an explanation."""

    position: int
    explanation: str


def parse_json(text: str, **options: Any) -> Any:
    """Parse a text with `json.loads` and these options.

    Raises `ConfigurationError` with line, column and explanation if the text is not JSON.
    """
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        mistake = _find_mistake(text, error)
    except RecursionError:
        mistake = Mistake(0, "the document is nested too deeply")
    except ValueError:
        number = re.search(rf"\d{{{_LONGEST_NUMBER + 1}}}", text)
        explanation = f"a number has more than {_LONGEST_NUMBER} digits"
        mistake = Mistake(number.start() if number else 0, explanation)
    line = text.count("\n", 0, mistake.position) + 1
    column = mistake.position - text.rfind("\n", 0, mistake.position)
    raise ConfigurationError(
        f"line {line}, column {column}: this is not JSON: {mistake.explanation}."
    )


def _find_mistake(text: str, error: json.JSONDecodeError) -> Mistake:
    """Return the probable mistake behind an error of Python's parser."""
    message = error.msg.removesuffix(": ")
    rest = text[error.pos :].lstrip()
    index = len(text) - len(rest)
    before = text[:index].rstrip()
    end = len(before)
    # Python 3.13 stops at a comma before a closing bracket; older versions stop after it.
    comma = end - 1 if before.endswith(",") else index
    bracket = text[comma + 1 :].lstrip()[:1]
    if text[comma : comma + 1] == "," and bracket in {"}", "]"}:
        return Mistake(comma, f"remove the comma before the {bracket}")
    if message in _MESSAGES:
        return Mistake(error.pos, _MESSAGES[message])
    if not rest:
        early_end = "the document ends too early: a closing } or ] is missing"
        return Mistake(max(end - 1, 0), early_end if end else "it is empty")
    if rest.startswith(("//", "/*", "#")):
        return Mistake(index, "JSON has no comments: remove this one")
    if message == "Expecting ',' delimiter":
        return Mistake(max(end - 1, 0), "a comma, or a closing bracket, is missing after this")
    return Mistake(index, _explain_value(rest, message))


def _explain_value(rest: str, message: str) -> str:
    """Explain why `rest` does not begin with a key or a value."""
    word = _WORD.match(rest)
    if rest[0] in "'\u201c\u201d\u2018\u2019`":
        return _QUOTES
    if word is not None and message == "Expecting value":
        literal = _LITERALS.get(word[0].lower())
        return f"write {literal}, in lower case" if literal else _QUOTES
    if word is not None:
        return _QUOTES
    return "a value is missing" if message == "Expecting value" else "a key in quotes is missing"
