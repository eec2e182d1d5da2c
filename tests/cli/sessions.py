"""The sessions of docs/sessions.md: what `pull` shows of work that a gateway reports.

`python -m tests.cli.sessions` records them anew.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from twisted.internet.task import Clock

from shiftergw.cli import progress
from shiftergw.cli.progress import Display, Output
from shiftergw.cli.progress_rows import Work
from shiftergw.cli.pull import end_of
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from shiftergw.web import render
from tests.cli.screens import PseudoTerminal
from tests.web.fakes import READY

DOCUMENT = Path(__file__).parents[2] / "docs" / "sessions.md"

INTRODUCTION = (
    "What `shiftergw pull` shows, as the tests record it on pseudo-terminals."
    " [Pulling images](using.md#what-a-pull-shows) explains it."
)

MB = 10**6
WAITING = ImageRecord(status=State.PENDING, queue_place=3, queue_length=12)
FETCHING = ImageRecord(
    status=State.PULLING,
    status_message="Pulling layers",
    stage="fetch",
    done=812 * MB,
    total=1430 * MB,
    rate=42 * MB,
    time_left=31.0,
    layers_in_flight=(
        ["9c27e219663c", 30 * MB, 31 * MB],
        ["3f4a9c1b2d5e", 212 * MB, 700 * MB],
        ["e6a49c6c9b02", 70 * MB, 199 * MB],
    ),
)
COMPOSING = replace(
    FETCHING,
    status=State.CONVERSION,
    status_message="Putting the image together",
    stage="compose",
    done=900 * MB,
    total=1500 * MB,
    rate=450 * MB,
    time_left=8.0,
    layers_in_flight=None,
)
SENDING = replace(
    COMPOSING,
    status=State.TRANSFER,
    status_message="Transferring image",
    stage="deliver",
    done=1200 * MB,
    rate=112 * MB,
    time_left=3.0,
)
FAILURE = ImageRecord(
    status=State.FAILURE,
    cause="docker.io has no image library/alpine:none.",
    remedy="Check the name and the tag.",
)


@dataclass(frozen=True)
class Moment:
    """What the gateway answers for each image at one time, and a text that the terminal shows."""

    seconds: float
    answers: Sequence[ImageRecord]
    text: str


ONE_IMAGE = (
    Moment(4, [WAITING], "place 3"),
    Moment(24, [FETCHING], "56 %"),
    Moment(48, [COMPOSING], "60 %"),
    Moment(54, [SENDING], "80 %"),
    Moment(58, [READY], "Done"),
)
SEVERAL_IMAGES = (
    Moment(20, [FETCHING, FAILURE, WAITING], "56 %"),
    Moment(54, [SENDING, FAILURE, FETCHING], "80 %"),
    Moment(75, [READY, FAILURE, READY], "Done"),
)
NAMES = {
    "ubuntu:24.04": ONE_IMAGE,
    "ubuntu:24.04 alpine:none ghcr.io/us/app:1": SEVERAL_IMAGES,
}
WIDTHS = (80, 40, 120)


def screens(names: str, moments: Sequence[Moment], columns: int) -> Iterator[tuple[float, str]]:
    """Yield what a terminal shows at each moment, with the seconds since the start."""
    clock = Clock()
    with PseudoTerminal(columns) as terminal, patch.object(progress, "DRAWINGS", 50):
        display = _display(names, Output.PEOPLE, terminal.console, clock)
        with display:
            for moment in moments:
                clock.advance(moment.seconds - clock.seconds())
                _show(display, moment)
                yield moment.seconds, "\n".join(terminal.lines_with(moment.text))


def lines_without_terminal(names: str, moments: Sequence[Moment]) -> str:
    """Return what a file gets."""
    clock, out = Clock(), io.StringIO()
    with _display(names, Output.PEOPLE, Console(file=out, width=80), clock) as display:
        for moment in moments:
            clock.advance(moment.seconds - clock.seconds())
            _show(display, moment)
    return out.getvalue().rstrip()


def events(names: str, moments: Sequence[Moment]) -> str:
    """Return what a program reads with `--json`."""
    clock, out = Clock(), io.StringIO()
    with redirect_stdout(out), _display(names, Output.EVENTS, None, clock) as display:
        for moment in moments:
            clock.advance(moment.seconds - clock.seconds())
            _show(display, moment)
    return out.getvalue().rstrip()


def _display(names: str, output: Output, console: Console | None, clock: Clock) -> Display:
    works = [Work(f"docker:{name}", "mycluster") for name in names.split()]
    return Display(works, output, console, clock.seconds)


def _show(display: Display, moment: Moment) -> None:
    """Show the answers as `pull` does; a pull that has ended is shown once."""
    for row, record in zip(display.rows, moment.answers, strict=True):
        answer: Mapping[str, Any] = render.pull_answer(record)
        if record.is_polled:
            row.show(answer)
        elif not row.has_ended:
            end_of(answer).show(row)


def document() -> str:
    """Return the text of docs/sessions.md."""
    parts = ["# What pulls look like", INTRODUCTION]
    for names, moments in NAMES.items():
        for columns in WIDTHS:
            parts.append(f"## `pull {names}`, {columns} columns")
            for seconds, text in screens(names, moments, columns):
                parts.append(f"After {seconds:g} seconds:\n\n```text\n{text}\n```")
    names, moments = next(iter(NAMES.items()))
    plain = lines_without_terminal(names, moments)
    parts += [f"## `pull {names}` without a terminal", f"```text\n{plain}\n```"]
    json_lines = events(names, moments)
    parts += [f"## `pull --json {names}`", f"```json\n{json_lines}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
