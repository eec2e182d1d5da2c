"""pull: as a process against a gateway, and its parts."""

from __future__ import annotations

import pwd
import signal
import subprocess
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from shiftergw.cli import access_lists, polling
from shiftergw.cli import pull as commands
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import Misuse, NoGateway
from shiftergw.cli.main import main
from shiftergw.cli.pull import PullOptions
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.cli.command import ask, gateway_for, start
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening, site_of

WORKING = ImageRecord(system="mycluster", status=State.PULLING, stage="fetch", done=1, total=4)
WORKING_LINE = "Downloading the image: 25 %, 1 bytes of 4 bytes\n"
NOBODY_UID = pwd.getpwnam("nobody").pw_uid
FAILURE = ImageRecord(
    system="mycluster",
    status=State.FAILURE,
    cause="No such tag.",
    remedy="Check the tag.",
    request_id="ab12",
)
OPTIONS = PullOptions(("docker", "x:1"), {}, wait=True)


# As a process.


@pytest_twisted.ensureDeferred
async def test_pull_waits_and_prints_the_id() -> None:
    """The id is on standard output; the states, each once, are on standard error."""
    fake = FakeGateway(
        pulls=[
            ImageRecord(system="mycluster", status=State.INIT),
            replace(WORKING, status_message="Pulling layers"),
            replace(WORKING, status_message="Pulling layers", done=3),
            READY,
        ]
    )
    result = await ask(fake, "pull", "--user", "1000,nobody", "--group", "7", "docker:a/b:1")
    assert (result.returncode, result.stdout) == (0, f"{IMAGE_ID}\n")
    assert result.stderr.splitlines() == [
        "Requesting the image",
        "Pulling layers: 25 %, 1 bytes of 4 bytes",
    ]
    name, _, *arguments = fake.calls[0]
    assert (name, arguments[:4]) == ("pull", ["docker", "a/b:1", (1000, NOBODY_UID), (7,)])


@pytest_twisted.ensureDeferred
async def test_an_image_without_some_settings() -> None:
    """Standard error lists the settings that jobs do without; the id is printed."""
    ready = replace(READY, report={"metadata": ["CMD", "ENV NL"]})
    result = await ask(FakeGateway(pulls=[ready]), "pull", "x:1")
    assert (result.returncode, result.stdout) == (0, f"{IMAGE_ID}\n")
    errors = "Jobs do without settings that the gateway cannot store: CMD, ENV NL\n"
    assert result.stderr.endswith(errors)


@pytest_twisted.ensureDeferred
async def test_pull_that_fails() -> None:
    """Cause, remedy and request are on standard error; the exit code is 1."""
    result = await ask(FakeGateway(pulls=[FAILURE]), "pull", "x:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == ["No such tag.", "Check the tag.", "(request ab12)"]


@pytest_twisted.ensureDeferred
async def test_pull_nowait() -> None:
    """The command sends one request, shows the state, and exits with 0."""
    fake = FakeGateway(pulls=[WORKING])
    result = await ask(fake, "pull", "--nowait", "x:1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", WORKING_LINE)
    assert len(fake.calls) == 1


@pytest_twisted.ensureDeferred
async def test_interrupted_pull() -> None:
    """After Ctrl-C the pull goes on at the gateway; the command reports this and exits with 130."""
    fake = FakeGateway(pulls=[WORKING])

    def interrupt(env: dict[str, str]) -> tuple[int, str]:
        with start("pull", "x:1", env=env, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == WORKING_LINE
            process.send_signal(signal.SIGINT)
            errors = process.stderr.read()
        return process.returncode, errors

    async with gateway_for(fake) as env:
        code, errors = await deferToThread(interrupt, dict(env))
    assert code == 130
    assert "it goes on" in errors
    assert "Traceback" not in errors


# Without a gateway.


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["id:abc"],
        ["--user", "no-such-user", "x:1"],
        ["--group", "1,,2", "x:1"],
        ["--system", "a,,b", "x:1"],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """An invalid command line is refused before any request."""
    assert CliRunner().invoke(main, ["pull", *arguments]).exit_code == 2


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def test_names_become_numbers() -> None:
    """Users and groups are names or numbers, in comma-separated lists; each id is sent once."""
    ids = access_lists.ids_of(["nobody,5", f"007, {NOBODY_UID}"], "user", _uid)
    assert ids == [str(NOBODY_UID), "5", "7"]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("no-such-user", "There is no user 'no-such-user' on this machine"),
        ("", "There is no user ''"),
        ("1,,2", "There is no user ''"),
        ("٣", "There is no user"),
        ("0", "The user 0 cannot be given access: root has it anyway"),
        ("root", "The user root cannot be given access"),
        ("-5", "-5 is not the number of a user: 1 to 4294967294"),
        ("4294967295", "4294967295 is not the number"),
        ("9" * 5000, "9{59}… is not the number"),
        ("-" + "9" * 5000, "-9{58}… is not the number"),
        ("x" * 5000, "There is no user 'x{59}…' on this machine"),
    ],
)
def test_ids_that_cannot_be_given_access(item: str, why: str) -> None:
    """No id is dropped silently: the whole command is refused, with the reason."""
    with pytest.raises(Misuse, match=f"^{why}"):
        access_lists.ids_of([f"1,{item}"], "user", _uid)


# In this process.


def _remote(port: int) -> Remote:
    return Remote(
        TwistedExchange(_reactor()),
        Settings([f"http://127.0.0.1:{port}"], ["mycluster"], "good:ann"),
    )


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    return reactor


@pytest_twisted.ensureDeferred
async def test_a_gateway_may_restart_in_the_middle_of_a_pull(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent gateway is polled on, which is reported once, until it answers again."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    fake = FakeGateway(pulls=[WORKING])
    async with listening(site_of(fake, _reactor())) as port:
        pulling = Deferred.fromCoroutine(commands.pull_image(_remote(port), _reactor(), OPTIONS))
        while len(fake.calls) < 3:
            await deferLater(_reactor(), 0.01, int)
        fake.raises = Unavailable("The store is away.")
        count = len(fake.calls)
        while len(fake.calls) < count + 3:
            await deferLater(_reactor(), 0.01, int)
        fake.raises, fake.pulls = None, [READY]
        assert await pulling == 0
    errors = capsys.readouterr()
    assert errors.out == f"{IMAGE_ID}\n"
    assert errors.err.count("The store is away.") == 1


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `SILENCE_LIMIT` the pull ends with the exit code for a silent gateway."""
    monkeypatch.setattr(polling, "INTERVAL", 0.02)
    monkeypatch.setattr(polling, "SILENCE_LIMIT", 0.1)
    fake = FakeGateway(pulls=[WORKING])
    async with listening(site_of(fake, _reactor())) as port:
        pulling = Deferred.fromCoroutine(commands.pull_image(_remote(port), _reactor(), OPTIONS))
        while not fake.calls:
            await deferLater(_reactor(), 0.01, int)
        fake.raises = Unavailable("The store is away.")
        with pytest.raises(NoGateway):
            await pulling


@pytest.mark.parametrize("status", ["EXPIRED", "HASHING", None])
def test_an_unknown_state(status: str | None) -> None:
    """A state that is neither READY nor transitional is a failure, which names it."""
    end = commands.end_of({"status": status, "id": IMAGE_ID})
    assert (end.code, end.image_id) == (1, "")
    assert str(status) in end.messages[0]
