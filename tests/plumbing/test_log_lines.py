"""Lines of the log as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import printable
from shiftergw.plumbing.log_lines import LINE_LIMIT, LogLine, read_line, write_line

NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.text() | NUMBERS | st.dictionaries(st.text(), NUMBERS) | st.binary()


@given(st.text(), st.dictionaries(st.text() | st.sampled_from("abc"), VALUES))
def test_any_event(message: str, fields: dict[str, Any]) -> None:
    """Whatever an event contains, its line is one strict JSON object that the reader accepts."""
    line = write_line(0, "info", "shiftergw.test", message, fields)
    assert line.isascii()
    assert line.isprintable()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    document = json.loads(line, parse_constant=refuse)
    assert document["message"] == printable(message, 8000)
    parsed_line = read_line(line.encode())
    assert parsed_line is not None
    rest = {name: document[name] for name in document if name not in {"level", "message"}}
    assert parsed_line == LogLine("info", document["message"], rest)


def test_the_members() -> None:
    """Time, level, logger and message come first, then the fields in their order."""
    fields = {"request": "1a", "stages": {"PULLING": 1.5, "x": None}, "uid": 7, "a b": 1, "l": [1]}
    assert write_line(1.5, "warn", "a.b", "It broke.", fields) == (
        '{"time": "1970-01-01T00:00:01.500Z", "level": "warn", "logger": "a.b",'
        ' "message": "It broke.", "request": "1a", "stages": {"PULLING": 1.5}, "uid": 7}'
    )


def test_a_relayed_line_keeps_its_origin() -> None:
    """Time and logger of another process replace those of the relay; its level is an argument."""
    line = write_line(9, "info", "relay", "new", {"time": "then", "logger": "w", "level": "x"})
    assert json.loads(line) == {
        "time": "then", "level": "info", "logger": "w", "message": "new",
    }  # fmt: skip


@pytest.mark.parametrize("size", [3000, 10**6])
def test_long_lines(size: int) -> None:
    """A line is shorter than its limit, however long its texts are."""
    texts = {f"t{n}": "\U0001f600" * size for n in range(36)}
    line = write_line(0, "info", "a", "\U0001f600" * size, texts)
    assert len(line) < LINE_LIMIT
    smiles = "\U0001f600" * 38
    numbers = {f"{k:02}{smiles}": 1 for k in range(40)}
    objects = {f"o{n}": numbers for n in range(36)}
    assert len(write_line(0, "info", "a", "\U0001f600" * size, objects)) < LINE_LIMIT


@pytest.mark.parametrize(
    "line",
    [
        b"", b"info a: text", b"{", b"[1]", b'{"a": ' * 100_000,
        b'{"level": "info"}', b'{"level": "loud", "message": "x"}',
        b'{"level": [], "message": "x"}', b'{"level": "info", "message": 1}',
    ],
)  # fmt: skip
def test_other_lines(line: bytes) -> None:
    """Another line of a process, or of its children, is not taken for one."""
    assert read_line(line) is None
