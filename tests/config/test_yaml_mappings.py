"""Tests of the reader of YAML with nested mappings."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.config.yaml_mappings import parse_mappings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# nothing\n\n   # more\n", {}),
        ("---\na: b\n", {"a": "b"}),
        ("a: b # comment\nc: 'd # e' # f\n", {"a": "b", "c": "d # e"}),
        (
            'docker:\n    reg.example.org:5000/n:\n        lookaside: "https://x:8080/y"\n',
            {"docker": {"reg.example.org:5000/n": {"lookaside": "https://x:8080/y"}}},
        ),
        (
            "docker:\n a:\n  x: 1\n b:\n  x: 2\nother: 3\n",
            {"docker": {"a": {"x": "1"}, "b": {"x": "2"}}, "other": "3"},
        ),
        ("'a b': c\n\"d: e\": f\n", {"a b": "c", "d: e": "f"}),
        ("a: 'it''s'\nb: \"say \\\"x\\\"\"\n", {"a": "it's", "b": 'say "x"'}),
        ("a:\nb: x\n", {"a": "", "b": "x"}),
        ("a: {}\n", {"a": {}}),
        ("a: x#y\n", {"a": "x#y"}),
        ('{"a": {"b": "c"}}', {"a": {"b": "c"}}),
    ],
)
def test_mappings(text: str, expected: dict[str, Any]) -> None:
    """Nested mappings of texts are read; JSON is, too."""
    assert parse_mappings(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b\n  c: d\n", "line 2: its indentation"),
        ("a:\n    b: c\n  d: e\n", "line 3: its indentation"),
        ("  a:\n b: c\n", "line 1: its indentation"),
        ("a:\n\tb: c\n", "line 2: it is indented with a tab"),
        ("a: b\na: c\n", "line 2: the key 'a' is repeated"),
        ("a:\n b: c\n b: d\n", "line 3: the key 'b' is repeated"),
        ("a\n", "line 1: it is not `key: value`"),
        ("a:b\n", "line 1: it is not `key: value`"),
        (": b\n", "line 1: it is not `key: value`"),
        ("- a: b\n", "line 1: it is not `key: value`"),
        ("a: [b]\n", "line 1: its value"),
        ("a: {b: c}\n", "line 1: its value"),
        ("a: &x b\n", "line 1: its value"),
        ("a: *x\n", "line 1: its value"),
        ("a: !!str b\n", "line 1: its value"),
        ("a: |\n  b\n", "line 1: its value"),
        ("a: b: c\n", "line 1: its value"),
        ("a: 'b' c\n", "line 1: there is text behind"),
        ("a: 'b\n", "line 1: its value"),
        ("&x a: b\n", "line 1: it is not"),
        ("? a\n", "line 1: it is not"),
        ("a: b\n---\nc: d\n", "line 2: it is not"),
        ("".join(f"{' ' * n}a:\n" for n in range(20)), "its indentation"),
        ('{"a": 1, "a": 2}', "repeated"),
        ("{" + '"a":{' * 100_000, "nested too deeply"),
        ('{"a": ', "Expecting"),
    ],
)
def test_the_rest_of_yaml_is_refused(text: str, problem: str) -> None:
    """Forms of YAML that could be misread are refused, with the number of the line."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_mappings(text)
    assert problem in str(caught.value)
