"""The lines about the progress of work, at each width, without a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shiftergw.cli.progress_lines import labels_of, terminal_lines
from shiftergw.cli.progress_state import WorkState, layers_of, plain_line, state_of

MANUAL = Path(__file__).parents[2] / "docs" / "using.md"

RUNNING = WorkState("Pulling layers", 812_000_000, 1_430_000_000, 42_000_000, 15.0, seconds=20)
COMPOSING = replace(RUNNING, text="Putting the image together")
WAITING = WorkState("Waiting for a worker (place 3 of 12)", seconds=40)
COMPLETE = WorkState("Done", is_complete=True, seconds=47)
FAILURE = WorkState("Failed", seconds=3)
LAYERS = {
    "layers_in_flight": [
        {"digest": "9c27e219663c", "done": 30_000_000, "total": 31_000_000},
        {"digest": "3f4a9c1b2d5e", "done": 212_000_000, "total": 700_000_000},
    ]
}


def line(state: WorkState, width: int) -> str:
    """Return the line of work that is alone."""
    (text,) = terminal_lines([("", state)], width)
    return text


def test_columns_are_dropped_where_lines_are_narrow() -> None:
    """Bytes go first, then the rate, the bar and the time left; text and percent stay."""
    assert line(COMPOSING, 120) == (
        "Putting the image together  [================>             ]   56 %"
        "        812 MB/1.4 GB      42 MB/s     15 s left"
    )
    assert line(COMPOSING, 80) == (
        "Putting the image together  [========>       ]   56 %      42 MB/s     15 s left"
    )
    assert line(COMPOSING, 60) == "Putting the image together   56 %     15 s left"
    assert line(COMPOSING, 40) == "Putting the image..   56 %     15 s left"
    assert line(COMPOSING, 30) == "Putting the image tog..   56 %"
    assert line(COMPOSING, 10) == "Putting .."


@pytest.mark.parametrize("width", range(1, 150))
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    """Whatever the width, no line is wrapped, also with wide characters."""
    wide_state = WorkState("層" * 30, 5, 10, None, 100_000.0)
    works = [("one", RUNNING), ("系統" * 20, wide_state), ("three", WAITING), ("four", COMPLETE)]
    for text in terminal_lines(works, width):
        cells = sum(2 if ord(character) > 0x2E80 else 1 for character in text)
        assert cells <= max(width, 8 + 2)


def test_lines_stand_below_each_other() -> None:
    """Labels, bars and numbers of several rows begin in the same column."""
    works = [("one", RUNNING), ("elsewhere", COMPLETE), ("x", FAILURE)]
    first, second, third = terminal_lines(works, 80)
    assert first.index("[") == second.index("[")
    assert first.index("%") == second.index("%")
    assert third == "x          Failed  3 s"


def test_a_finished_bar_is_full() -> None:
    """Work that has ended well has a full bar and its time; nothing is left of rates."""
    text = line(COMPLETE, 80)
    assert text.startswith("Done  [==============================]  100 %")
    assert text.endswith(" 47 s")
    assert "MB" not in text


def test_work_without_a_total() -> None:
    """The text has all of the line, and the numbers what it leaves of it."""
    assert line(WAITING, 80) == "Waiting for a worker (place 3 of 12)  40 s"
    assert line(WAITING, 40) == "Waiting for a worker (place 3 of 12)"
    assert line(WAITING, 20) == "Waiting for a work.."
    copy_state = WorkState("Copying standard input", 5_000_000)
    assert line(copy_state, 80) == "Copying standard input  5 MB"


def test_layers_of_a_pull() -> None:
    """Layers stand below their pull, with bars in its column; bytes have the place of the rate."""
    pull, *layers = [RUNNING, *layers_of(LAYERS)]
    works = [("", pull), *(("", layer) for layer in layers)]
    assert terminal_lines(works, 80) == [
        "Pulling layers  [===============>            ]   56 %      42 MB/s     15 s left",
        "  9c27e219663c  [==========================> ]   96 %                30 MB/31 MB",
        "  3f4a9c1b2d5e  [========>                   ]   30 %              212 MB/700 MB",
    ]
    assert terminal_lines(works, 40) == [
        "Pulling layers   56 %     15 s left",
        "  9c27e219663c   96 %   30 MB/31 MB",
        "  3f4a9c1b2d5e   30 %",
    ]
    assert terminal_lines(works, 120)[2].endswith("  30 %        212 MB/700 MB")


def test_unusual_numbers() -> None:
    """More bytes than the total are a full bar, and a long time has no room for a word."""
    assert "100 %" in line(WorkState("x", 7, 5), 80)
    assert line(replace(RUNNING, time_left=45_000.0), 80).endswith("  12 h 30 min")
    assert line(replace(RUNNING, time_left=1e10), 80).endswith("42 MB/s")


def test_lines_without_a_terminal() -> None:
    """A line has all the numbers that are known, in words."""
    assert plain_line(RUNNING) == "Pulling layers: 56 %, 812 MB of 1.4 GB, 42 MB/s, 15 s left"
    assert plain_line(WAITING) == "Waiting for a worker (place 3 of 12): for 40 s"
    assert plain_line(WorkState("Copying", 5_000_000)) == "Copying: 5 MB"
    assert plain_line(WorkState("Getting manifest")) == "Getting manifest"


@pytest.mark.parametrize(
    ("record", "state"),
    [
        ({"status": "INIT"}, WorkState("Requesting the image")),
        ({"status": "MISSING", "status_message": "MISSING"}, WorkState("Requesting the image")),
        ({"status": "PULLING", "status_message": "PULLING"}, WorkState("Downloading the image")),
        (
            {"status": "PENDING", "activity": "", "queue_place": 3, "queue_length": 1200},
            WorkState("Waiting for a worker (place 3 of 1,200)"),
        ),
        (
            {"status": "PENDING", "status_message": "Waits until 13:46 for \x1b[2J"},
            WorkState("Waits until 13:46 for \\x1b[2J"),
        ),
        (
            {
                "status": "PULLING",
                "activity": "Pulling layers",
                "done": 5,
                "total": 9,
                "status_message": "Pulling 5 of 9 bytes",
                "rate": 2,
                "time_left": 2.5,
            },
            WorkState("Pulling layers", 5, 9, 2, 2.5),
        ),
        (
            {"status": "TRANSFER", "done": 5, "total": "9", "rate": 0, "time_left": "MISSING"},
            WorkState("Transferring the image"),
        ),
        ({"status": "HASHING"}, WorkState("HASHING")),
    ],
)
def test_what_a_gateway_answers(record: dict[str, Any], state: WorkState) -> None:
    """States are shown in words; the words of the gateway come first, and numbers are checked."""
    assert state_of(record) == state


def test_labels() -> None:
    """A label has what differs between the pieces of work."""
    assert labels_of([("a", "x")]) == [""]
    assert labels_of([("a", "x"), ("a", "y\n")]) == ["x", "y\\x0a"]
    assert labels_of([("a", "x"), ("b", "x")]) == ["a", "b"]
    assert labels_of([("a", "x"), ("b", "y")]) == ["a on x", "b on y"]
    assert labels_of([("docker:a:1", ""), ("custom:a:1", "")]) == ["a:1", "custom:a:1"]


def test_long_labels_keep_their_ends() -> None:
    """The tag of an image, and the number of a system, are seen also where there is no room."""
    works = [("registry.example.com/group/app:1", RUNNING), ("b:2", RUNNING)]
    first, second = terminal_lines(works, 60)
    assert first.startswith("..le.com/group/app:1  Pulling layers")
    assert second.startswith("b:2                   Pulling layers")
    assert terminal_lines([("系統" * 20 + "a", WAITING)], 60)[0].startswith("..系統系統系統系統a ")


def test_the_manual_shows_these_lines() -> None:
    """The examples of the manual are what the program draws and prints."""
    manual = MANUAL.read_text()
    for width in (80, 40):
        assert f"\n{line(RUNNING, width)}\n" in manual
        assert f"\n{line(COMPLETE, width)}\n" in manual
    works = [("", replace(RUNNING, time_left=31.0)), *(("", layer) for layer in layers_of(LAYERS))]
    assert "\n".join(["", *terminal_lines(works, 80), ""]) in manual
    systems = [("one", RUNNING), ("two", WAITING), ("three", COMPLETE)]
    assert "\n" + "\n".join(terminal_lines(systems, 80)) + "\n" in manual
    assert f"\n{plain_line(RUNNING)}\n" in manual
