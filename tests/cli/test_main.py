"""The commands are found by their names, and begin without what they do not need."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from shiftergw.cli.main import main

_LOADED = """
import sys
from shiftergw.cli.main import main
main(["{command}", "--help"], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_commands_are_found(name: str) -> None:
    """Each command is what its name says."""
    found = main.get_command(click.Context(main), name)
    assert found is not None
    assert found.name == name


def test_a_name_of_no_command() -> None:
    """An unknown command is none, and click knows all to name one that is written alike."""
    context = click.Context(main)
    assert main.get_command(context, "imagse") is None
    assert sorted(main.commands) == main.list_commands(context)


@pytest.mark.parametrize("command", ["images", "lookup", "pull"])
def test_users_do_not_wait_for_the_gateway_s_parts(command: str) -> None:
    """What users call often begins without the service, its configuration and SSH."""
    argv = [sys.executable, "-c", _LOADED.format(command=command)]
    made = subprocess.run(argv, capture_output=True, text=True, check=True)
    modules = set(made.stderr.split())
    assert f"shiftergw.cli.{'pull' if command == 'pull' else 'images'}" in modules
    assert not modules & {"shiftergw.app.compose", "shiftergw.config", "pydantic", "twisted.conch"}
