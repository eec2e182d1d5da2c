"""Uploads by the command line, as a process, against a gateway that fails on demand."""

from __future__ import annotations

import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner

from shiftergw.cli.answers import InvalidAnswer, UploadState, parse_declaration, parse_upload
from shiftergw.cli.exits import WrongOffset
from shiftergw.cli.main import main
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from tests.cli.clients import both_clients
from tests.cli.command import shiftergw
from tests.cli.test_upload_source import layout
from tests.cli.upload_command import CONTENT, MIB, run
from tests.cli.upload_gateway import READY, UploadGateway
from tests.web.fakes import IMAGE_ID

# The way that works.


def test_a_file(gateway: UploadGateway, file: Path) -> None:
    """A file is declared, sent in chunks, and pulled; progress is on standard error."""
    code, out, errors = run(gateway, "pull", f"docker-archive:{file}:app:1", "mine:2")
    assert (code, out) == (0, f"{IMAGE_ID}\n"), errors
    (stored_upload,) = gateway.uploads
    assert bytes(stored_upload.content) == CONTENT
    assert stored_upload.declaration == {
        "size": len(CONTENT),
        "sha256": sha256(CONTENT).hexdigest(),
        "kind": "docker-archive",
        "filename": "image.tar",
    }
    assert gateway.checks == [{"name": "mine:2", "size": len(CONTENT)}]
    assert gateway.names == ["mine:2"]
    assert gateway.chunks == [(0, MIB), (MIB, MIB), (2 * MIB, MIB), (3 * MIB, 3)]
    assert gateway.bodies == [{"selector": "app:1", "upload": stored_upload.key}]
    assert gateway.requests[-1] == ("POST", "/api/pull/mycluster/custom/mine%3A2/")
    assert errors.splitlines() == ["Hashing image.tar", "Uploading image.tar"]
    assert gateway.accesses == [{"selector": "app:1"}]


def test_a_file_whose_image_is_ready(gateway: UploadGateway, file: Path) -> None:
    """No byte is sent, and nothing is pulled; the id is printed as after every pull."""
    gateway.ready = READY
    code, out, errors = run(gateway, "pull", "--public", f"docker-archive:{file}:app:1", "mine:2")
    assert (code, out) == (0, f"{IMAGE_ID}\n"), errors
    assert "image.tar is not sent: the image made of it is there already." in errors.splitlines()
    assert gateway.accesses == [{"selector": "app:1", "public": True}]
    assert (gateway.chunks, gateway.bodies, gateway.uploads) == ([], [], [])


@pytest.mark.parametrize("status", ["PENDING", "READY"])
def test_records_instead_of_an_upload(status: str) -> None:
    """Only a READY image with its id makes an upload unnecessary."""
    with pytest.raises(InvalidAnswer):
        parse_declaration({"status": status})
    assert parse_declaration({**READY, "upload": "a"}) == {**READY, "upload": "a"}


def test_the_work_is_shown(gateway: UploadGateway, file: Path) -> None:
    """Once the upload is complete the pull is polled as every other; a failure is explained."""
    working = {"status": "CONVERSION", "status_message": "Converting"}
    failure = {"status": "FAILURE", "cause": "It is no image.", "remedy": "Look at it."}
    gateway.pulls = [working, failure]
    code, _, errors = run(gateway, "pull", str(file), "mine")
    assert code == 1
    assert errors.splitlines()[2:] == ["Converting", "It is no image.", "Look at it."]
    assert gateway.bodies[0] == gateway.bodies[1]


def test_a_directory(gateway: UploadGateway, tmp_path: Path) -> None:
    """A directory arrives as a tar archive, and nothing is written beside it."""
    path = layout(tmp_path / "layout")
    before = sorted(path.rglob("*"))
    code, _, errors = run(gateway, "pull", f"oci:{path}", "mine")
    assert code == 0, errors
    (stored_upload,) = gateway.uploads
    assert stored_upload.declaration["kind"] == "oci-archive"
    (tmp_path / "stored_upload.tar").write_bytes(stored_upload.content)
    with tarfile.open(tmp_path / "stored_upload.tar") as archive:
        assert "blobs/sha256/" + "a" * 64 in archive.getnames()
    assert sorted(path.rglob("*")) == before


