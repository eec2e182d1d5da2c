"""pull for several systems at once: as processes against one gateway that serves them all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.users import HostUsers
from shiftergw.cli import polling
from shiftergw.cli import pull as commands
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import BEST_TO_WORST
from shiftergw.cli.main import main
from shiftergw.cli.pull import PullOptions
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAllowed, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.plumbing.threads import Threads
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web.api import make_site
from tests.cli.command import shiftergw
from tests.cli.homes import at_home
from tests.installed_reactor import reactor
from tests.munged import MungeDaemon
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening, site_of

WORKING = ImageRecord(status=State.PULLING, status_message="Pulling layers")
FAILURE = ImageRecord(status=State.FAILURE, cause="No such tag.", remedy="Check the tag.")
OTHER_ID = "cd" * 32
OPTIONS = PullOptions(("docker", "x:1"), {}, wait=True)

Answer = ImageRecord | Exception


@dataclass
class Systems(FakeGateway):
    """A gateway whose answers differ by system; the last answer is repeated."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)

    async def pull(self, session: Session, *arguments: Any) -> ImageRecord:
        """Return, or raise, the next answer for the session's system."""
        await super().pull(session, *arguments)
        answers = self.answers[session.system]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def polls(self, system: str) -> int:
        """Return the number of requests for a system."""
        return sum(request[1].system == system for request in self.calls)


def systems(**answers: Sequence[Answer]) -> Systems:
    """Return a gateway for systems of these names."""
    return Systems(
        systems=tuple(answers),
        answers={name: list(records) for name, records in answers.items()},
    )


