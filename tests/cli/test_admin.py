"""expire, autoexpire, rm and metrics: as processes against a gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner

from shiftergw.cli.admin import metrics_table
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import NoGateway, RequestRefused
from shiftergw.cli.main import main
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAllowed, NotFound
from shiftergw.model.requests import Session
from tests.cli.command import answering, ask
from tests.installed_reactor import reactor
from tests.web.fakes import IMAGE_ID, FakeGateway

ROWS = [
    {"user": "ann", "uid": 1, "system": "s", "type": "docker", "tag": "a:1", "time": 1.7e9},
    {"user": "b\x1b", "uid": 2, "system": "s", "type": "custom", "tag": "b", "id": "c" * 64},
]


@dataclass
class ScriptedGateway(FakeGateway):
    """A gateway that answers what the test sets: rows of look-ups, ids, names."""

    rows: Sequence[Mapping[str, Any]] = field(default_factory=lambda: ROWS)
    due: Sequence[str] = ()
    names: Sequence[str] = ()

    async def metrics(self, session: Session, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return the last rows."""
        await super().metrics(session, limit)
        return self.rows[-limit:]

    async def autoexpire(self, session: Session) -> Sequence[str]:
        """Return the ids of the images that are due."""
        await super().autoexpire(session)
        return self.due

    async def take_down(self, session: Session, prefix: str) -> tuple[str, Sequence[str]]:
        """Return the id and the tags of the image."""
        await super().take_down(session, prefix)
        return IMAGE_ID, self.names


@pytest_twisted.ensureDeferred
async def test_expire() -> None:
    """`expire` removes one tag of one type, and reports it."""
    fake = FakeGateway()
    result = await ask(fake, "expire", "custom:mine:1")
    assert (result.returncode, result.stdout) == (0, "custom:mine:1 is expired.\n")
    assert [(name, *rest) for name, _, *rest in fake.calls] == [("expire", "custom", "mine:1")]


@pytest_twisted.ensureDeferred
async def test_autoexpire() -> None:
    """Ids are on standard output, one a line; that there were none is on standard error."""
    result = await ask(ScriptedGateway(due=[IMAGE_ID, "cd" * 32]), "autoexpire")
    assert (result.returncode, result.stdout) == (0, f"{IMAGE_ID}\n{'cd' * 32}\n")
    result = await ask(ScriptedGateway(), "autoexpire")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "No image's time is up.\n"


@pytest_twisted.ensureDeferred
async def test_rm() -> None:
    """A takedown lists the removed tags, and reports that the whole id stays refused."""
    fake = ScriptedGateway(names=["docker:a:1", "docker:b\x1b:2"])
    result = await ask(fake, "rm", "--now", IMAGE_ID[:4])
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "docker:a:1 is removed.",
        "docker:b\\x1b:2 is removed.",
        f"{IMAGE_ID} is refused from now on.",
    ]
    assert [(name, *rest) for name, _, *rest in fake.calls] == [("take_down", IMAGE_ID[:4])]


@pytest_twisted.ensureDeferred
async def test_rm_allow() -> None:
    """`rm --allow` unblocks an image."""
    fake = FakeGateway()
    result = await ask(fake, "rm", "--allow", f"id:{IMAGE_ID}")
    assert (result.returncode, result.stdout) == (0, f"{IMAGE_ID} may be pulled again.\n")
    assert [(name, *rest) for name, _, *rest in fake.calls] == [("allow", IMAGE_ID)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["rm"],
        ["rm", "--now", IMAGE_ID, "--allow", IMAGE_ID],
        ["rm", "--now", ""],
        ["rm", "--now", "ubuntu:24.04"],
        ["rm", "--allow", f"{IMAGE_ID}\n"],
        ["expire"],
        ["expire", "id:abc"],
        ["expire", "local:abcd"],
        ["autoexpire", "x:1"],
        ["metrics", "--limit", "0"],
        ["metrics", "--limit", "many"],
        ["metrics", "--limit", "9" * 30],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """A command line that could mean another image is refused before any request."""
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest_twisted.ensureDeferred
async def test_metrics() -> None:
    """There is one line per look-up, the newest last; `--json` prints the rows."""
    fake = ScriptedGateway()
    result = await ask(fake, "metrics")
    assert result.returncode == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["2023-11-14T22:13:20", "ann(1)", "s", "None", "docker:a:1"],
        ["1970-01-01T00:00:00", "b\\x1b(2)", "s", "c" * 10, "custom:b"],
    ]
    assert json.loads((await ask(fake, "metrics", "--json", "--limit", "1")).stdout) == ROWS[1:]
    assert [request[2] for request in fake.calls] == [10, 1]
    assert metrics_table([]) == ""


@pytest.mark.parametrize(
    "arguments",
    [["expire", "x:1"], ["autoexpire"], ["rm", "--now", IMAGE_ID], ["metrics"]],
)
@pytest_twisted.ensureDeferred
async def test_refusals(arguments: list[str]) -> None:
    """A refusal or an unknown image exits with 4, and prints the gateway's message."""
    for error in (NotAllowed("Only admins may."), NotFound("There is no such image.")):
        result = await ask(FakeGateway(raises=error), *arguments)
        assert (result.returncode, result.stdout) == (4, "")
        assert str(error) in result.stderr


Method = Callable[[Remote], Coroutine[Any, Any, Any]]


def _expire(remote: Remote) -> Coroutine[Any, Any, Any]:
    return remote.expire("docker", "x:1")


def _take_down(remote: Remote) -> Coroutine[Any, Any, Any]:
    return remote.take_down(IMAGE_ID)


def _metrics(remote: Remote) -> Coroutine[Any, Any, Any]:
    return remote.metrics(5)


@pytest.mark.parametrize(
    ("body", "method", "outcome"),
    [
        (b'{"status": null}', _expire, RequestRefused),  # the original gateway: no such tag
        (b'{"status": false}', _expire, RequestRefused),  # and: not an admin
        (b'{"status": true}', _expire, None),
        (b"[]", _expire, NoGateway),
        (b'{"status": false}', Remote.autoexpire, RequestRefused),
        (b"{}", Remote.autoexpire, RequestRefused),
        (b'{"status": ["a", 5]}', Remote.autoexpire, ["a"]),
        (b'[{"uid": 1, "id": null}]', _metrics, [{"uid": 1}]),
        (b'[{"uid": 1}, 2]', _metrics, NoGateway),
        (b'[{"uid": "1"}]', _metrics, NoGateway),
        (b'[{"time": 1e300}]', _metrics, NoGateway),
        (b'[{"tag": 1}]', _metrics, NoGateway),
        (b"{}", _metrics, NoGateway),
        (b"odd", _take_down, NoGateway),
        (b'{"status": 1}', _take_down, RequestRefused),
        (b'{"status": true, "removed": ["a"]}', _take_down, (IMAGE_ID, ["a"])),
        (b'{"status": true, "removed": 5, "id": 5}', _take_down, (IMAGE_ID, [])),
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_answers(body: bytes, method: Method, outcome: Any) -> None:
    """The original gateway's refusals count as such; an invalid answer as no gateway."""
    async with answering(body) as url:
        remote = Remote(TwistedExchange(reactor), Settings([url], ["mycluster"], "x"))
        if isinstance(outcome, type):
            with pytest.raises(outcome):
                await method(remote)
        else:
            assert await method(remote) == outcome
