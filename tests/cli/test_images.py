"""pull, images, lookup and queue: as processes against a gateway, and their parts."""

from __future__ import annotations

import io
import json
import pwd
import signal
import subprocess
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from rich.console import Console
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from shiftergw.cli import images as commands
from shiftergw.cli import remote as client
from shiftergw.cli.exits import Misused, NoGateway, Refused
from shiftergw.cli.main import main
from shiftergw.cli.progress import Display
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import BadRequest, NotAllowed, Unavailable
from shiftergw.model import ImageRecord
from shiftergw.states import State
from tests.cli.command import ENVIRONMENT, PROGRAM, ask, gateway_for
from tests.parts import free_port
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening, site_of

WORKING = ImageRecord(system="mycluster", status=State.PULLING, stage="fetch", done=1, total=4)
NOBODY = pwd.getpwnam("nobody").pw_uid
FAILED = ImageRecord(
    system="mycluster",
    status=State.FAILURE,
    cause="No such tag.",
    remedy="Check the tag.",
    request_id="ab12",
)


# As processes.


@pytest_twisted.ensureDeferred
async def test_pull_waits_and_prints_the_id() -> None:
    """The id comes on standard output, the states, each once, on standard error."""
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
    assert result.stderr.splitlines() == ["INIT", "PULLING: Pulling layers"]
    name, _, *asked = fake.asked[0]
    assert (name, asked[:4]) == ("pull", ["docker", "a/b:1", (1000, NOBODY), (7,)])


@pytest_twisted.ensureDeferred
async def test_pull_that_fails() -> None:
    """Cause, remedy and request stand on standard error; the exit code is 1."""
    result = await ask(FakeGateway(pulls=[FAILED]), "pull", "x:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == ["No such tag.", "Check the tag.", "(request ab12)"]


@pytest_twisted.ensureDeferred
async def test_pull_nowait() -> None:
    """One request: the state of the work, and 0."""
    fake = FakeGateway(pulls=[WORKING])
    result = await ask(fake, "pull", "--nowait", "x:1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "PULLING\n")
    assert len(fake.asked) == 1


@pytest_twisted.ensureDeferred
async def test_interrupted_pull() -> None:
    """Ctrl-C leaves the pull to the gateway, says so, and exits with 130."""
    fake = FakeGateway(pulls=[WORKING])

    def interrupt(env: dict[str, str]) -> tuple[int, str]:
        with subprocess.Popen(
            [*PROGRAM, "pull", "x:1"], env=env, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "PULLING\n"
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        return process.returncode, said

    async with gateway_for(fake) as env:
        code, said = await deferToThread(interrupt, {**ENVIRONMENT, **env})
    assert code == 130
    assert "it goes on" in said
    assert "Traceback" not in said


@pytest_twisted.ensureDeferred
async def test_images() -> None:
    """The lines are those of the existing client; `--json` has the records."""
    fake = FakeGateway(images=[replace(READY, tags=("b:2", "a:1"))])
    result = await ask(fake, "images")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"mycluster  docker     READY    {IMAGE_ID[:10]}   2023-11-14T22:13:20 {tag:30}"
        for tag in ("a:1", "b:2")
    ]
    records = json.loads((await ask(fake, "images", "--json")).stdout)
    assert [record["id"] for record in records] == [IMAGE_ID]


@pytest_twisted.ensureDeferred
async def test_lookup() -> None:
    """The id, or the exit code 4."""
    assert (await ask(FakeGateway(), "lookup", "ubuntu:24.04")).stdout == f"{IMAGE_ID}\n"
    result = await ask(FakeGateway(), "lookup", "custom:nothing:1")
    assert (result.returncode, result.stdout) == (4, "")
    assert "There is no image nothing:1." in result.stderr


@pytest_twisted.ensureDeferred
async def test_queue() -> None:
    """One line for each pull: how far it is, or why it failed; `--json` has the rows."""
    fake = FakeGateway(waiting=[replace(WORKING, pulltag="a:1"), replace(FAILED, pulltag="b:1")])
    result = await ask(fake, "queue")
    assert [line.split(maxsplit=2) for line in result.stdout.splitlines()] == [
        ["PULLING", "a:1", "fetch 25 %"],
        ["FAILURE", "b:1", "No such tag."],
    ]
    assert len(json.loads((await ask(fake, "queue", "--json")).stdout)) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotAllowed("Not yours."), 4), (BadRequest("Odd."), 2), (Unavailable("Away."), 3)],
)
@pytest_twisted.ensureDeferred
async def test_refusals_have_their_codes(error: Exception, code: int) -> None:
    """Whatever the gateway says is on standard error, and the exit code tells the kind."""
    result = await ask(FakeGateway(raises=error), "images")
    assert (result.returncode, result.stdout) == (code, "")
    assert str(error) in result.stderr


