"""Read YAML that consists of nested mappings of texts, as files of registries.d are written.

The rest of YAML (lists, anchors, tags, blocks of text) is refused with its line: a file that is
misread could hide signatures. JSON, which is YAML too, is read as JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shiftergw.errors import printable

Table = dict[str, Any]
"""Keys with texts or further mappings; a key without a value has `""`."""

_SPECIAL = frozenset("&*!|>%@`{}[],?#")
"""Characters with a meaning at the begin of a plain scalar (YAML 1.2, section 5.3)."""

_QUOTATION = re.compile(r"""("(?:[^"\\]|\\["\\/])*"|'(?:[^']|'')*')[ \t]*(.*)""")
_KEY_END = re.compile(r":(?:[ \t]+|$)")
_COMMENT = re.compile(r"(?:^|[ \t])#.*$")
_DEPTH_LIMIT = 8


def parse_mappings(text: str) -> Table:
    """Return the mapping of a document; raise `ValueError` with the line for anything else."""
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text, object_pairs_hook=_unique)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(document, dict):
            raise ValueError("it is not an object")
        return document
    return _Reader().read(text)


def _unique(pairs: list[tuple[str, Any]]) -> Table:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is repeated")
    return mapping


class _Reader:
    """Reads a document line by line; `_levels` are the open mappings with their indentations."""

    def __init__(self) -> None:
        self._root: Table = {}
        self._levels: list[tuple[int, Table]] = [(0, self._root)]
        self._open_key: str | None = None
        """The key without a value in the last line; a mapping may follow it."""

    def read(self, text: str) -> Table:
        """Return the mapping of a text."""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self._read_line(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        return self._root

    def _read_line(self, line: str) -> None:
        content = line.strip()
        if not content or content.startswith("#"):
            return
        if line.rstrip() == "---" and self._levels == [(0, {})] and self._open_key is None:
            return
        indentation = len(line) - len(line.lstrip(" "))
        if line[indentation] == "\t":
            raise ValueError("it is indented with a tab")
        mapping = self._mapping_at(indentation)
        key, value = _split(content)
        if key in mapping:
            raise ValueError(f"the key {printable(key)!r} is repeated")
        mapping[key] = value
        self._open_key = key if value == "" else None

    def _mapping_at(self, indentation: int) -> Table:
        """Return the mapping to which a line of this indentation belongs."""
        last_indentation, last_mapping = self._levels[-1]
        if indentation > last_indentation:
            if self._open_key is None or len(self._levels) == _DEPTH_LIMIT:
                raise ValueError("its indentation is wrong")
            inner: Table = {}
            last_mapping[self._open_key] = inner
            self._levels.append((indentation, inner))
            return inner
        while indentation < self._levels[-1][0]:
            self._levels.pop()
        if indentation != self._levels[-1][0]:
            raise ValueError("its indentation is wrong")
        return self._levels[-1][1]


def _split(line: str) -> tuple[str, Any]:
    """Return key and value of a line such as `key: value`."""
    quotation = _QUOTATION.fullmatch(line)
    if quotation is not None:
        key, rest = _unquote(quotation[1]), quotation[2]
        end = _KEY_END.match(rest)
        if end is None:
            raise ValueError("it is not `key: value`")
        return key, _value(rest[end.end() :])
    end = _KEY_END.search(line)
    if end is None or line[0] in _SPECIAL or line.startswith("- ") or not line[: end.start()]:
        raise ValueError("it is not `key: value`")
    key = line[: end.start()].rstrip()
    if _COMMENT.search(key):
        raise ValueError("it is not `key: value`")
    return key, _value(line[end.end() :])


def _value(text: str) -> Any:
    """Return a scalar as text; `{}` is an empty mapping."""
    quotation = _QUOTATION.fullmatch(text)
    if quotation is not None:
        if quotation[2] and not quotation[2].startswith("#"):
            raise ValueError("there is text behind a quoted one")
        return _unquote(quotation[1])
    text = _COMMENT.sub("", text).strip()
    if text == "{}":
        return {}
    if text and (text[0] in _SPECIAL or text[0] in "\"'" or text.startswith("- ") or ": " in text):
        raise ValueError("its value is not a plain text")
    return text


def _unquote(text: str) -> str:
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    return re.sub(r"\\(.)", r"\1", text[1:-1])
