"""Command lines: entry points, options, exit codes, and the output that scripts read."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.cli.command import gateway_for, shiftergw
from tests.golden import options, program
from tests.golden.records import check
from tests.golden.registry import Registry
from tests.parts import free_port

ROOT = Path(__file__).parents[2]


def test_entry_points() -> None:
    """The program, the plugin of twistd and the modules of workers have the recorded names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    plugin = importlib.import_module("twisted.plugins.shiftergw_plugin").shiftergw
    facts = {
        "scripts": sorted(project["scripts"]),
        "extras": sorted(project["optional-dependencies"]),
        "twistd": {"command": plugin.tapname, "options": options.service_options()},
        "environment": sorted(options.command_environment()),
    }
    assert callable(plugin.options)
    assert callable(plugin.makeService)
    check("entry-points", facts)


def test_options() -> None:
    """Each command has the recorded options and environment variables."""
    check("commands", options.commands())


def test_worker_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m shiftergw.runner` has the recorded options."""
    names: list[str] = []

    class Stop(Exception):
        pass

    def parse_args(parser: Any) -> None:
        names.extend(option for action in parser._actions for option in action.option_strings)
        raise Stop

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Stop):
        options.worker_main()()
    assert sorted(names) == ["--config", "--help", "--with-caller", "--with-metrics", "-h"]


def test_units() -> None:
    """The units run the recorded commands, whose modules exist."""
    commands = {}
    for unit in sorted((ROOT / "conf").glob("*.service")):
        lines = unit.read_text().splitlines()
        keys = ("ExecStart=", "Environment=", "StateDirectory=", "KillMode=", "ReadWritePaths=")
        commands[unit.name] = [line for line in lines if line.startswith(keys)]
        for module in re.findall(r"-A (\S+)", unit.read_text()):
            assert importlib.util.find_spec(module) is not None
    check("units", commands)


def test_scripts() -> None:
    """The scripts of a checkout have the recorded options."""
    options = {
        name: re.findall(rf"^#   ({name}.*?)  ", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("conf/quickstart", "tests/run")
    }
    check("scripts", options)


@pytest_twisted.ensureDeferred
async def test_exit_codes(tmp_path: Path) -> None:
    """Each kind of end has the recorded exit code, and the output has the recorded words."""
    (tmp_path / "bad.json").write_text('{"Platforms": {}}')
    no_gateway = {"SHIFTERGW_GATEWAY": f"http://127.0.0.1:{free_port()}", "SHIFTERGW_SYSTEM": "a"}
    ends: dict[str, Any] = {}

    async def run(name: str, *arguments: str, env: Any = None) -> None:
        result: Any = await deferToThread(shiftergw, *arguments, env=env)
        ends[name] = {"code": result.returncode, "output": result.stdout.splitlines()}

    async with gateway_for(program.fake_gateway()) as env:
        await run("look-up", "lookup", "ubuntu:24.04", env=env)
        await run("pull that fails", "pull", "broken:1", env=env)
        await run("images", "images", "--json", env=env)
        await run("queue", "queue", "--json", env=env)
        await run("workers", "workers", "--json", env=env)
        await run("metrics", "metrics", "--json", env=env)
        await run("not found", "lookup", "nothing:1", env=env)
    await run("no gateway", "images", env={**no_gateway, "SHIFTERGW_CREDENTIAL": "good:ann"})
    await run("no such option", "images", "--nonsense")
    await run("configuration", "check", "--config", str(tmp_path / "bad.json"))
    check("exit-codes", ends)


def test_conversion(tmp_path: Path) -> None:
    """`shiftergw convert` prints one JSON object with the recorded members."""
    with Registry() as registry:
        image = f"{urlsplit(registry.url).netloc}/lib/app:1"
        target = tmp_path / "app.squashfs"
        run = shiftergw("convert", "--plain-http", "--level", "1", image, str(target))
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    report = json.loads(line)
    report["seconds"] = sorted(report["seconds"])
    assert report["bytes"] == target.stat().st_size
    check("conversion", report)