# Without a gateway.


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull"],
        ["pull", "id:abc"],
        ["lookup", "local:/x"],
        ["pull", "--user", "no-such-user", "x:1"],
        ["pull", "--group", "1,,2", "x:1"],
        ["nonsense"],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """What the command line cannot mean is refused before anybody is asked."""
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_types() -> None:
    """Docker and custom are types; any other first word belongs to the name."""
    assert commands.image_of("x:1") == ("docker", "x:1")
    assert commands.image_of("docker:x:1") == ("docker", "x:1")
    assert commands.image_of("custom:x:1") == ("custom", "x:1")
    assert commands.image_of("docker") == ("docker", "docker")


def test_the_site_has_a_default_type() -> None:
    """What udiRoot.conf says counts for names without a type; id and local stay the client's."""
    assert commands.image_of("x:1", "custom") == ("custom", "x:1")
    assert commands.image_of("docker:x:1", "custom") == ("docker", "x:1")
    with pytest.raises(Misused, match="local"):
        commands.image_of("x:1", "local")


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def test_names_become_numbers() -> None:
    """Users and groups go by name or number, in comma lists, each once."""
    found = commands.numbers(["nobody,5", f"007, {NOBODY}"], "user", _uid)
    assert found == [str(NOBODY), "5", "7"]


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
    ],
)
def test_who_cannot_be_given_access(item: str, why: str) -> None:
    """Nobody is dropped in silence: the whole command is refused, with the reason."""
    with pytest.raises(Misused, match=f"^{why}"):
        commands.numbers([f"1,{item}"], "user", _uid)


def test_odd_records_are_printed_all_the_same() -> None:
    """What another gateway may send makes a line, never control characters."""
    odd = {"tag": "x\x1b[2J:1", "status": "READY", "last_pull": "MISSING"}
    (line,) = commands.listing([odd]).splitlines()
    assert "1970-01-01" in line
    assert "\x1b" not in line


# The client in this process.


def _settings(*urls: str, credential: str = "good:ann") -> Settings:
    return Settings(urls, "mycluster", credential)


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    return reactor


@pytest_twisted.ensureDeferred
async def test_gateways_are_tried_until_one_answers() -> None:
    """Gateways that are away or refuse are passed over; the one that answered is kept."""
    good, bad = FakeGateway(), FakeGateway(raises=NotAllowed("No."))
    async with (
        listening(site_of(good, _reactor())) as first,
        listening(site_of(bad, _reactor())) as second,
    ):
        urls = [f"http://127.0.0.1:{port}" for port in (second, free_port(), first)]
        remote = Remote(_reactor(), _settings(*urls))
        for _ in range(5):
            assert len(await remote.images()) == 1
    assert len(good.asked) == 5
    assert len(bad.asked) <= 1


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_worth_more_than_silence() -> None:
    """If one gateway refuses and the other is away, the refusal is told."""
    async with listening(site_of(FakeGateway(), _reactor())) as port:
        urls = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"]
        for order in (urls, urls[::-1]):
            remote = Remote(_reactor(), _settings(*order, credential="bad"))
            with pytest.raises(Refused, match="not valid"):
                await remote.images()


@pytest_twisted.ensureDeferred
async def test_nothing_answers() -> None:
    """Without any gateway the error says which one and why."""
    port = free_port()
    with pytest.raises(NoGateway, match=f"127.0.0.1:{port} cannot be reached: nothing listens"):
        await Remote(_reactor(), _settings(f"http://127.0.0.1:{port}")).images()


