"""Numbers of a faulty gateway: each command that reads an answer prints them, or refuses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli import answers, requests
from shiftergw.cli.admin import metrics_table
from shiftergw.cli.exchange import document_of
from shiftergw.cli.exits import NoGateway, Stop
from shiftergw.cli.explain import explanation_of, last_state, show
from shiftergw.cli.main import main
from shiftergw.cli.pull import PullOptions, pull_image
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.model.names import LATEST, is_count, is_time
from tests.cli.test_explain import EXPLANATION
from tests.web.fakes import IMAGE_ID

T = TypeVar("T")

BASE = "http://gateway:1"
OPTIONS = ["--gateway", BASE, "--system", "mycluster", "--credential", "x"]

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "1e300", "-1", "-0.5", "-1e300", "5e-324"),
    *("9" * 400, "9" * 5000, "9223372036854775808", "true", '"7"', "[]", "null"),
)
"""JSON that Python reads, or refuses, in place of a number; `@` in an answer stands for it."""

ROW = '"status": "PULLING", "system": "s", "image": "a:1"'
ANSWERS = {
    "images": [
        f'{{"list": [{{{ROW}, "{name}": @}}]}}' for name in ("last_pull", "size", "tag", "id")
    ],
    "queue": [
        f'{{"list": [{{{ROW}, "done": @, "total": 7}}]}}',
        f'{{"list": [{{{ROW}, "done": 7, "total": @}}]}}',
    ],
    "lookup a:1": [f'{{"id": "{IMAGE_ID}", "other": @}}'],
    "metrics": ['[{"time": @, "uid": 1}]', '[{"time": 1, "uid": @}]'],
    "workers": [
        '{"list": [{"name": "m", "heard": @, "slots": 1, "jobs": []}]}',
        '{"list": [{"name": "m", "heard": 1, "slots": @, "jobs": [@]}]}',
    ],
    "uploads": [
        f'{{"list": [{{"upload": "ab", "size": 1, "offset": 1, "expires": 1, "{name}": @}}]}}'
        for name in ("size", "offset", "expires")
    ],
    "autoexpire": ['{"status": [@]}'],
    "expire a:1": ['{"status": @}'],
    f"rm --now {IMAGE_ID}": ['{"status": true, "removed": [@]}'],
}


class ListedAnswers:
    """An `Exchange` whose gateway gives the same answer to each request."""

    def __init__(self, content: str, status: int = 200) -> None:
        """Answer with a body and a status."""
        self._content = content.encode()
        self._status = status

    async def ask(self, method: str, base: str, tail: str, **_: Any) -> Any:
        """Return the answer."""
        return document_of(base, None, self._status, "", self._content)

    async def in_thread(self, function: Callable[..., T], *args: Any, **members: Any) -> T:
        """Call the function."""
        return function(*args, **members)

    def seconds(self) -> float:
        """Return a time."""
        return 0.0


def remote_with(content: str, status: int = 200) -> Remote:
    """Return a gateway that gives the same answer to each request."""
    exchange: Any = ListedAnswers(content, status)
    return Remote(exchange, Settings([BASE], ["mycluster"], "good:ann"))


def result_of(running: Deferred[T]) -> T:
    """Return the result of a Deferred that has one, or raise its error."""
    results: list[T] = []
    running.addCallback(results.append)
    errors: list[Any] = []
    running.addErrback(errors.append)
    for error in errors:
        error.raiseException()
    return results[0]


def code_of(command: Callable[[], int]) -> int:
    """Return the exit code of a command."""
    try:
        return command()
    except Stop as stop:
        return stop.exit_code


def refuse_constant(word: str) -> None:
    """Raise an error for a constant that is not JSON."""
    raise AssertionError(word)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
@pytest.mark.parametrize("command", ANSWERS)
def test_commands_without_a_reactor(
    command: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command ends with an exit code of its own, and prints no traceback and no invalid JSON."""
    variants = [[], ["--json"]] if command in {"images", "queue", "metrics", "uploads"} else [[]]
    for answer in ANSWERS[command]:
        content = answer.replace("@", number)
        monkeypatch.setattr(requests, "BlockingExchange", lambda c=content: ListedAnswers(c))
        for options in variants:
            result = CliRunner().invoke(main, [*OPTIONS, *command.split(), *options])
            assert result.exit_code in {0, 3, 4}, (content, result.output)
            assert "Traceback" not in result.output
            if options and result.exit_code == 0:
                json.loads(result.stdout, parse_constant=refuse_constant)


