"""Runs the command line as its users do, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests import forks
from tests.patience import patient
from tests.web.fakes import FakeGateway, listening, site_of

PROGRAM = [sys.executable, "-c", "from shiftergw.cli.start import main; main()"]
IMPORTER = [
    sys.executable,
    "-c",
    "from shiftergw.cli.start import importer_main; importer_main()",
]
PROGRAMS = {"shiftergw": PROGRAM, "shiftergw-pyxis": IMPORTER}

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("SHIFTERGW_") and not name.lower().endswith("_proxy")
} | {"SHIFTERGW_UDIROOT": "/nonexistent", "TZ": "UTC"}


def run(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
    start_new_session: bool = False,
    seconds: float = 60,
    program: str = "shiftergw",
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, in a process of its own; `env` is added to `ENVIRONMENT`."""
    environment = {**ENVIRONMENT, **(env or {})}
    if forks.can_fork(environment):
        return forks.run(
            program,
            arguments,
            env=environment,
            seconds=seconds,
            stdin=stdin,
            cwd=cwd,
            start_new_session=start_new_session,
        )
    return subprocess.run(
        [*PROGRAMS[program], *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=patient(seconds),
        cwd=cwd,
        start_new_session=start_new_session,
        check=False,
    )


def start(
    *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a command; `env` is added to `ENVIRONMENT`, and `options` are those of `Popen`."""
    environment = {**ENVIRONMENT, **(env or {})}
    if forks.can_fork(environment):
        return forks.ChildFork(["shiftergw", *arguments], env=environment, **options)
    return subprocess.Popen([*PROGRAM, *arguments], env=environment, **options)


def shiftergw(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    cwd: Path | None = None,
    start_new_session: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return its output as text."""
    done = run(
        *arguments,
        env=env,
        stdin=stdin.encode(),
        cwd=cwd,
        start_new_session=start_new_session,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, _text_of(done.stdout), _text_of(done.stderr)
    )


def _text_of(output: bytes) -> str:
    """Return output with the line ends of a text file."""
    return output.decode().replace("\r\n", "\n").replace("\r", "\n")


@asynccontextmanager
async def gateway_for(fake: FakeGateway) -> AsyncIterator[Mapping[str, str]]:
    """Serve a fake gateway; the value is the environment in which the commands find it."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    async with listening(site_of(fake, reactor)) as port:
        yield {
            "SHIFTERGW_GATEWAY": f"http://127.0.0.1:{port}",
            "SHIFTERGW_SYSTEM": "mycluster",
            "SHIFTERGW_CREDENTIAL": "good:ann",
        }


async def ask(fake: FakeGateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command against a fake gateway in this process."""
    async with gateway_for(fake) as env:
        result: subprocess.CompletedProcess[str] = await deferToThread(
            shiftergw, *arguments, env=env
        )
    return result


class Answers(Resource):
    """A server that gives one answer to every request, as other programs or old gateways may."""

    def __init__(self, body: bytes) -> None:
        """Answer with this body."""
        super().__init__()
        self.isLeaf = True
        self._body = body

    def render(self, request: Request) -> bytes:
        """Answer."""
        request.setHeader("Content-Type", "application/json")
        return self._body


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """Serve one answer; the value is the URL of the server."""
    site: Any = Site(Answers(body))
    async with listening(site) as port:
        yield f"http://127.0.0.1:{port}"