def test_standard_input(gateway: UploadGateway) -> None:
    """The bytes of a pipe are sent, and another run with the same bytes sends nothing again."""
    code, _, errors = run(gateway, "pull", "-", "mine", stdin=CONTENT)
    assert code == 0, errors
    assert bytes(gateway.uploads[0].content) == CONTENT
    assert gateway.uploads[0].declaration["kind"] == ""
    assert gateway.checks == [{"name": "mine"}]
    assert errors.startswith("Copying standard input\nHashing standard input\n")
    assert run(gateway, "pull", "-", "mine", stdin=CONTENT)[0] == 0
    assert gateway.bytes_received == len(CONTENT)
    code, _, errors = run(gateway, "pull", "-", "mine")
    assert code == 2
    assert "Standard input is empty" in errors


def test_standard_input_beyond_the_limit(gateway: UploadGateway) -> None:
    """The command ends as soon as the gateway would refuse the file, and sends nothing."""
    gateway.limit = len(CONTENT) - 1
    code, _, errors = run(gateway, "pull", "-", "mine", stdin=CONTENT)
    assert code == 2
    assert "MB: the gateway takes no larger file (MaxUploadSize)" in errors
    assert gateway.uploads == []
    gateway.limit += 1
    assert run(gateway, "pull", "-", "mine", stdin=CONTENT)[0] == 0


def test_a_file_that_has_no_image(gateway: UploadGateway, file: Path) -> None:
    """The first bytes decide, as for a worker; no more is read of a pipe."""
    code, _, errors = run(gateway, "pull", f"sif:{file}", "mine")
    assert code == 1
    assert "The file is a tar archive, and not what its prefix sif: says." in errors
    for arguments, stdin in ((["pull", str(file)], b""), (["pull", "-"], b"PK\3\4" * 10_000)):
        file.write_bytes(b"PK\3\4")
        code, _, errors = run(gateway, *arguments, "mine", stdin=stdin)
        assert code == 1
        assert "it is a zip file" in errors
        assert "Hashing" not in errors
    assert gateway.uploads == []


def test_the_directory_of_standard_input(gateway: UploadGateway, tmp_path: Path) -> None:
    """`TMPDIR` is obeyed, or named in the error: the command goes nowhere else."""
    place = tmp_path / "absent"
    code, _, errors = run(gateway, "pull", "-", "mine", stdin=CONTENT, TMPDIR=str(place))
    assert code == 2
    assert f"cannot be copied to {place}: No such file or directory. Set TMPDIR" in errors
    assert gateway.requests == []


def test_import(gateway: UploadGateway, file: Path) -> None:
    """`import FILE NAME` is `pull squashfs:FILE NAME`."""
    file.write_bytes(b"hsqs" + CONTENT)
    code, out, errors = run(gateway, "import", str(file), "mine")
    assert (code, out) == (0, f"{IMAGE_ID}\n"), errors
    assert gateway.uploads[0].declaration["kind"] == "squashfs"
    assert gateway.requests[-1] == ("POST", "/api/pull/mycluster/custom/mine/")


@pytest.mark.parametrize(
    ("options", "members"),
    [
        (["--public"], {"public": True}),
        (["--user", "7,8", "--group", "9"], {"allowed_uids": "7,8", "allowed_gids": "9"}),
    ],
)
def test_readers(
    gateway: UploadGateway, file: Path, options: list[str], members: dict[str, Any]
) -> None:
    """The options name the image's readers; without options only the uploader may use it."""
    assert run(gateway, "pull", *options, str(file), "mine")[0] == 0
    assert gateway.bodies == [{**members, "selector": "", "upload": gateway.uploads[0].key}]


