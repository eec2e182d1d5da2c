"""Uploads by the command line, as a process, against a gateway that fails on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli.answers import InvalidAnswer, UploadState, parse_declaration, parse_upload
from shiftergw.cli.blocking import value_of
from shiftergw.cli.directory_tar import SourceChanged
from shiftergw.cli.exits import NoGateway, RequestRefused, WrongOffset
from shiftergw.cli.main import main
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.cli.upload import SILENCE_LIMIT, SMALLEST_CHUNK, upload
from shiftergw.cli.upload_source import FileBytes, UploadSource
from tests.cli.clients import both_clients
from tests.cli.command import ENVIRONMENT, PROGRAM, shiftergw
from tests.cli.test_upload_source import layout
from tests.cli.upload_gateway import READY, Fault, UploadGateway
from tests.images import entry, tar_of
from tests.patience import patient
from tests.web.fakes import IMAGE_ID

MIB = 1 << 20
CONTENT = tar_of([entry("image", os.urandom(256 * 1024) * 13)])[: 3 * MIB + 3]
"""The first 3 MiB and some bytes of an archive."""


@pytest.fixture
def gateway() -> Iterator[UploadGateway]:
    """Return a gateway that takes chunks of 1 MiB."""
    with UploadGateway(chunk=MIB).running() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file to upload."""
    path = tmp_path / "image.tar"
    path.write_bytes(CONTENT)
    return path


def run(
    gateway: UploadGateway, *arguments: str, stdin: bytes = b"", **variables: str
) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, output and standard error."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env={**ENVIRONMENT, **gateway.env, **variables},
        input=stdin,
        capture_output=True,
        timeout=patient(60),
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


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
    assert errors.splitlines()[2:] == ["CONVERSION: Converting", "It is no image.", "Look at it."]
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
    """It is refused by its first bytes, as a worker would; of a pipe no more is read."""
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


# What goes wrong.


@pytest.mark.parametrize("fault", [Fault(), Fault(keep=1000), Fault(keep=7, status=503)])
def test_a_fault_in_the_middle(gateway: UploadGateway, file: Path, fault: Fault) -> None:
    """After a broken connection, or an error, the client asks for the offset and continues."""
    gateway.faults = [Fault(keep=MIB, status=502), fault]
    code, _, errors = run(gateway, "pull", str(file), "mine")
    assert code == 0, errors
    assert "Still trying." in errors
    assert bytes(gateway.uploads[0].content) == CONTENT
    assert gateway.bytes_received == len(CONTENT)


def test_a_restart_before_the_pull(gateway: UploadGateway, file: Path) -> None:
    """A gateway that is away for a moment after the last chunk is asked again."""
    gateway.pull_faults = [Fault(), Fault(status=503)]
    code, out, _ = run(gateway, "pull", str(file), "mine")
    assert (code, out) == (0, f"{IMAGE_ID}\n")
    assert len(gateway.uploads) == 1


def test_an_upload_that_is_gone(gateway: UploadGateway, file: Path) -> None:
    """An upload that the gateway has removed meanwhile is declared again, and sent as a whole."""
    gateway.faults = [Fault(keep=MIB, status=404)]
    code, _, errors = run(gateway, "pull", str(file), "mine")
    assert code == 0, errors
    assert bytes(gateway.uploads[-1].content) == CONTENT


def test_a_later_run_goes_on(gateway: UploadGateway, file: Path) -> None:
    """A later run does not send bytes of an earlier run again, whatever their chunks."""
    declaration = {
        "size": len(CONTENT),
        "sha256": sha256(CONTENT).hexdigest(),
        "kind": "",
        "filename": "image.tar",
    }
    gateway.declare(declaration).content += CONTENT[:1_500_000]
    assert run(gateway, "pull", str(file), "mine")[0] == 0
    assert gateway.bytes_received == len(CONTENT) - 1_500_000
    assert bytes(gateway.uploads[0].content) == CONTENT


@pytest.mark.parametrize(("status", "code"), [(413, 2), (403, 4), (429, 3)])
def test_a_refused_declaration(gateway: UploadGateway, file: Path, status: int, code: int) -> None:
    """The gateway's message is shown at once; no byte is stored."""
    gateway.declare_faults = [Fault(status=status)]
    result = run(gateway, "pull", str(file), "mine")
    assert result[0] == code
    assert "It is not possible now." in result[2]
    assert gateway.chunks == []


@pytest.mark.parametrize(
    ("source", "status", "code"), [("file", 413, 2), ("file", 0, 3), ("-", 403, 4)]
)
def test_an_upload_that_will_be_refused(
    gateway: UploadGateway, file: Path, source: str, status: int, code: int
) -> None:
    """The gateway is asked before any byte is read: nothing is hashed, copied or declared."""
    gateway.check_faults = [Fault(status=status)]
    image = str(file) if source == "file" else source
    result = run(gateway, "pull", image, "mine", stdin=CONTENT)
    assert result[0] == code
    assert len(result[2].splitlines()) == 1
    assert len(gateway.requests) == 1


def test_a_gateway_that_cannot_check(gateway: UploadGateway, file: Path) -> None:
    """A gateway of an earlier version refuses the question, and takes the upload."""
    gateway.is_old = True
    code, out, errors = run(gateway, "pull", str(file), "mine")
    assert (code, out) == (0, f"{IMAGE_ID}\n"), errors
    assert "sha256" not in errors


def test_systems_that_refuse_an_upload(gateway: UploadGateway, file: Path) -> None:
    """The file is read if one system accepts it; otherwise the reason of each is shown."""
    arguments = ["pull", "--system", "one,two", str(file), "mine"]
    gateway.check_faults = [Fault(status=403), Fault(status=413)]
    code, out, errors = run(gateway, *arguments)
    assert (code, out) == (2, "")
    lines = errors.removeprefix("Error: ").splitlines()
    assert lines == [f"{system}: It is not possible now." for system in ("one", "two")]
    gateway.check_faults = [Fault(status=403)]
    code, out, errors = run(gateway, *arguments)
    assert (code, len(out.splitlines())) == (0, 2), errors


def test_interrupted_upload(gateway: UploadGateway, tmp_path: Path) -> None:
    """After Ctrl-C the command says how to resume; the next run sends only missing bytes."""
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(b"hsqs")
        file.truncate(100 * MIB)
    with subprocess.Popen(
        [*PROGRAM, "pull", str(path), "mine"],
        env={**ENVIRONMENT, **gateway.env},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Hashing large.tar\n"
        assert process.stderr.readline() == "Uploading large.tar\n"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "The same command goes on from here" in errors
    assert "Traceback" not in errors
    code, _, errors = run(gateway, "pull", str(path), "mine")
    assert code == 0, errors
    assert len(gateway.uploads[0].content) == 100 * MIB
    assert gateway.bytes_received == 100 * MIB


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

    def say(self, text: str) -> None:
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
