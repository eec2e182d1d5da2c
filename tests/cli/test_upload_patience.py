"""Uploads to a gateway that stays away, takes nothing, or answers nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli.answers import InvalidAnswer, UploadState, parse_upload
from shiftergw.cli.blocking import value_of
from shiftergw.cli.directory_tar import SourceChanged
from shiftergw.cli.exits import NoGateway, RequestRefused, WrongOffset
from shiftergw.cli.main import main
from shiftergw.cli.upload import SILENCE_LIMIT, SMALLEST_CHUNK, upload
from shiftergw.cli.upload_source import FileBytes, UploadSource
from tests.cli.upload_command import CONTENT, MIB

# Against answers of a test's own.


class SilentDisplay:
    """Keeps the lines that are shown."""

    def __init__(self) -> None:
        """Start without lines."""
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        """Ignore a stage."""

    def bytes(self, done: int, total: int) -> None:
        """Ignore progress."""

    def notify(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


class FakeRemote:
    """Answers declarations and chunks by the next of `answers`; exceptions are raised."""

    def __init__(self, *answers: UploadState | Exception) -> None:
        """Repeat the last answer."""
        self.answers = list(answers)
        self.calls: list[tuple[str, bool]] = []
        self.sizes: list[int] = []

    def prefer_by(self, text: str) -> None:
        """Do nothing."""

    def _next(self) -> UploadState:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def declare(self, members: Any, *, to_last: bool = False) -> UploadState:
        """Return the next answer."""
        self.calls.append(("declare", to_last))
        return self._next()

    async def ask_last(self, method: str, *_: Any, body: bytes = b"", **__: Any) -> Any:
        """Return the next answer."""
        self.calls.append((method, True))
        if method == "DELETE":
            raise NoGateway("away")
        self.sizes.append(len(body))
        return self._next()


async def call_directly(function: Any, *arguments: Any) -> Any:
    """Call a function in this thread."""
    return function(*arguments)


def source_of(path: Path) -> UploadSource:
    """Return a source with its digest."""
    source = UploadSource(FileBytes(path.open("rb", buffering=0), path), "", "image.tar", "")
    while source.hashed_size < source.size:
        source.hash_piece()
    return source


def sending(remote: FakeRemote, clock: Clock, file: Path) -> tuple[Deferred[Any], SilentDisplay]:
    """Begin an upload."""
    display = SilentDisplay()
    any_remote: Any = remote
    coroutine = upload(any_remote, display, clock, call_directly, source_of(file), {"name": "mine"})
    return Deferred.fromCoroutine(coroutine), display


STATE = UploadState("id", 0, 16 * MIB)


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_stays_away(file: Path) -> None:
    """After `SILENCE_LIMIT` without progress the upload ends with the gateway's silence."""
    clock = Clock()
    remote = FakeRemote(STATE, NoGateway("away"))
    running, display = sending(remote, clock, file)
    while not running.called:
        clock.advance(1)
        assert clock.seconds() < 3 * SILENCE_LIMIT
    with pytest.raises(NoGateway, match="away"):
        await running
    assert clock.seconds() >= SILENCE_LIMIT
    assert set(display.lines) == {"away Still trying."}
    assert remote.calls[:2] == [("declare", False), ("PUT", True)]
    assert set(remote.calls[2:]) == {("declare", True)}


@pytest_twisted.ensureDeferred
async def test_progress_ends_no_upload(file: Path) -> None:
    """An upload over a bad line continues as long as each attempt sends some bytes."""
    clock = Clock()
    steps: list[UploadState | Exception] = [STATE]
    for offset in range(1, 60):
        steps += [NoGateway("away"), UploadState("id", offset, 16 * MIB)]
    remote = FakeRemote(*steps, UploadState("id", len(CONTENT), MIB))
    running, _ = sending(remote, clock, file)
    while not running.called:
        clock.advance(10)
    assert await running == "id"
    assert remote.sizes[-1] == SMALLEST_CHUNK


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_takes_nothing(file: Path) -> None:
    """Answers that never move the offset end the upload, too."""
    clock = Clock()
    running, _ = sending(FakeRemote(STATE, WrongOffset("Wrong.", 0)), clock, file)
    while not running.called:
        clock.advance(10)
    with pytest.raises(WrongOffset, match="Wrong"):
        await running
    running, _ = sending(FakeRemote(UploadState("id", len(CONTENT) + 1, MIB)), clock, file)
    with pytest.raises(RequestRefused, match="more bytes than the upload"):
        await running


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_does_not_answer_at_first(file: Path) -> None:
    """Without any answer the command ends at once, as every pull."""
    running, _ = sending(FakeRemote(NoGateway("away")), Clock(), file)
    with pytest.raises(NoGateway, match="away"):
        await running


def test_a_file_that_changes(file: Path) -> None:
    """The command ends, and removes the upload, which can never be complete."""
    remote = FakeRemote(STATE, UploadState("id", MIB, MIB))
    source = source_of(file)
    file.write_bytes(b"other")
    any_remote: Any = remote
    with pytest.raises(SourceChanged, match=r"image\.tar has changed"):
        value_of(
            upload(any_remote, SilentDisplay(), Clock(), call_directly, source, {"name": "mine"})
        )
    assert remote.calls == [("declare", False), ("DELETE", True)]


@pytest.mark.parametrize(
    "answer",
    [{}, {"upload": "a/b", "offset": 0}, {"upload": "a", "offset": -1},
     {"upload": "a", "offset": True}, {"upload": "a", "offset": 0, "chunk": 0},
     {"upload": 1, "offset": 0}, []],
)  # fmt: skip
def test_invalid_answers(answer: Any) -> None:
    """No id of another form becomes part of a URL, and no chunk is empty."""
    with pytest.raises(InvalidAnswer):
        parse_upload(answer)


@pytest.mark.parametrize("name", ["Mine:1", "reg.example/mine", f"mine@sha256:{'a' * 64}", "a:b:c"])
def test_names_that_an_upload_cannot_have(file: Path, name: str) -> None:
    """The error says how a name looks, before any gateway is asked."""
    result = CliRunner().invoke(main, ["pull", str(file), name])
    assert result.exit_code == 2
    assert "cannot be the name of an uploaded image: write NAME or NAME:TAG" in result.output