async def ask(
    fake: FakeGateway, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `pull` with these arguments against a gateway."""
    async with listening(site_of(fake, reactor)) as port:
        environ = {
            "SHIFTERGW_GATEWAY": f"http://127.0.0.1:{port}",
            "SHIFTERGW_CREDENTIAL": "good:ann",
            **(env or {}),
        }
        done: Any = await deferToThread(shiftergw, *arguments, env=environ)
    result: subprocess.CompletedProcess[str] = done
    return result


@pytest_twisted.ensureDeferred
async def test_every_system_has_its_id() -> None:
    """Ids are printed with their systems, in the order of the command, and states by system."""
    fake = systems(b=[WORKING, WORKING, READY], a=[replace(READY, id=OTHER_ID)])
    result = await ask(fake, "pull", "--system", "b,a", "x:1")
    assert (result.returncode, result.stdout) == (0, f"b: {IMAGE_ID}\na: {OTHER_ID}\n")
    assert sorted(result.stderr.splitlines()) == [
        "a: Done",
        "b: Done",
        "b: Pulling layers",
    ]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--system", "a,b", "pull", "x:1"], ""),
        (["pull", "--system", "a", "--system", "b", "x:1"], ""),
        (["pull", "x:1"], "a,b"),
        (["--system", "elsewhere", "pull", "--system", "a,b,a", "x:1"], "nowhere"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_ways_to_name_systems(arguments: list[str], option: str) -> None:
    """Systems are listed with commas or by repeated options, or in the environment."""
    env = {"SHIFTERGW_SYSTEM": option} if option else {}
    result = await ask(systems(a=[READY], b=[READY]), *arguments, env=env)
    assert result.stdout == f"a: {IMAGE_ID}\nb: {IMAGE_ID}\n", result.stderr


@pytest_twisted.ensureDeferred
async def test_the_same_system_twice() -> None:
    """The output is that of a command for one system."""
    result = await ask(systems(a=[WORKING, READY]), "pull", "--system", "a,a", "x:1")
    assert (result.stdout, result.stderr) == (f"{IMAGE_ID}\n", "Pulling layers\n")


@pytest_twisted.ensureDeferred
async def test_a_system_that_fails_does_not_stop_the_others() -> None:
    """The command waits for the other systems; cause and remedy have the name of the system."""
    fake = systems(bad=[FAILURE], slow=[WORKING, WORKING, WORKING, READY])
    result = await ask(fake, "pull", "--system", "bad,slow", "x:1")
    assert (result.returncode, result.stdout) == (1, f"slow: {IMAGE_ID}\n")
    assert result.stderr.splitlines()[-3:] == [
        *("bad: No such tag.", "bad: Check the tag."),
        "1 of 2 pulls have failed: bad",
    ]
    assert "bad: Failed" in result.stderr.splitlines()


@pytest_twisted.ensureDeferred
async def test_a_refusal_does_not_stop_the_others() -> None:
    """A system that does not exist or refuses the user is reported at the end."""
    fake = systems(no=[NotAllowed("Not yours.")], good=[WORKING, READY])
    result = await ask(fake, "pull", "--system", "no,none,good", "x:1")
    assert (result.returncode, result.stdout) == (4, f"good: {IMAGE_ID}\n")
    assert "no: Not yours." in result.stderr
    assert "none: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([0, 0], 0), ([0, 3], 3), ([3, 1], 1), ([1, 4, 3], 4), ([4, 2, 1], 2)],
)
def test_the_worst_end_counts(codes: list[int], worst: int) -> None:
    """The exit code is that of the end for which trying again helps least."""
    assert max(codes, key=BEST_TO_WORST.index) == worst


@pytest_twisted.ensureDeferred
async def test_nowait() -> None:
    """Each system gets one request; ids of READY images are printed."""
    fake = systems(a=[WORKING], b=[READY])
    result = await ask(fake, "pull", "--nowait", "--system", "a,b", "x:1")
    assert (result.returncode, result.stdout) == (0, f"b: {IMAGE_ID}\n")
    assert "a: Pulling layers" in result.stderr
    assert len(fake.calls) == 2


@pytest.mark.parametrize("command", [["images"], ["lookup", "x:1"], ["queue"], ["expire", "x:1"],
                                     ["inspect", "x:1"], ["autoexpire"], ["rm", "--now", IMAGE_ID],
                                     ["metrics"], ["login"], ["logout"]])  # fmt: skip
def test_other_commands_are_for_one_system(command: list[str]) -> None:
    """Several systems are refused, before or after the command, without a request."""
    name, *rest = command
    for arguments in (["--system", "a,b", *command], [name, "--system", "a,b", *rest]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "This command is for one system, and a, b are named" in result.output


def test_the_option_of_the_command() -> None:
    """The option after the command takes precedence over the environment."""
    env = {"SHIFTERGW_SYSTEM": "a,b", "SHIFTERGW_UDIROOT": "/nonexistent"}
    result = CliRunner().invoke(main, ["login", "--system", "a b"], env=env)
    assert "'a b' cannot be a system's name" in result.output


@asynccontextmanager
async def pulling(
    fake: Systems, *names: str, urls: int = 1
) -> AsyncIterator[tuple[Deferred[int], Systems]]:
    """Pull in this process, from two gateways that may differ if `urls` is 2."""
    second = systems(**{name: [READY] for name in fake.answers})
    async with (
        listening(site_of(fake, reactor)) as port,
        listening(site_of(second, reactor)) as other_port,
    ):
        gateways = [f"http://127.0.0.1:{first}" for first in (port, other_port)][:urls]
        remotes = commands.remotes(TwistedExchange(reactor), Settings(gateways, names, "good:ann"))
        running = Deferred.fromCoroutine(commands.pull_for_each(remotes, reactor, [OPTIONS]))
        try:
            yield running, second
        finally:
            running.addErrback(lambda _: None)
            running.cancel()


@pytest_twisted.ensureDeferred
async def test_polls_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a gateway is silent about one system, the polls for the others go on."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    fake = systems(a=[WORKING], b=[WORKING, Unavailable("Away.")])
    async with pulling(fake, "a", "b") as (running, _):
        while fake.polls("a") < 5 or fake.polls("b") < 5:
            await deferLater(reactor, 0.01, int)
        fake.answers["b"] = [READY]
        fake.answers["a"] = [READY]
        assert await running == 0
    errors = capsys.readouterr()
    assert errors.out == f"a: {IMAGE_ID}\nb: {IMAGE_ID}\n"
    assert errors.err.count("b: The gateway") == 1


@pytest_twisted.ensureDeferred
async def test_all_systems_share_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """All systems are requested from the same gateway, which does the work once."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    for _ in range(8):
        fake = systems(a=[READY], b=[READY], c=[READY])
        async with pulling(fake, "a", "b", "c", urls=2) as (running, second):
            assert await running == 0
            assert sorted([len(fake.calls), len(second.calls)]) == [0, 3]


@pytest.mark.parametrize("turns", range(12))
@pytest_twisted.ensureDeferred
async def test_an_interruption_ends_all_polls(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """After an interruption no request is sent, at whatever point the polls were."""
    monkeypatch.setattr(polling, "INTERVAL", 0)
    fake = systems(a=[WORKING], b=[WORKING])
    async with pulling(fake, "a", "b") as (running, _):
        while fake.polls("a") < 2 or fake.polls("b") < 2:
            await deferLater(reactor, 0, int)
        for _ in range(turns):
            await deferLater(reactor, 0, int)
        running.cancel()
        with pytest.raises(CancelledError):
            await running
        await deferLater(reactor, 0.05, int)
        count = len(fake.calls)
        await deferLater(reactor, 0.05, int)
        assert len(fake.calls) == count


@pytest.fixture
def daemons() -> Iterator[dict[str, MungeDaemon]]:
    """Run the munge daemons of two systems, each with its own key."""
    with MungeDaemon() as first, MungeDaemon() as second:
        yield {"a": first, "b": second}


@pytest_twisted.ensureDeferred
async def test_a_munge_daemon_for_each_system(
    tmp_path: Path, daemons: dict[str, MungeDaemon], threads: Threads
) -> None:
    """Each request has a new credential, made by the daemon of its system."""
    fake = systems(a=[WORKING, WORKING, READY], b=[WORKING, READY])
    users = HostUsers(threads, reactor)
    authenticators = {
        name: MungeAuthenticator(name, munged.socket, users, (), reactor)
        for name, munged in daemons.items()
    }
    site = make_site(cast("Gateway", fake), authenticators, reactor, threads.run)
    first, second = (str(munged.socket) for munged in daemons.values())
    by_options = ["--munge-socket", f"a={first}", "--munge-socket", second]
    ways: list[tuple[list[str], dict[str, str]]] = [
        (by_options, {}),
        ([], {"SHIFTERGW_MUNGE_SOCKET": f"a={first},b={second}"}),
    ]
    async with listening(site) as port:
        env = {**at_home(tmp_path / "home"), "SHIFTERGW_GATEWAY": f"http://127.0.0.1:{port}"}
        for options, environ in ways:
            arguments = [*options, "pull", "--system", "a,b", "x:1"]
            done: Any = await deferToThread(shiftergw, *arguments, env={**env, **environ})
            assert (done.returncode, done.stderr.count("is not valid")) == (0, 0), done.stderr
    assert {request[1].uid for request in fake.calls} == {os.getuid()}
