"""Find words in docstrings and comments that make a sentence hard to read."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

RIDDLES = re.compile(
    r"\b(?:whoever|whomever|whosever|(?:by|for|of|to|with) whom|so (?:many|much)|he|him|his)\b",
    re.IGNORECASE,
)
"""Pronouns without a noun that they stand for, and numbers without a name.

A sentence with the noun (user, process, client), or with the parameter's name, is plain.
"""


def riddles(sources: Mapping[str, str]) -> list[str]:
    """Return the place, line and word of each riddle in docstrings and comments."""
    return [
        f"{place}:{number} {match[0]}"
        for place, source in sources.items()
        if RIDDLES.search(source) is not None
        for number, line in sorted(_sentences(source))
        for match in RIDDLES.finditer(line)
    ]


def _sentences(source: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of docstrings and comments."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                for number in range(text.lineno, (text.end_lineno or text.lineno) + 1):
                    yield number, lines[number - 1]
            case _:
                pass
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
