"""The display of progress: on a terminal, in a file, and as events."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
import pytest_twisted
from rich.console import Console
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.cli.progress import Display, Output
from shiftergw.cli.progress_rows import Row, Work, rows_that_fit
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.cli.command import ENVIRONMENT, ask, gateway_for
from tests.cli.terminals import Terminal
from tests.web.fakes import IMAGE_ID, READY, FakeGateway

RECORD = {
    "status": "PULLING",
    "activity": "Pulling layers",
    "stage": "fetch",
    "done": 500_000,
    "total": 1_000_000,
    "rate": 250_000,
    "time_left": 2.0,
}
WORKING = ImageRecord(
    system="mycluster",
    status=State.PULLING,
    status_message="Pulling layers",
    stage="fetch",
    done=812_000_000,
    total=1_430_000_000,
    rate=42_000_000,
    time_left=15.0,
)
SYSTEMS = [Work("docker:x:1", "a"), Work("docker:x:1", "longer"), Work("docker:x:1", "b\x1b[2J")]


def terminal() -> Console:
    """Return a terminal of 100 columns."""
    return Console(
        file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False, _environ={}
    )


def output_of(console: Console) -> str:
    """Return what was written."""
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    return text


def last_lines(console: Console) -> list[str]:
    """Return the last lines of a terminal, without control sequences."""
    *_, last = output_of(console).split("\x1b[1A\x1b[2K")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)
    return [line.strip() for line in text.replace("\r", "").split("\n") if line.strip()]


def test_a_terminal_shows_a_line_for_each() -> None:
    """Each piece of work keeps its line; foreign text cannot steer the terminal."""
    console = terminal()
    with Display(SYSTEMS, console=console) as display:
        first, second, third = display.rows
        first.stage("Pulling \x1b[31mlayers [bold]")
        first.bytes(500_000, 1_000_000)
        second.show(RECORD)
        second.notify("waits for [red]the registry")
        third.end("Failed", is_complete=False, members={})
    lines = [line for line in last_lines(console) if not line.startswith("longer: ")]
    assert len(lines) == 3
    assert re.match(r"a +Pulling \\x1b\[31mlayers \[bold\] +\[=+> +\] +50 %", lines[0])
    assert re.match(r"longer +Pulling layers +\[=+> +\] +50 % .*250 kB/s +2 s left", lines[1])
    assert re.match(r"b\\x1b\[2J +Failed$", lines[2])
    assert "longer: waits for [red]the registry" in output_of(console)


def test_layers_that_are_being_downloaded() -> None:
    """Each has a line below its pull as far as the terminal has lines, until the pull goes on."""
    layers = [{"digest": letter * 12, "done": 1, "total": 4} for letter in "abc"]
    answer = {**RECORD, "layers_in_flight": layers}
    console = Console(
        file=io.StringIO(), force_terminal=True, width=40, height=3, _environ={},
        legacy_windows=False,
    )  # fmt: skip
    with Display(console=console) as display:
        (row,) = display.rows
        row.show(answer)
        while "bbbb" not in output_of(console):  # it is drawn four times a second
            time.sleep(0.02)
        row.show({"status": "CONVERSION"})
        assert row.layers == []
        row.show(answer)
        row.end("Done", is_complete=True, members={})
    assert "cccc" not in output_of(console)
    assert len(last_lines(console)) == 1


def test_a_row_without_a_stage_and_a_label_is_hidden() -> None:
    """A display that has nothing to show leaves no empty line behind."""
    console = terminal()
    with Display(console=console):
        pass
    assert last_lines(console) == []


def test_more_rows_than_the_terminal_has_lines() -> None:
    """Work in progress is shown, with the number of other rows; at the end all rows are there."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=40, height=3, _environ={},
        legacy_windows=False,
    )  # fmt: skip
    works = [Work("docker:x", name) for name in "abcd"]
    with Display(works, console=console) as display:
        for row in display.rows:
            row.stage("Pulling")
        display.rows[0].end("Failed", is_complete=False, members={})
        assert [row.label for row in rows_that_fit(display.rows, 3)] == ["b", "c"]
        assert [row.label for row in rows_that_fit(display.rows, 4)] == ["a", "b", "c", "d"]
        assert [row.label for row in rows_that_fit(display.rows, 1)] == []
        while "and 2 more" not in output_of(console):  # it is drawn four times a second
            time.sleep(0.02)
        assert last_lines(console) == ["b  Pulling", "c  Pulling", "and 2 more"]
    assert last_lines(console) == ["a  Failed", "b  Pulling", "c  Pulling", "d  Pulling"]


