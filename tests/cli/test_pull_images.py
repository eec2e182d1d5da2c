"""pull of several images at once: as a process against one gateway, and its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli import polling
from shiftergw.cli.main import main
from shiftergw.cli.pull import MOST_REQUESTS, PollPace
from shiftergw.errors import NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.states import State
from tests.cli.command import ask
from tests.web.fakes import IMAGE_ID, READY, FakeGateway

WORKING = ImageRecord(status=State.PULLING, status_message="Pulling layers")
FAILURE = ImageRecord(status=State.FAILURE, cause="No such tag.")
OTHER_ID = "cd" * 32

Answer = ImageRecord | Exception


@dataclass
class Images(FakeGateway):
    """A gateway whose answers differ by image; the last answer is repeated."""

    answers: Mapping[str, list[Answer]] = field(default_factory=dict)

    async def pull(self, session: Session, itype: str, text: str, *arguments: Any) -> ImageRecord:
        """Return, or raise, the next answer for an image."""
        await super().pull(session, itype, text, *arguments)
        answers = self.answers[text]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def images(answers: Mapping[str, Sequence[Answer]], *systems: str) -> Images:
    """Return a gateway that has these answers."""
    lists = {name: list(records) for name, records in answers.items()}
    return Images(systems or ("mycluster",), answers=lists)


@pytest_twisted.ensureDeferred
async def test_every_image_has_its_id() -> None:
    """Ids are printed with their images in the order of the command, each image once."""
    fake = images({"a:1": [WORKING, READY], "b/c:2": [replace(READY, id=OTHER_ID)]})
    result = await ask(fake, "pull", "--user", "5", "b/c:2", "a:1", "docker:b/c:2")
    assert (result.returncode, result.stdout) == (0, f"b/c:2: {OTHER_ID}\na:1: {IMAGE_ID}\n")
    assert sorted(result.stderr.splitlines()) == ["a:1: Done", "a:1: Pulling layers", "b/c:2: Done"]
    assert {call[4] for call in fake.calls} == {(5,)}


@pytest_twisted.ensureDeferred
async def test_an_image_that_fails_does_not_stop_the_others() -> None:
    """The last line of standard error says which images are missing, after all causes."""
    refusal = NotAllowed("Not yours.", remedy="Ask ann.")
    fake = images({"a:1": [FAILURE], "b:1": [refusal], "c:1": [WORKING, WORKING, READY]})
    result = await ask(fake, "pull", "-q", "a:1", "b:1", "c:1")
    assert (result.returncode, result.stdout) == (4, f"c:1: {IMAGE_ID}\n")
    assert result.stderr.splitlines() == [
        "a:1: No such tag.",
        "b:1: Not yours. Ask ann.",
        "2 of 3 pulls have failed: a:1, b:1",
    ]


@pytest_twisted.ensureDeferred
async def test_several_images_for_several_systems() -> None:
    """Each image is pulled for each system, and labels have both names."""
    fake = images({"a:1": [READY], "custom/b": [FAILURE]}, "x", "y")
    result = await ask(fake, "--system", "x,y", "pull", "a:1", "custom/b")
    assert result.returncode == 1
    assert result.stdout == f"a:1 on x: {IMAGE_ID}\na:1 on y: {IMAGE_ID}\n"
    last_line = result.stderr.splitlines()[-1]
    assert last_line == "2 of 4 pulls have failed: custom/b on x, custom/b on y"


@pytest_twisted.ensureDeferred
async def test_several_images_for_programs() -> None:
    """With `--json` each image has an event of its end, and there is nothing else to read."""
    fake = images({"a:1": [FAILURE], "b:1": [READY]})
    result = await ask(fake, "pull", "--json", "a:1", "b:1")
    assert (result.returncode, result.stderr) == (1, "")
    ends = [json.loads(line) for line in result.stdout.splitlines()]
    codes = {end["image"]: end["exit_code"] for end in ends if end["event"] == "end"}
    assert codes == {"docker:a:1": 1, "docker:b:1": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a:1", "./image.tar", "b:1"], "'./image.tar' is an image of your own"),
        (["image.img", "b:1"], "'image.img' is a file here: write ./image.img to upload it"),
        (["--public", "a:1", "b:1"], "--public is for images of your own"),
        (["a:1", "id:abc"], "images of the type id"),
        (["x" * 5000, "-"], "'-' is an image of your own"),
    ],
)
def test_misuse(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files among the images are refused before any request: nobody pulls them by mistake."""
    (tmp_path / "image.img").write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["pull", *arguments])
    assert (result.exit_code, words in result.output) == (2, True), result.output


def test_many_pulls_are_polled_less_often() -> None:
    """However many pulls a command has, it sends about 16 polls a second."""
    clock = Clock()
    for pulls, seconds in ((1, 0.5), (8, 0.5), (80, 5.0)):
        pause = Deferred.fromCoroutine(polling.pause(clock, pulls))
        clock.advance(seconds - 0.01)
        assert not pause.called
        clock.advance(0.01)
        assert pause.called


def test_requests_are_sent_a_few_at_a_time() -> None:
    """Of many requests a few are sent at once; each that ends, well or not, lets the next begin."""
    gates: list[Deferred[int]] = []

    async def request() -> int:
        gates.append(Deferred())
        return await gates[-1]

    pace = PollPace()
    results = [Deferred.fromCoroutine(pace.in_turn(request)) for _ in range(MOST_REQUESTS + 2)]
    assert len(gates) == MOST_REQUESTS
    gates[0].callback(7)
    gates[1].errback(NotAllowed("No."))
    results[1].addErrback(lambda failure: failure.trap(NotAllowed))
    assert len(gates) == MOST_REQUESTS + 2
    assert results[0].result == 7
    for result in results[2:]:
        result.addErrback(lambda _: None)
        result.cancel()
