"""Uploads that are interrupted, refused, or resumed by a later run."""

from __future__ import annotations

import signal
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cli.command import start
from tests.cli.upload_command import CONTENT, MIB, run
from tests.cli.upload_gateway import Fault, UploadGateway
from tests.web.fakes import IMAGE_ID

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
    with start(
        *("pull", str(path), "mine"),
        env=gateway.env,
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
