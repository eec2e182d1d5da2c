"""The client of existing sites, against the site on a socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.errors import NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.client_double import Outcome, ShifterImg
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening, site_of


async def _run(
    gateway: FakeGateway, *arguments: str, credential: str | Callable[[], str] = "good:ann"
) -> Outcome:
    from tests.installed_reactor import reactor  # noqa: PLC0415 - importing it installs it

    async with listening(site_of(gateway, reactor)) as port:
        client = ShifterImg(
            [f"http://127.0.0.1:{port}"], "mycluster", credential, interval=0.01, patience=10
        )
        return await deferToThread(client.run, *arguments)


@pytest_twisted.ensureDeferred
async def test_images() -> None:
    """Each tag has a line, with the time of its pull."""
    image = replace(READY, tags=("b:2", "a:1"))
    outcome = await _run(FakeGateway(images=[image]), "images")
    assert outcome.code == 0
    assert [line.split()[:4] for line in outcome.lines] == [
        ["mycluster", "docker", "READY", IMAGE_ID[:10]]
    ] * 2
    assert [line.split()[-1] for line in outcome.lines] == ["a:1", "b:2"]
    assert "1970" not in outcome.out


@pytest_twisted.ensureDeferred
async def test_lookup() -> None:
    """The id is printed; the exit code for an unknown image is 1."""
    outcome = await _run(FakeGateway(), "lookup", "ubuntu:24.04")
    assert (outcome.code, outcome.lines) == (0, [IMAGE_ID])
    assert (await _run(FakeGateway(), "lookup", "docker:nothing/here:1")).code == 1
    assert (await _run(FakeGateway(), "lookup")).code == 1


@pytest_twisted.ensureDeferred
async def test_pull_polls_to_the_end() -> None:
    """The client waits through every state of work and ends with READY."""
    steps = [State.INIT, State.PENDING, State.PULLING, State.CONVERSION, State.TRANSFER]
    gateway = FakeGateway(
        pulls=[*(ImageRecord(system="mycluster", status=step) for step in steps), READY]
    )
    outcome = await _run(gateway, "--user", "2001,nobody", "pull", "quay.io/x/y:1")
    assert outcome.states == ["INIT", "PENDING", "PULLING", "CONVERSION", "TRANSFER", "READY"]
    assert outcome.code == 0
    assert {(call[3], call[4]) for call in gateway.calls} == {("quay.io/x/y:1", (2001,))}


@pytest_twisted.ensureDeferred
async def test_pull_that_fails() -> None:
    """FAILURE ends the polling."""
    failure = ImageRecord(system="mycluster", status=State.FAILURE, cause="No such tag.")
    outcome = await _run(FakeGateway(pulls=[failure]), "pull", "x:1")
    assert outcome.states == ["FAILURE", "FAILURE"]


@pytest_twisted.ensureDeferred
async def test_pullnb() -> None:
    """The client sends one request; work in progress is success."""
    working = ImageRecord(system="mycluster", status=State.INIT)
    assert (await _run(FakeGateway(pulls=[working]), "pullnb", "x:1")).code == 0
    assert (await _run(FakeGateway(), "pullnb", "x:1")).code == 1


@pytest_twisted.ensureDeferred
async def test_refusals_end_the_client() -> None:
    """A refused request ends the client with exit code 1."""
    assert (await _run(FakeGateway(raises=NotAllowed("No.")), "images")).code == 1
    assert (await _run(FakeGateway(), "images", credential="(null)")).code == 1
