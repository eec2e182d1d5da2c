"""The display of progress, on a terminal and in a file."""

from __future__ import annotations

import io
import re

from rich.console import Console

from shiftergw.cli.progress import Display, Lines


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)


def test_a_terminal_shows_bars() -> None:
    """Stages follow each other, with bytes; foreign text cannot steer the terminal."""
    console = _terminal()
    with Display(console) as display:
        display.stage("Pulling \x1b[31mlayers [bold]")
        display.bytes(500_000, 1_000_000)
        display.stage("Converting")
        display.notify("waits for [red]the registry")
    screen = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    assert "Pulling \\x1b[31mlayers [bold]" in screen
    assert "0.5/1.0 MB" in screen
    assert "Converting" in screen
    assert "/?" not in screen  # an unknown total is not displayed
    assert "waits for [red]the registry" in screen


def test_a_file_gets_a_line_per_change() -> None:
    """Without a terminal each stage and each message is one line, once."""
    out = io.StringIO()
    with Display(Console(file=out, width=40)) as display:
        for _ in range(3):
            display.stage("A stage with a name that is longer than a line of the console is")
            display.bytes(1, 2)
            display.notify("waiting")
    assert out.getvalue().count("\n") == 2


def _screen_lines(console: Console) -> list[str]:
    """Return the last lines of a terminal, without control sequences."""
    output = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    *_, last = output.split("\x1b[1A\x1b[2K")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)
    return [line.strip() for line in text.replace("\r", "").split("\n") if line.strip()]


def test_a_terminal_shows_a_line_for_each() -> None:
    """Each image keeps its line; its stages follow each other there, with bytes."""
    console = _terminal()
    with Lines(["a", "longer", "b\x1b[2J"], console) as lines:
        lines.line("longer").stage("PULLING: Pulling layers")
        lines.line("longer").bytes(500_000, 1_000_000)
        lines.line("a").stage("PULLING")
        lines.line("a").bytes(1_000_000, 1_000_000)
        lines.line("a").stage("TRANSFER: [bold]x")
        lines.line("b\x1b[2J").end("FAILURE", good=False)
    screen = _screen_lines(console)
    assert len(screen) == 3
    assert re.match(r"a +TRANSFER: \[bold\]x ", screen[0])
    assert "bytes" not in screen[0]  # no bytes were reported
    assert re.match(r"longer +PULLING: Pulling layers .* 0\.5/1\.0 MB", screen[1])
    assert re.match(r"b\\x1b\[2J +FAILURE ", screen[2])
    assert "bytes" not in screen[2]


def test_a_file_gets_a_line_per_change_with_its_name() -> None:
    """Without a terminal each stage, each message and each end is one line, once, for each."""
    out = io.StringIO()
    with Lines(["a", "b"], Console(file=out, width=40)) as lines:
        for name in ("a", "b"):
            for _ in range(3):
                lines.line(name).stage(
                    "A stage with a name that is longer than a line of the console"
                )
                lines.line(name).bytes(1, 2)
                lines.line(name).notify("waiting")
        lines.line("a").end("READY", good=True)
    stage = "A stage with a name that is longer than a line of the console"
    assert out.getvalue().splitlines() == [
        *(f"a: {stage}", "a: waiting", f"b: {stage}", "b: waiting", "a: READY")
    ]
