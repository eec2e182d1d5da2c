"""The table of the queue: its rows for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiftergw.cli.queue_table import queue_table

MANUAL = Path(__file__).parents[2] / "docs" / "using.md"
NOW = 1_000_000.0
CAUSE = "docker.io has no image library/alpine:none."


def row_of(members: dict[str, Any]) -> list[str]:
    """Return the cells of a row."""
    header, line = queue_table([{"status": "PENDING", "image": "a:1", **members}], NOW).splitlines()
    assert header.split() == ["IMAGE", "STATE", "AGE", "USER", "PROGRESS"]
    return [cell.strip() for cell in line.split("  ") if cell]


@pytest.mark.parametrize(
    ("members", "cells"),
    [
        (
            {"since": NOW - 45, "user": "ann", "owner": 7, "queue_place": 3, "queue_length": 12},
            ["a:1", "waiting", "45 s", "ann", "Waiting for a worker (place 3 of 12)"],
        ),
        (
            {
                "type": "custom",
                "status": "PULLING",
                "since": NOW - 300,
                "activity": "Pulling layers",
                "status_message": "Pulling 812 of 1,430 MB",
                "stage": "fetch",
                "done": 812_000_000,
                "total": 1_430_000_000,
                "rate": 42_000_000,
                "time_left": 15.0,
            },
            [
                *("custom:a:1", "pulling", "5 min", "-"),
                "Pulling layers: 56 %, 812 MB of 1.4 GB, 42 MB/s, 15 s left",
            ],
        ),
        (
            {"status_message": "Waits until 13:46 for docker.io", "since": NOW + 5},
            ["a:1", "waiting", "1 s", "-", "Waits until 13:46 for docker.io"],
        ),
        (
            {"status": "FAILURE", "cause": "No such tag.", "since": NOW - 9000, "owner": 0},
            ["a:1", "failed", "2 h 30 min", "root", "No such tag."],
        ),
        (
            {"status": "EXPIRING", "status_message": "EXPIRING"},
            ["a:1", "removing", "-", "-", "Removing the image"],
        ),
        ({"status": "HASHING"}, ["a:1", "hashing", "-", "-", "HASHING"]),
        ({"user": "\x1b[2J"}, ["a:1", "waiting", "-", "\\x1b[2J", "Waiting for a worker"]),
    ],
)
def test_rows(members: dict[str, Any], cells: list[str]) -> None:
    """A row has the image, a word for the state, age, user, and how far it is or why it waits."""
    assert row_of(members) == cells


def test_the_manual_shows_the_table() -> None:
    """The example of the manual is what the program prints."""
    rows: list[dict[str, Any]] = [
        {
            "status": "PULLING",
            "image": "ubuntu:24.04",
            "activity": "Pulling layers",
            "since": NOW - 20,
            "user": "ann",
            "rate": 42_000_000,
            "time_left": 15.0,
            "done": 812_000_000,
            "total": 1_430_000_000,
        },
        {"status": "PENDING", "image": "app:1", "type": "custom", "since": NOW - 45, "user": "ann"},
        {"status": "FAILURE", "image": "alpine:none", "since": NOW - 9000, "cause": CAUSE},
    ]
    rows[1] |= {"queue_place": 3, "queue_length": 12}
    assert f"```\n{queue_table(rows, NOW)}```\n" in MANUAL.read_text()
