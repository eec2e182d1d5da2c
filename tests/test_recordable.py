"""What records keep of an image's configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.errors import ImageTooLarge
from shiftergw.image import ImageConfig
from shiftergw.recordable import NAMES, recordable

LIMIT = 10_000
ROOM = LIMIT - len(json.dumps([[""], [], [], ""]))


def test_what_no_runtime_can_be_told_is_left_out_and_named() -> None:
    """Quotes in lists, line breaks and trailing backslashes; all else stays as it is."""
    config = ImageConfig(
        env=("OK=1", "NL=a\nb", "BS=a\\"),
        entrypoint=("/bin/it's", "x"),
        cmd=("python", "-c", "print('1')"),
        workdir="/work",
    )
    kept, omitted = recordable(config, LIMIT)
    assert (kept.env, kept.entrypoint, kept.cmd, kept.workdir) == (("OK=1",), (), (), "/work")
    assert omitted == ("ENTRY", "CMD", "ENV NL", "ENV BS")


@pytest.mark.parametrize("character", ["x", "\x01", "ü"])
def test_what_a_record_holds_is_bounded(character: str) -> None:
    """Counted as the JSON that answers hold; the error names the limit and its key."""
    fits = ROOM // len(json.dumps(character).strip('"'))
    recordable(ImageConfig(env=(character * fits,)), LIMIT)
    with pytest.raises(ImageTooLarge, match=r"in its record, which may have 10 kB") as caught:
        recordable(ImageConfig(env=(character * (fits + 1),)), LIMIT)
    assert "`MaxRecordSize`" in caught.value.remedy


@pytest.mark.parametrize(
    "members",
    [
        {"env": ("",) * LIMIT},
        {"entrypoint": ("x" * LIMIT,)},
        {"cmd": ("x" * LIMIT,)},
        {"workdir": "/" + "x" * LIMIT},
        {"env": ("x" * (LIMIT // 3),), "cmd": ("y" * (LIMIT // 3),), "workdir": "z" * (LIMIT // 3)},
    ],
)
def test_everything_counts(members: dict[str, Any]) -> None:
    """Neither many members nor many empty texts are a way around the limit."""
    with pytest.raises(ImageTooLarge):
        recordable(ImageConfig(**members), LIMIT)


def test_labels_beyond_the_limit_are_left_out() -> None:
    """No job needs them; the report says how many are not there."""
    labels = {"a": "short", "b": "x" * LIMIT, "c": "short"}
    kept, omitted = recordable(ImageConfig(env=("A=1",), labels=labels), LIMIT)
    assert kept.labels == {"a": "short"}
    assert omitted == ("2 labels, which are too long",)


def test_the_names_of_what_is_left_out_are_bounded_too() -> None:
    """Ten thousand variables that cannot be told are no ten thousand lines of a report."""
    env = tuple(f"V{n}=a\nb" for n in range(10_000))
    _, omitted = recordable(ImageConfig(env=env), LIMIT)
    assert len(omitted) == NAMES + 1
    assert omitted[-1] == f"{10_000 - NAMES} more settings"