def test_several_systems(gateway: UploadGateway, file: Path) -> None:
    """The file is read once for its digest, and each system gets an upload of its own."""
    code, out, errors = run(gateway, "pull", "--system", "one,two", str(file), "mine")
    assert code == 0, errors
    assert out == f"one: {IMAGE_ID}\ntwo: {IMAGE_ID}\n"
    assert errors.count("Hashing") == 1
    declarations = [path for method, path in gateway.requests if path.startswith("/api/upload/")]
    assert {"/api/upload/one/", "/api/upload/two/"} <= set(declarations)


@pytest.mark.parametrize("name", ["a.tar", "b.tar"])
def test_several_gateways(tmp_path: Path, name: str) -> None:
    """A later run asks the gateway first that has the bytes of the earlier one."""
    path = tmp_path / name
    path.write_bytes(b"hsqs" + name.encode() * 1000)
    with UploadGateway().running() as first, UploadGateway().running() as second:
        for urls in ([first.url, second.url], [second.url, first.url]):
            options = [option for url in urls for option in ("--gateway", url)]
            code, _, errors = run(first, *options, "pull", str(path), "mine")
            assert code == 0, errors
        assert sorted([len(first.uploads), len(second.uploads)]) == [0, 1]
        assert len(first.bodies) + len(second.bodies) == 2


@both_clients
@pytest_twisted.ensureDeferred
async def test_bytes_are_sent_as_they_are(with_client: Any) -> None:
    """Both HTTP clients send a chunk without any encoding, and read the offset of a conflict."""
    content = bytes(range(256)) * 10

    async def calls(remote: Remote) -> None:
        state = await remote.declare({"size": 5000, "sha256": "ab" * 32})
        assert isinstance(state, UploadState)
        for offset in (0, 0):
            await remote.ask_last(
                "PUT", ["upload", state.key], parse_upload, body=content, query=f"?offset={offset}"
            )

    with UploadGateway().running() as gateway:
        with pytest.raises(WrongOffset) as caught:
            await with_client(Settings([gateway.url], ["mycluster"], "good:ann"), calls)
        assert caught.value.offset == len(content)
        assert bytes(gateway.uploads[0].content) == content


@pytest.mark.parametrize(
    "arguments",
    [
        ["ubuntu:24.04", "mine"],
        ["-"],
        ["./image.tar"],
        ["--public", "ubuntu:24.04"],
        ["./image.tar", "docker:mine"],
        ["./image.tar", "id:mine"],
        ["./image.tar", ""],
        ["./image.tar", "team/mine"],
        ["./image.tar", "Mine"],
        ["./image.tar", f"mine@sha256:{64 * '0'}"],
        ["--public", "--user", "7", "./image.tar", "mine"],
        ["docker-archive:", "mine"],
    ],
)
def test_misuse(arguments: list[str]) -> None:
    """An invalid command line is refused before any request."""
    result = CliRunner().invoke(main, ["pull", *arguments])
    assert result.exit_code == 2, result.output
    assert "Error: " in result.output


def test_a_missing_file(gateway: UploadGateway, tmp_path: Path) -> None:
    """A file that is not there is named, and the gateway is not asked."""
    code, _, errors = run(gateway, "pull", f"{tmp_path}/none.tar", "mine")
    assert code == 2
    assert "none.tar cannot be read: No such file or directory." in errors
    assert gateway.requests == []


def test_help_names_the_sources() -> None:
    """`pull --help` lists every form of a source."""
    text = "".join(CliRunner().invoke(main, ["pull", "--help"]).output.split())
    for form in ("oci:DIR", "oci-archive:FILE", "docker-archive:FILE", "dir:DIR", "sif:FILE"):
        assert form in text
    assert shiftergw("import", "--help").returncode == 0