EXPLANATIONS = [
    json.dumps({**EXPLANATION.to_document(), name: "@"})
    for name in ("size", "missing_size", "layer_count")
] + [
    json.dumps({**EXPLANATION.to_document(), name: value})
    for name, value in {
        "layers": [{"digest": "d", "size": "@", "cached_size": "@"}],
        "places": [
            {
                "kind": "registry",
                "name": "n",
                "url": "u",
                "repository": "r",
                "limits": [{"user": "", "remaining": "@", "text": "t"}],
            }
        ],
        "delivered_image": {
            "id": "i",
            "tags": [],
            "private": False,
            "size": "@",
            "last_pull": "@",
            "seconds": {"a": "@"},
        },
        "previous_image": {"id": "i", "tags": [], "private": False, "last_pull": "@"},
        "obstacles": [{"code": "c", "what": "w", "remedy": "r", "retry_at": "@"}],
    }.items()
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
def test_explain(number: str) -> None:
    """An explanation is printed as text and as JSON, or the gateway is named as faulty."""
    for explanation in EXPLANATIONS:
        content = f'{{"id": "ab", "status": "READY", "explanation": {explanation}}}'
        remote = remote_with(content.replace('"@"', number))
        output = StringIO()

        def command(remote: Remote = remote) -> int:
            state = result_of(Deferred.fromCoroutine(last_state(remote, Clock(), "a:1")))
            return max(show(explanation_of(state), as_json) for as_json in (True, False))

        with redirect_stdout(output):
            code = code_of(command)
        assert code in {0, NoGateway.exit_code}
        if code == 0:
            json.loads(output.getvalue().splitlines()[0], parse_constant=refuse_constant)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
@pytest.mark.parametrize("member", ["done", "total", "last_pull"])
def test_pull(member: str, number: str) -> None:
    """The record of a pull is shown, or the gateway is named as faulty."""
    members = {"done": "7", "total": "7", "last_pull": "7", member: number}
    texts = ", ".join(f'"{name}": {value}' for name, value in members.items())
    remote = remote_with(f'{{"status": "PULLING", {texts}}}')
    options = PullOptions(("docker", "a:1"), {}, wait=False)
    pulling = Deferred.fromCoroutine(pull_image(remote, Clock(), options))
    assert code_of(lambda: result_of(pulling)) in {0, NoGateway.exit_code}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
def test_an_upload(number: str) -> None:
    """Offsets and chunks that no file can have are errors, in answers and in refusals."""
    for members in ('"offset": @, "chunk": 7', '"offset": 7, "chunk": @'):
        content = f'{{"upload": "ab", {members.replace("@", number)}}}'
        declaring = Deferred.fromCoroutine(remote_with(content).declare({}))
        with pytest.raises(NoGateway, match="is not understood"):
            result_of(declaring)
    refusal = remote_with(f'{{"error": "Conflict.", "offset": {number}}}', 409)
    with pytest.raises(Stop) as caught:
        result_of(Deferred.fromCoroutine(refusal.declare({})))
    assert not hasattr(caught.value, "offset")


def test_look_ups_without_a_credential() -> None:
    """Look-ups without a credential have the uid -1, and `metrics` shows them."""
    row = {"user": "anonymous", "uid": -1, "time": 1.0}
    assert "anonymous(-1)" in metrics_table(answers.parse_rows([row]))


def test_the_bounds() -> None:
    """The largest size and the last time are valid, and the next ones are not."""
    assert is_count(2**63 - 1)
    assert not is_count(2**63)
    assert is_time(LATEST)
    assert not is_time(LATEST + 1)
