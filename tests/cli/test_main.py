"""Each command is imported by its name, and starts without the modules that it does not need."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import click
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.cli.main import main
from tests.cli.command import ENVIRONMENT, gateway_for
from tests.patience import patient
from tests.web.fakes import FakeGateway

_MODULES = """
import sys
from shiftergw.cli.start import main
try:
    main()
finally:
    print("MODULES", *sys.modules, file=sys.stderr)
"""

HEAVY = {"twisted", "zope", "treq", "pydantic", "rich", "OpenSSL", "cryptography"}
"""Packages that take longer to load than `images` takes to run."""

GATEWAY_ONLY = {"app", "config", "service", "web", "store", "sources", "ssh"}
"""Rooms of the program that a request to a gateway does not need."""


def modules_of(*arguments: str, **environment: str) -> set[str]:
    """Return the modules that a command has loaded when it ends, which it does with 0."""
    done = subprocess.run(
        [sys.executable, "-c", _MODULES, *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    return set(done.stderr.rpartition("MODULES ")[2].split())


def packages_of(modules: set[str]) -> tuple[set[str], set[str]]:
    """Return the top-level packages and the rooms that modules belong to."""
    rooms = {name.split(".")[1] for name in modules if name.startswith("shiftergw.")}
    return {name.partition(".")[0] for name in modules}, rooms


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_commands_are_imported_by_name(name: str) -> None:
    """The command that is imported for a name has that name."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name


def test_an_unknown_command() -> None:
    """An unknown command imports no module; click suggests a name that is spelled alike."""
    context = click.Context(main)
    assert main.get_command(context, "imagse") is None
    assert sorted(main.commands) == main.list_commands(context)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_no_command(arguments: list[str]) -> None:
    """`--help` and `--version` load neither a command nor a package besides click."""
    modules = modules_of(*arguments)
    packages, rooms = packages_of(modules)
    assert not packages & HEAVY
    assert rooms <= {"cli", "errors", "plumbing"}
    assert "shiftergw.cli.images" not in modules


@pytest.mark.parametrize("arguments", [["images"], ["lookup", "ubuntu:24.04"], ["queue"]])
@pytest_twisted.ensureDeferred
async def test_requests_load_neither_twisted_nor_records(arguments: list[str]) -> None:
    """A whole request with mock authentication needs nothing that takes long to load.

    Of the model it loads the names alone.
    """
    async with gateway_for(FakeGateway()) as env:
        modules: Any = await deferToThread(modules_of, *arguments, **env)
    packages, rooms = packages_of(modules)
    assert not packages & HEAVY
    assert not rooms & GATEWAY_ONLY
    models = {name for name in modules if name.startswith("shiftergw.model.")}
    assert models <= {"shiftergw.model.names", "shiftergw.model.layer_progress"}
    assert "shiftergw.auth.munge_client" in modules


@pytest_twisted.ensureDeferred
async def test_pull_does_without_the_gateway_s_parts() -> None:
    """`pull` runs in a reactor, but without the service, its configuration and SSH."""
    async with gateway_for(FakeGateway()) as env:
        modules: Any = await deferToThread(modules_of, "pull", "--nowait", "ubuntu:24.04", **env)
    assert "shiftergw.cli.pull" in modules
    assert not modules & {"shiftergw.app.compose", "shiftergw.config", "pydantic", "twisted.conch"}
