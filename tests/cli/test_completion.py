"""A shell completes names of images and systems, fast and without errors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.threads import deferToThread

from shiftergw.cli import completion
from shiftergw.cli.main import main
from tests.cli.command import gateway_for
from tests.patience import patient
from tests.raw_servers import answering, endless
from tests.web.fakes import IMAGE_ID, READY, FakeGateway

IMAGES = ["a:1", "custom:mine:1", "ubuntu:22.04", "ubuntu:24.04", "x*", "abcdef" * 10 + "abcd"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache directory of the user, who has neither gateway nor system."""
    for name in ("SHIFTERGW_GATEWAY", "SHIFTERGW_SYSTEM", "SHIFTERGW_MUNGE_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SHIFTERGW_UDIROOT", "/nonexistent")
    return tmp_path / "cache" / "shiftergw"


@pytest.fixture
def queries(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the settings of each query; the answer is `IMAGES`."""
    all_settings: list[Any] = []

    def answer(settings: Any, _: object) -> list[str]:
        all_settings.append(settings)
        return IMAGES

    monkeypatch.setattr(completion, "_answer", answer)
    assert not cache.exists()
    return all_settings


ENVIRONMENT = {"SHIFTERGW_GATEWAY": "http://gateway", "SHIFTERGW_SYSTEM": "mycluster"}


def complete(line: str, env: Mapping[str, str] = ENVIRONMENT, shell: str = "bash") -> list[str]:
    """Return what a shell offers for the end of a line."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        variables["COMP_CWORD"] = words[-1]
    if shell == "bash":
        length = len(line.encode())
        variables |= {"COMP_LINE": line, "COMP_POINT": str(length), "COMP_WORDBREAKS": " \n=:"}
    variables |= {**env, "_MAIN_COMPLETE": f"{shell}_complete"}
    result = CliRunner().invoke(main, env=variables, prog_name="main")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr == ""
    if shell == "zsh":
        return result.stdout.splitlines()[1::3]
    return [text.partition(",")[2] for text in result.stdout.splitlines() if text]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_images(queries: list[Any], shell: str) -> None:
    """Images are offered where a command takes one; names that a shell would expand are not."""
    for command in (
        "lookup", "expire", "rm a:1", "pin", "unpin", "images", "inspect", "explain", "pull a:1",
    ):  # fmt: skip
        assert complete(f"shiftergw {command} u", shell=shell) == ["ubuntu:22.04", "ubuntu:24.04"]
    assert complete("shiftergw lookup ", shell=shell) == IMAGES[:4]
    assert len(queries) == 1  # the list is kept for some seconds


def test_files(queries: list[Any]) -> None:
    """Where an image may be a file to upload, the beginning of a path is completed by the shell."""
    for word in ("./a", "../a", "/a", "~/a", ".", ".."):
        assert complete(f"shiftergw pull {word}") == [word]
    assert queries == []


@pytest.mark.usefixtures("queries")
def test_colons_in_bash() -> None:
    """Bash begins a new word at a colon, and leaves what is before it."""
    assert complete("shiftergw lookup ubuntu:") == ["22.04", "24.04"]
    assert complete("shiftergw lookup ubuntu:24") == ["24.04"]
    assert complete("shiftergw lookup custom:mi") == ["mine:1"]
    assert complete("shiftergw --credential é lookup ubuntu:24") == ["24.04"]
    no_break = {**ENVIRONMENT, "COMP_WORDBREAKS": " "}
    assert complete("shiftergw lookup ubuntu:24", no_break) == ["ubuntu:24.04"]
    assert complete("shiftergw lookup ubuntu:24", shell="zsh") == ["ubuntu:24.04"]
    line = "shiftergw lookup ubuntu:24 x"
    in_the_middle = {**ENVIRONMENT, "COMP_LINE": line, "COMP_POINT": str(len(line) - 2)}
    assert complete(line, in_the_middle) == ["24.04"]


@pytest.mark.usefixtures("queries")
def test_ids() -> None:
    """Ids are offered for hexadecimal digits, in the short form as far as that is longer."""
    assert complete("shiftergw lookup abcd") == ["abcdefabcdef"]
    assert complete("shiftergw lookup abcdefabcdefa") == [IMAGES[-1]]
    assert complete("shiftergw lookup abc") == []


def test_settings(queries: list[Any]) -> None:
    """Options before and after the command count; each gateway, system and user has a list."""
    lines = (
        "shiftergw --gateway http://a --system one lookup ",
        "shiftergw --system one lookup --system two ",
        "shiftergw --munge-socket two=/run/two --credential good:ann lookup ",
        "shiftergw --munge-socket /run/three --credential good:ann lookup ",
    )
    for line in lines:
        assert complete(line) == IMAGES[:4]
    values = [(settings.gateways, settings.systems, settings.credential) for settings in queries]
    assert values == [
        (("http://a",), ("one",), ""),
        (("http://gateway",), ("two",), ""),
        (("http://gateway",), ("mycluster",), "good:ann"),
        (("http://gateway",), ("mycluster",), "good:ann"),
    ]
    assert queries[2].munge_sockets == {"two": Path("/run/two")}


def test_systems(queries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems come from the options and from the gateway; of a list the last one is completed."""
    monkeypatch.setattr(completion, "_answer", lambda *_: ["mycluster", "other"])
    assert complete("shiftergw images --system ") == ["mycluster", "other"]
    assert complete("shiftergw --system o") == ["other"]
    assert complete("shiftergw --system=o") == ["other"]
    assert complete("shiftergw pull --system other,my") == ["other,mycluster"]
    assert complete("shiftergw --system x*,y --system ") == ["mycluster", "other", "y"]
    sockets = {"SHIFTERGW_MUNGE_SOCKET": "two=/run/two"}
    assert complete("shiftergw --system ", sockets) == ["two"]
    assert queries == []


@pytest.mark.parametrize("answer", [IMAGES, []])
def test_the_cache(
    queries: list[Any], cache: Path, monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    """A list is private, and is used for some seconds; the lack of an answer, too."""

    def list_of_gateway(*_: object) -> list[str]:
        queries.append(None)
        return answer

    monkeypatch.setattr(completion, "_answer", list_of_gateway)
    for count, age in enumerate((0, 0, 60, -60)):
        for file in cache.glob("*"):
            if age:
                os.utime(file, (time.time() - age,) * 2)
            assert (file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
            assert "mycluster" not in file.name
        assert complete("shiftergw lookup ") == answer[:4]
        assert len(queries) == max(1, count)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"5", b"[5]", b"\xff", b'{"names": []}'])
def test_a_damaged_cache(queries: list[Any], cache: Path, content: bytes) -> None:
    """Nothing that is no name is offered from a damaged file."""
    complete("shiftergw lookup ")
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert complete("shiftergw lookup a") in (["a:1"], [])
    file.write_text(json.dumps(["a b", "a$(x)", "a:2"]))
    assert complete("shiftergw lookup a") == ["a:2"]
    assert len(queries) <= 2


@pytest.mark.usefixtures("queries")
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    """Names are offered all the same."""
    cache.parent.mkdir()
    cache.write_text("no directory")
    assert complete("shiftergw lookup a") == ["a:1"]


@pytest.mark.usefixtures("queries")
def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is in the home directory unless XDG_CACHE_HOME is an absolute path."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert complete("shiftergw lookup a") == ["a:1"]
    assert len(list((tmp_path / "home/.cache/shiftergw").iterdir())) == 1


@pytest.mark.parametrize(
    "line",
    ["shiftergw lookup ", "shiftergw --gateway a@b lookup ", "shiftergw --system , lookup ",
     "shiftergw lookup --system , ", "shiftergw --munge-socket a= lookup "],
)  # fmt: skip
@pytest.mark.usefixtures("cache")
def test_invalid_settings(line: str) -> None:
    """Nothing is offered, and nothing is printed."""
    assert complete(line, {"SHIFTERGW_SYSTEM": "mycluster"}) == []


@pytest.mark.usefixtures("cache")
@pytest_twisted.ensureDeferred
async def test_the_lists_of_a_gateway() -> None:
    """The names come from the gateway's own lists, which have what the caller may use."""
    names = ("ubuntu:24.04", "b:1")
    custom = replace(READY, itype="custom", tags=("mine:1",))
    fake = FakeGateway(systems=("mycluster", "other"), images=[replace(READY, tags=names), custom])
    async with gateway_for(fake) as env:

        def ask() -> list[list[str]]:
            lines = ("lookup ", f"lookup {IMAGE_ID[:5]}", "lookup --system o")
            return [complete(f"shiftergw {line}", env) for line in lines]

        answers = await deferToThread(ask)
    assert answers == [["b:1", "custom:mine:1", "ubuntu:24.04"], [IMAGE_ID[:12]], ["other"]]


@pytest.mark.usefixtures("cache")
@pytest_twisted.ensureDeferred
async def test_a_silent_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell waits for a moment only."""
    assert completion.QUERY_SECONDS < 1
    monkeypatch.setattr(completion, "QUERY_SECONDS", 0.1)
    async with answering(endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.02)) as port:
        env = {**ENVIRONMENT, "SHIFTERGW_GATEWAY": f"http://127.0.0.1:{port}"}
        env["SHIFTERGW_CREDENTIAL"] = "good:ann"
        start = time.monotonic()
        assert await deferToThread(complete, "shiftergw lookup ", env) == []
        assert time.monotonic() - start < patient(2)


@pytest.mark.usefixtures("queries")
def test_a_silent_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not wait for a file system that hangs."""
    monkeypatch.setattr(completion, "TOTAL_SECONDS", 0.1)
    monkeypatch.setattr(completion, "private_directory", lambda _: time.sleep(1))
    assert complete("shiftergw lookup ") == []


@pytest.mark.usefixtures("queries")
def test_scripts_of_earlier_versions() -> None:
    """A script for bash that does not pass the line completes, too."""
    env = {"_MAIN_COMPLETE": "bash_complete", "COMP_WORDS": "main lookup u", "COMP_CWORD": "2"}
    result = CliRunner().invoke(main, env={**ENVIRONMENT, **env}, prog_name="main")
    assert result.stdout.splitlines() == ["plain,ubuntu:22.04", "plain,ubuntu:24.04"]
