"""Runs the command line as its users do, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests.patience import patient
from tests.web.fakes import FakeGateway, listening, site_of

PROGRAM = [sys.executable, "-c", "from shiftergw.cli.start import main; main()"]

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("SHIFTERGW_") and not name.lower().endswith("_proxy")
} | {"SHIFTERGW_UDIROOT": "/nonexistent", "TZ": "UTC"}


def shiftergw(
    *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


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
