"""The golden tests notice differences, and every recorded file is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.golden import records

DIRECTORY = Path(__file__).parent


def test_a_difference_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another name, type or order fails the test, and nothing is written."""
    monkeypatch.setattr(records, "DATA", tmp_path)
    monkeypatch.delenv(records.WRITE, raising=False)
    (tmp_path / "x.json").write_text('{\n "a": 1,\n "b": 2.0\n}\n')
    records.check("x", {"a": 1, "b": 2.0})
    for value in ({"a": 1, "c": 2.0}, {"a": 1, "b": 2}, {"b": 2.0, "a": 1}, {"a": 1}):
        with pytest.raises(pytest.fail.Exception, match="records something else"):
            records.check("x", value)
    with pytest.raises(FileNotFoundError):
        records.check("y", {})


def test_masks() -> None:
    """A mask shows the type of the value it replaces; it does not add an absent member."""
    value = {"time": 1.5, "rows": [{"time": 1}, {"time": None}]}
    assert records.mask(value, {"time": "when"}) == {
        "time": "<when: float>",
        "rows": [{"time": "<when: int>"}, {"time": None}],
    }


def test_each_record_is_used() -> None:
    """Every file of `data/` is named by a test."""
    sources = "".join(path.read_text(encoding="utf-8") for path in DIRECTORY.glob("test_*.py"))
    names = re.findall(r'check\(\s*f?"([^"]+)"', sources)
    patterns = [re.compile(re.sub(r"\{[^}]*\}", "[0-9.]+", name)) for name in names]
    files = [path.stem for path in records.DATA.glob("*.json")]
    assert [
        name for name in files if not any(pattern.fullmatch(name) for pattern in patterns)
    ] == []


def test_imports() -> None:
    """Only two modules import the program."""
    importing = {
        path.name
        for path in DIRECTORY.rglob("*.py")
        if re.search(r"^\s*(?:from|import) shiftergw\b", path.read_text("utf-8"), re.MULTILINE)
    }
    assert importing == {"program.py", "options.py"}
