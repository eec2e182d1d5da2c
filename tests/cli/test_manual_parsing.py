"""Each program takes the command lines that the manual has for it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from twisted.python.usage import UsageError

from shiftergw.cli.main import COMMANDS
from tests.cli import manual
from tests.cli.manual import block_lines, calls_in, check_call, inline_lines


@pytest.mark.parametrize(
    "page", manual.PAGES, ids=lambda page: page.relative_to(manual.ROOT).as_posix()
)
def test_command_lines(page: Path) -> None:
    """The programs know the commands and options on a page, in its blocks and in its text."""
    for line in (*block_lines(page), *inline_lines(page)):
        for program, arguments in calls_in(line.text):
            try:
                check_call(program, arguments)
            except (click.ClickException, UsageError, AssertionError) as error:
                pytest.fail(f"{line.text}: {error!r}")


def test_every_command_is_in_the_manual() -> None:
    """The manual has each command of the program."""
    text = "".join(page.read_text() for page in manual.PAGES)
    assert [name for name in COMMANDS if not re.search(rf"shiftergw {name}|`{name}`", text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "shiftergw pul a:1",
        "sudo -H -u shiftergw shiftergw check --confg FILE",
        "docker save a:1 | shiftergw pull --privat - a:1",
        "ssh -t host 'shiftergw --gatway http://127.0.0.1 page; exec sleep 4h'",
        "SHIFTERGW_SYSTEM=one /opt/shiftergw/bin/shiftergw images --sort colour",
        "shiftergw images --sort",
        "shiftergw-pyxis get",
        "shifterimg --verbose queue",
        "twistd shiftergw --confg FILE",
        "shiftergw foo",
    ],
)
def test_a_mistake_is_noticed(text: str) -> None:
    """A command or an option that a program does not know fails the test of its page."""
    calls = list(calls_in(text))
    assert len(calls) == 1
    with pytest.raises((click.ClickException, UsageError, AssertionError)):
        check_call(*calls[0])


def test_lines_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, comments, continued lines and output are told apart."""
    monkeypatch.setattr(manual, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ a b   # why\nx\ny\n$ c '#'\n```\n```json\n{}\n```\n"
        "  ```console\nd \\\n    --e\nf\n  ```\nText `shiftergw x \\| y` and `shiftergw`.\n"
    )
    lines = [(line.text, line.output) for line in block_lines(page)]
    assert lines == [("a b", "x\ny\n"), ("c '#'", ""), ("d --e", ""), ("f", "")]
    assert [line.text for line in inline_lines(page)] == ["shiftergw x | y"]
