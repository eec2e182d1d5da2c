"""The part of an image's configuration that its record stores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.errors import ImageTooLarge
from shiftergw.job.recordable import NAME_LIMIT, NAMES, recordable
from shiftergw.model.images import ImageConfig

LIMIT = 10_000
ROOM = LIMIT - len(json.dumps([[""], [], [], ""]))


def test_values_that_no_runtime_can_read_are_omitted() -> None:
    """Quotes in lists, line breaks and trailing backslashes are omitted; other values stay."""
    config = ImageConfig(
        env=("OK=1", "NL=a\nb", "BS=a\\"),
        entrypoint=("/bin/it's", "x"),
        cmd=("python", "-c", "print('1')"),
        workdir="/work",
    )
    config, omissions = recordable(config, LIMIT)
    assert (config.env, config.entrypoint, config.cmd, config.workdir) == (
        ("OK=1",),
        (),
        (),
        "/work",
    )
    assert omissions == ("ENTRY", "CMD", "ENV NL", "ENV BS")


@pytest.mark.parametrize("character", ["x", "\x01", "ü"])
def test_the_size_of_a_record_is_limited(character: str) -> None:
    """The size of a record is that of its JSON; the error names the limit and its key."""
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
    """Neither many members nor many empty texts evade the limit."""
    with pytest.raises(ImageTooLarge):
        recordable(ImageConfig(**members), LIMIT)


def test_labels_beyond_the_limit_are_omitted() -> None:
    """Labels beyond the limit are omitted, and the report names them, as no job needs labels."""
    labels = {"a": "short", "b": "x" * LIMIT, "c": "short", "d\n" * 99: "x" * LIMIT}
    config, omissions = recordable(ImageConfig(env=("A=1",), labels=labels), LIMIT)
    assert config.labels == {"a": "short", "c": "short"}
    assert omissions[0] == "LABEL b"
    assert omissions[1].startswith(r"LABEL d\x0ad\x0a")
    assert len(omissions[1]) == len("LABEL ") + NAME_LIMIT


def test_one_long_label_does_not_take_the_room_of_the_others() -> None:
    """The shortest labels are stored first, in the order of the image."""
    labels = {"long": "x" * (LIMIT - 500)} | {f"l{n:02}": "y" * 80 for n in range(50)}
    config, omissions = recordable(ImageConfig(labels=labels), LIMIT)
    assert list(config.labels) == list(labels)[1:]
    assert omissions == ("LABEL long",)


def test_the_names_of_omitted_labels_are_limited() -> None:
    """A report names at most twenty of a thousand long labels."""
    labels = {f"l{n:04}": "x" * LIMIT for n in range(1000)}
    config, omissions = recordable(ImageConfig(labels=labels), LIMIT)
    assert config.labels == {}
    assert len(omissions) == NAMES + 1
    assert omissions[-1] == f"{1000 - NAMES} more labels"


def test_the_names_of_omitted_settings_are_limited() -> None:
    """A report names at most twenty of ten thousand unusable variables."""
    env = tuple(f"V{n}=a\nb" for n in range(10_000))
    _, omissions = recordable(ImageConfig(env=env), LIMIT)
    assert len(omissions) == NAMES + 1
    assert omissions[-1] == f"{10_000 - NAMES} more settings"