def in_a_file(works: list[Work]) -> tuple[io.StringIO, Clock, Display]:
    """Return a display that writes to a file, and the clock that it reads."""
    out, clock = io.StringIO(), Clock()
    return out, clock, Display(works, console=Console(file=out, width=40), seconds=clock.seconds)


def test_a_file_gets_a_line_per_change() -> None:
    """Without a terminal each stage and each message is one line, once, however long it is."""
    out, _, display = in_a_file([Work()])
    with display:
        (row,) = display.rows
        for _ in range(3):
            row.stage("A stage with a name that is longer than a line of the console is")
            row.bytes(1, 2)
            row.notify("waiting")
        row.end("Done", is_complete=True, members={})
    assert len(out.getvalue().splitlines()) == 2


def test_a_file_gets_a_line_every_ten_seconds() -> None:
    """While a stage goes on, a line every ten seconds has its numbers."""
    out, clock, display = in_a_file([Work()])
    with display:
        (row,) = display.rows
        for second in range(25):
            row.show({**RECORD, "done": second})
            clock.advance(1)
        row.show({"status": "PENDING"})
        clock.advance(10)
        row.show({"status": "PENDING"})
    numbers = "of 1 MB, 250 kB/s, 2 s left"
    assert out.getvalue().splitlines() == [
        f"Pulling layers: 0 %, 0 bytes {numbers}",
        f"Pulling layers: 0 %, 10 bytes {numbers}",
        f"Pulling layers: 0 %, 20 bytes {numbers}",
        "Waiting for a worker",
        "Waiting for a worker: for 35 s",
    ]


def test_lines_in_a_file_have_the_names_of_systems() -> None:
    """Each line, and each end, says which piece of work it is about."""
    out, _, display = in_a_file(SYSTEMS[:2])
    with display:
        for row in display.rows:
            row.stage("Pulling layers")
            row.notify("waiting")
        display.rows[0].end("Done", is_complete=True, members={})
    assert out.getvalue().splitlines() == [
        *("a: Pulling layers", "a: waiting", "longer: Pulling layers", "longer: waiting"),
        "a: Done",
    ]


def test_the_rate_of_local_work_is_its_average() -> None:
    """Rate and time left are those of the stage, as soon as they say something."""
    _, clock, display = in_a_file([Work()])
    (row,) = display.rows

    def numbers(row: Row) -> tuple[int | None, float | None]:
        return row.state.rate, row.state.time_left

    row.stage("Uploading x")
    row.bytes(1000, 5000)  # sent by an earlier command
    clock.advance(1)
    row.bytes(1500, 5000)
    assert numbers(row) == (None, None)
    clock.advance(1)
    row.bytes(2000, 5000)
    assert numbers(row) == (500, 6.0)
    row.bytes(500, 5000)  # the gateway has lost bytes
    assert numbers(row) == (None, None)
    row.stage("Hashing y")
    clock.advance(5)
    row.bytes(0, 0)
    assert numbers(row) == (None, None)


