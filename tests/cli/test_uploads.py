"""uploads: the list of the user's own uploads, and their removal, at all gateways of a system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from shiftergw.cli.answers import InvalidAnswer, parse_uploads
from shiftergw.cli.main import main
from shiftergw.cli.uploads import uploads_table
from tests.cli.command import shiftergw
from tests.cli.test_main import GATEWAY_ONLY, HEAVY, modules_of, packages_of
from tests.cli.upload_gateway import UploadGateway
from tests.parts import free_port

ROW = {
    "upload": "ab" * 16,
    "filename": "x.sif",
    "kind": "sif",
    "size": 3_000_000_000,
    "offset": 1_500_000_000,
    "expires": 1_700_000_000.0,
    "images": [],
}


@pytest.fixture
def gateways() -> Iterator[list[UploadGateway]]:
    """Return two gateways, each with an upload that the other has not, and with a shared one."""
    with UploadGateway().running() as first, UploadGateway().running() as second:
        for gateway, filename in ((first, "first.tar"), (second, "second.tar")):
            gateway.declare({"size": 10, "filename": "shared.tar", "kind": "sif"})
            upload = gateway.declare({"size": 10, "filename": filename})
            upload.key = f"{filename:-<32}".replace(".", "_")
        yield [first, second]


def options_of(*urls: str) -> list[str]:
    """Return the options that name gateways."""
    return [option for url in urls for option in ("--gateway", url)]


def test_the_uploads_of_all_gateways(gateways: list[UploadGateway]) -> None:
    """Each upload is in the list once, the one that expires last first."""
    options = options_of(*(gateway.url for gateway in gateways))
    result = shiftergw(*options, "uploads", env=gateways[0].env)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines[:2]) == [
        "first_tar-----------------------",
        "second_tar----------------------",
    ]
    progress = "0 bytes of 10 bytes  until 1970-01-01T00:00:01"
    assert lines[2:] == [f"{'0' * 32} {progress} shared.tar (used by custom:app:1)"]
    rows = json.loads(shiftergw(*options, "uploads", "--json", env=gateways[0].env).stdout)
    assert [row["filename"] for row in rows][2:] == ["shared.tar"]


def test_a_gateway_that_is_away(gateways: list[UploadGateway]) -> None:
    """The uploads of the others are printed; the exit code says that some may be missing."""
    options = options_of(gateways[0].url, f"http://127.0.0.1:{free_port()}")
    result = shiftergw(*options, "uploads", env=gateways[0].env)
    assert result.returncode == 3
    assert len(result.stdout.splitlines()) == 2
    assert "cannot be reached" in result.stderr


def test_an_older_gateway() -> None:
    """The refusal of a gateway that lists no uploads is explained."""
    with UploadGateway(is_old=True).running() as gateway:
        result = shiftergw("uploads", env=gateway.env)
    assert (result.returncode, result.stdout) == (4, "")
    assert "older than this command" in result.stderr


def test_no_uploads() -> None:
    """That is said on standard error, and is a success; nothing heavy is loaded for it."""
    with UploadGateway().running() as gateway:
        result = shiftergw("uploads", env=gateway.env)
        packages, rooms = packages_of(modules_of("uploads", **gateway.env))
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "You have no uploads.\n"
    assert not packages & HEAVY
    assert not rooms & GATEWAY_ONLY


def test_removal(gateways: list[UploadGateway]) -> None:
    """An upload is removed from the gateway that has it; one that nobody has is an error."""
    options = options_of(*(gateway.url for gateway in gateways))
    ids = [gateway.uploads[1].key for gateway in gateways]
    command = [*options, "uploads", "--remove", ids[0], "--remove", ids[1]]
    result = shiftergw(*command, env=gateways[0].env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{upload_id} is removed." for upload_id in ids]
    assert [len(gateway.uploads) for gateway in gateways] == [1, 1]
    result = shiftergw(*command, env=gateways[0].env)
    assert result.returncode == 4
    assert "no such upload" in result.stderr


def test_one_of_several_removals_fails(gateways: list[UploadGateway]) -> None:
    """The others are done all the same; each is told, and the exit code says that one failed."""
    options = options_of(*(gateway.url for gateway in gateways))
    ids = ["c" * 32, *(gateway.uploads[1].key for gateway in gateways)]
    command = [*options, "uploads"]
    for upload_id in ids:
        command += ["--remove", upload_id]
    result = shiftergw(*command, env=gateways[0].env)
    assert result.returncode == 4
    assert result.stdout.splitlines() == [f"{upload_id} is removed." for upload_id in ids[1:]]
    assert f"{ids[0]} is not removed." in result.stderr.splitlines()
    assert [len(gateway.uploads) for gateway in gateways] == [1, 1]


def test_removal_while_a_gateway_is_away(gateways: list[UploadGateway]) -> None:
    """That nobody else has the upload is no answer: the silent gateway may have it."""
    port = free_port()
    options = options_of(*(gateway.url for gateway in gateways), f"http://127.0.0.1:{port}")
    result = shiftergw(*options, "uploads", "--remove", "c" * 32, env=gateways[0].env)
    assert (result.returncode, result.stdout) == (3, "")
    assert f"127.0.0.1:{port}" in result.stderr
    assert f"{'c' * 32} is not removed" in result.stderr
    upload_id = gateways[0].uploads[1].key
    result = shiftergw(*options, "uploads", "--remove", upload_id, env=gateways[0].env)
    assert (result.returncode, result.stdout) == (0, f"{upload_id} is removed.\n")


@pytest.mark.parametrize(
    "arguments", [["--remove", "../x"], ["--remove", ""], ["--remove", "a", "--json"]]
)
def test_misuse(arguments: list[str]) -> None:
    """No other text than an id becomes part of a URL."""
    result = CliRunner().invoke(main, ["uploads", *arguments])
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_foreign_text_is_printed_as_one_line() -> None:
    """Neither the name of a file nor that of an image can change the screen."""
    table = uploads_table([{**ROW, "filename": "a\nb\x1b", "images": ["x\ny"]}])
    assert table.count("\n") == 1
    assert "\x1b" not in table
    assert "1.5 GB of 3 GB" in table


@pytest.mark.parametrize(
    "change",
    [
        {"upload": "a/b"},
        {"upload": None},
        {"filename": 5},
        {"size": -1},
        {"offset": "5"},
        {"expires": None},
        {"expires": 1e300},
        {"images": "app:1"},
        {"images": [5]},
    ],
)
def test_invalid_answers(change: dict[str, Any]) -> None:
    """Rows of another form are no list of uploads; unknown members are ignored."""
    assert parse_uploads({"list": [{**ROW, "more": 1}]})[0]["upload"] == ROW["upload"]
    with pytest.raises(InvalidAnswer):
        parse_uploads({"list": [ROW | change]})
