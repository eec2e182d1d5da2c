"""Compare present values with recorded values, and make values comparable."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).with_name("data")

WRITE = "SHIFTERGW_GOLDEN"
"""The environment variable whose value `write` makes `check` write the records again."""


def check(name: str, value: Any) -> None:
    """Fail unless `value` equals `data/NAME.json`, also in the order of members."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    file = DATA / f"{name}.json"
    if os.environ.get(WRITE) == "write":
        DATA.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    record = file.read_text(encoding="utf-8")
    if text != record:
        lines = difflib.unified_diff(
            record.splitlines(), text.splitlines(), "recorded", "present", lineterm="", n=4
        )
        message = (
            f"tests/golden/data/{name}.json records something else. Others depend on it: an old"
            " name goes on working beside a new one. `python -m tests.golden` writes it anew."
        )
        pytest.fail("\n".join([message, *lines]), pytrace=False)


def load(name: str) -> Any:
    """Return the value in `data/NAME.json`."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


_HEX = re.compile(r"[0-9a-f]{64,128}|[0-9a-f]{32}|[0-9a-f]{24}|[0-9a-f]{16}|[0-9a-f]{12}")


_TEMPORARY = re.compile(r"((?:^|/)\.[^/]+)\.[a-z0-9_]{8}$")
_PART = re.compile(r"(?<=\.)[0-9a-f]{8}(?=\.part\b)")
_MACHINE = re.compile(r"(?<=/slots/)[^/]+(?=/)")


def plain_name(path: str) -> str:
    """Return a path with placeholders for the parts that differ in each run.

    `<N>` stands for a run of N hexadecimal digits (12 at least), `<random>` for what `tempfile`
    appends to a hidden name, and for the mark of an incomplete converted file, `<machine>` for the
    machine that has the slots.
    """
    path = _PART.sub("<random>", _MACHINE.sub("<machine>", path))
    return _TEMPORARY.sub(r"\1.<random>", _HEX.sub(lambda match: f"<{len(match[0])}>", path))


def mask(value: Any, masks: Mapping[str, str], name: str = "") -> Any:
    """Return a value in which members of the names in `masks` are replaced.

    A mask ends in the type of the value that it replaces, so that the type is recorded, too. A
    member that is null stays null.
    """
    if name in masks and value is not None:
        return f"<{masks[name]}: {type(value).__name__}>"
    if isinstance(value, Mapping):
        return {key: mask(inner, masks, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask(inner, masks, name) for inner in value]
    return value