@pytest_twisted.ensureDeferred
async def test_something_else_answers() -> None:
    """A server that is no gateway counts as none."""
    for path in ("/livez?", "/?"):
        async with listening(site_of(FakeGateway(), _reactor())) as port:
            remote = Remote(_reactor(), _settings(f"http://127.0.0.1:{port}{path}"))
            with pytest.raises(NoGateway, match="is it a gateway"):
                await remote.images()


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come in time is given up, and is not taken for Ctrl-C."""
    monkeypatch.setattr(client, "ANSWER_LIMIT", 0.05)
    fake = FakeGateway(held=Deferred())
    async with listening(site_of(fake, _reactor())) as port:
        with pytest.raises(NoGateway, match="did not answer"):
            await Remote(_reactor(), _settings(f"http://127.0.0.1:{port}")).images()


@pytest_twisted.ensureDeferred
async def test_a_request_can_be_cancelled() -> None:
    """Cancelling ends the request as a cancellation, however treq wraps it."""
    fake = FakeGateway(held=Deferred())
    async with listening(site_of(fake, _reactor())) as port:
        remote = Remote(_reactor(), _settings(f"http://127.0.0.1:{port}"))
        asking = Deferred.fromCoroutine(remote.images())
        while not fake.asked:
            await deferLater(_reactor(), 0.01, int)
        asking.cancel()
        with pytest.raises(CancelledError):
            await asking


@pytest_twisted.ensureDeferred
async def test_a_gateway_may_restart_in_the_middle_of_a_pull(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent gateway is asked again for a while; it is said once; then the pull goes on."""
    monkeypatch.setattr(commands, "INTERVAL", 0.02)
    fake = FakeGateway(pulls=[WORKING])
    async with listening(site_of(fake, _reactor())) as port:
        remote = Remote(_reactor(), _settings(f"http://127.0.0.1:{port}"))
        pulling = Deferred.fromCoroutine(
            commands.pull_image(remote, _reactor(), ("docker", "x:1"), {}, wait=True)
        )
        while len(fake.asked) < 3:
            await deferLater(_reactor(), 0.01, int)
        fake.raises = Unavailable("The store is away.")
        count = len(fake.asked)
        while len(fake.asked) < count + 3:
            await deferLater(_reactor(), 0.01, int)
        fake.raises, fake.pulls = None, [READY]
        assert await pulling == 0
    said = capsys.readouterr()
    assert said.out == f"{IMAGE_ID}\n"
    assert said.err.count("The store is away.") == 1


@pytest_twisted.ensureDeferred
async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that stays away ends the pull with its own exit code."""
    monkeypatch.setattr(commands, "INTERVAL", 0.02)
    monkeypatch.setattr(commands, "PATIENCE", 0.1)
    fake = FakeGateway(pulls=[WORKING])
    async with listening(site_of(fake, _reactor())) as port:
        remote = Remote(_reactor(), _settings(f"http://127.0.0.1:{port}"))
        pulling = Deferred.fromCoroutine(
            commands.pull_image(remote, _reactor(), ("docker", "x:1"), {}, wait=True)
        )
        while not fake.asked:
            await deferLater(_reactor(), 0.01, int)
        fake.raises = Unavailable("The store is away.")
        with pytest.raises(NoGateway):
            await pulling


@pytest.mark.parametrize("status", ["EXPIRED", "HASHING", None])
def test_an_end_that_is_none(status: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A state that is neither READY nor work is a failure that names it."""
    assert commands._end({"status": status, "id": IMAGE_ID}) == 1
    assert str(status) in capsys.readouterr().err


# The display.


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)


def test_a_terminal_shows_bars() -> None:
    """Stages follow each other, with bytes; foreign text cannot steer the terminal."""
    console = _terminal()
    with Display(console) as display:
        display.stage("Pulling \x1b[31mlayers [bold]")
        display.bytes(500_000, 1_000_000)
        display.stage("Converting")
        display.say("waits for [red]the registry")
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    assert "Pulling \\x1b[31mlayers [bold]" in shown
    assert "0.5/1.0 MB" in shown
    assert "Converting" in shown
    assert "waits for [red]the registry" in shown


def test_a_file_gets_a_line_per_change() -> None:
    """Without a terminal each stage and each message is one line, once."""
    out = io.StringIO()
    with Display(Console(file=out, width=40)) as display:
        for _ in range(3):
            display.stage("A stage with a name that is longer than a line of the console is")
            display.bytes(1, 2)
            display.say("waiting")
    assert out.getvalue().count("\n") == 2
