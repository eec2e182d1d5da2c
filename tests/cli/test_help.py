"""The texts of `--help`."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from shiftergw.cli.main import main


def help_of(*command: str) -> str:
    """Return a help text as a terminal of the usual width shows it."""
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


def test_every_command_has_a_whole_line() -> None:
    """The summary of each command fits into a line of its own."""
    lines = help_of().partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_option_is_explained(name: str) -> None:
    """Each option of a command has a help text."""

    def options() -> Iterator[click.Option]:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for parameter in (*main.params, *command.params):
            if isinstance(parameter, click.Option):
                yield parameter

    assert [option.name for option in options() if not option.help] == []
    assert "Usage: main" in help_of(name)


def test_completion() -> None:
    """A shell completes the names of commands and of their options."""
    for words, number, completion in (
        ("shiftergw ", "1", "pull"),
        ("shiftergw pull --", "2", "--user"),
    ):
        env = {"_MAIN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        result = CliRunner().invoke(main, env=env, prog_name="main")
        assert f"plain,{completion}" in result.output.splitlines()