def test_events(capsys: pytest.CaptureFixture[str]) -> None:
    """Each change is an object with numbers for programs; what does not change is not repeated."""
    with Display([Work("docker:x:1", "a")], Output.EVENTS) as display:
        (row,) = display.rows
        row.stage("Uploading x")
        row.bytes(5, 10)
        for _ in range(2):
            layers = [{"digest": "3f4a9c1b2d5e", "done": 5, "total": 9}, "x"]
            members = {"queue_place": "x", "waits_for": "hub", "cause": "no member"}
            row.show({**RECORD, **members, "layers_in_flight": layers})
        row.notify("waiting")
        row.end("Done", is_complete=True, members={"status": "READY"})
    work = {"image": "docker:x:1", "system": "a"}
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events == [
        {"event": "progress", **work, "text": "Uploading x", "done": 0, "total": 0},
        {"event": "progress", **work, "text": "Uploading x", "done": 5, "total": 10},
        {
            "event": "progress",
            **work,
            "text": "Pulling layers",
            "status": "PULLING",
            "stage": "fetch",
            "waits_for": "hub",
            "done": 500_000,
            "total": 1_000_000,
            "rate": 250_000,
            "time_left": 2.0,
            "layers_in_flight": layers[:1],
        },
        {"event": "notice", **work, "text": "waiting"},
        {"event": "end", **work, "status": "READY"},
    ]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """A quiet display shows nothing at all, also on a terminal."""
    console = terminal()
    with Display(output=Output.SILENCE, console=console) as display:
        (row,) = display.rows
        row.show(RECORD)
        row.notify("waiting")
        row.end("Done", is_complete=True, members={})
    assert output_of(console) == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (40, r"Pulling layers +56 % +15 s left"),
        (80, r"Pulling layers  \[=+> +\] +56 % +42 MB/s +15 s left"),
        (120, r"Pulling layers  \[[=> ]{30}\] +56 % +812 MB/1\.4 GB +42 MB/s +15 s left"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_pull_on_a_terminal(columns: int, line: str) -> None:
    """On a real terminal each line fits, is drawn again in its place, and ends with a full bar."""

    def session(env: Mapping[str, str]) -> str:
        environment = {**ENVIRONMENT, **env, "TERM": "xterm", "COLUMNS": ""}
        running = Terminal(environment, "pull", "x:1", columns=columns)
        try:
            running.expect(b"56 %")
            running.expect(b"Done")
            running.expect(b"\x1b[?25h")  # the cursor is shown again
            return running.output.decode()
        finally:
            running.close()

    async with gateway_for(FakeGateway(pulls=[WORKING, WORKING, READY])) as env:
        output: Any = await deferToThread(session, env)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    lines = [part for part in re.split(r"[\r\n]+", text) if part]
    assert max(map(len, lines)) <= columns
    assert any(re.fullmatch(line, part.rstrip()) for part in lines), lines
    assert re.match(r"Done .*100 %", lines[-1])


@pytest_twisted.ensureDeferred
async def test_a_pull_for_programs() -> None:
    """With `--json` standard output has events alone; the last one has the id and the exit code."""
    result = await ask(FakeGateway(pulls=[WORKING, READY]), "pull", "--json", "x:1")
    assert (result.returncode, result.stderr) == (0, "")
    progress, end = map(json.loads, result.stdout.splitlines())
    assert (progress["event"], progress["text"]) == ("progress", "Pulling layers")
    assert end == {
        "event": "end",
        "image": "docker:x:1",
        "system": "mycluster",
        "status": "READY",
        "id": IMAGE_ID,
        "exit_code": 0,
    }


@pytest_twisted.ensureDeferred
async def test_failures_for_programs() -> None:
    """The event of the end has the messages of a failure, for each system."""
    failure = ImageRecord(system="mycluster", status=State.FAILURE, cause="No such tag.")
    for systems in ("mycluster", "mycluster,none"):
        result = await ask(FakeGateway(pulls=[failure]), "--system", systems, "pull", "--json", "x")
        ends = {end["system"]: end for end in map(json.loads, result.stdout.splitlines())}
        assert set(ends) == set(systems.split(","))
        assert ends["mycluster"]["messages"] == ["No such tag."]
        assert ends["mycluster"]["exit_code"] == 1
        assert result.stderr == ""
    assert ends["none"]["exit_code"] == result.returncode
    assert "status" not in ends["none"]


@pytest_twisted.ensureDeferred
async def test_a_refusal_for_programs() -> None:
    """A pull that a gateway refuses ends with an event, too; the reason is on standard error."""
    result = await ask(FakeGateway(), "--system", "none", "pull", "--json", "x:1")
    end = json.loads(result.stdout)
    assert (end["event"], end["exit_code"]) == ("end", result.returncode)
    assert end["messages"][0] in result.stderr


@pytest_twisted.ensureDeferred
async def test_a_quiet_pull() -> None:
    """With `--quiet` there is the id alone."""
    result = await ask(FakeGateway(pulls=[WORKING, READY]), "pull", "-q", "x:1")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{IMAGE_ID}\n", "")
