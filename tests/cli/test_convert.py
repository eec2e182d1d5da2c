"""convert: from a registry, a file, a directory or a pipe to a file; as a process and in parts."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shiftergw.cli.convert import default_document, squash_options
from shiftergw.cli.exits import Misuse
from shiftergw.cli.main import main
from shiftergw.config import Config
from shiftergw.model.build_options import SquashOptions
from shiftergw.model.images import Digest
from shiftergw.model.references import ImageReference
from tests.cli.command import ENVIRONMENT, PROGRAM, run, shiftergw, start
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.sources.saved_images import config_bytes, docker_1_10


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[DockerRegistry, Digest]]:
    """Return a registry that has `a/b:1`."""
    need("mksquashfs")
    root = tmp_path_factory.mktemp("registry")
    tar = tar_of([entry("etc"), entry("etc/motd", b"hello\n"), entry("dev/null", b"")])
    digest = oci_layout(root / "layout", [tar])
    with DockerRegistry(root / "registry") as registry:
        registry.push(root / "layout", "a/b:1")
        yield registry, digest


def test_convert(source: tuple[DockerRegistry, Digest], tmp_path: Path) -> None:
    """The file is complete, one JSON object describes it, and no other file is left."""
    registry, digest = source
    out = tmp_path / "b.squashfs"
    result = shiftergw(
        *["convert", "--plain-http", "--compressor", "zstd", "--level", "3"],
        *[f"docker://{registry.host}/a/b:1", str(out)],
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["id"] == digest.hex
    assert document["bytes"] == out.stat().st_size
    assert document["seconds"]["total"] > 0
    assert list(tmp_path.iterdir()) == [out]
    assert "Getting manifest" in result.stderr.splitlines()
    listing = subprocess.run(
        [need("unsquashfs"), "-cat", str(out), "etc/motd"], capture_output=True, check=True
    )
    assert listing.stdout == b"hello\n"


def test_convert_with_a_configuration(
    source: tuple[DockerRegistry, Digest], tmp_path: Path
) -> None:
    """Locations, system and directories are the configuration's; layers stay in its cache."""
    registry, digest = source
    out = tmp_path / "out" / "b.squashfs"
    out.parent.mkdir()
    config = tmp_path / "imagemanager.json"
    document: dict[str, Any] = default_document(
        ImageReference.parse(f"{registry.host}/x"), tmp_path, plain_http=True
    )
    document["DefaultImageLocation"] = registry.host
    document["Listn"] = "tcp:1"
    config.write_text(json.dumps(document))
    first = shiftergw("convert", "--config", str(config), "a/b:1", str(out))
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["id"] == digest.hex
    assert "Listn" in first.stderr
    assert list(out.parent.iterdir()) == [out]
    # The site keeps a second copy, because the owner of OUT may write into it.
    assert out.stat().st_nlink == 1
    wrong = shiftergw("convert", "--config", str(config), "--system", "s", "a/b:1", str(out))
    assert (wrong.returncode, wrong.stdout) == (2, "")


@pytest.mark.slow
def test_a_registry_that_asks_to_wait(tmp_path: Path) -> None:
    """A conversion waits, reports how long, and goes on; too long a wait is an error."""
    need("mksquashfs")
    with FaultyRegistry() as registry:
        registry.add("a/b", make_image([tar_of([entry("etc")])]))
        registry.rate_limits = {"a/b": ("4", 1)}
        out = tmp_path / "b.squashfs"
        result = shiftergw("convert", "--plain-http", f"{registry.host}/a/b:1", str(out))
        assert result.returncode == 0, result.stderr
        assert re.search(r"waiting [4-6](\.\d)? seconds for .* \(rate limit\)", result.stderr)
        assert out.exists()
        registry.rate_limits = {"a/b": ("7200", 1)}
        result = shiftergw("convert", "--plain-http", f"{registry.host}/a/b:1", str(out))
        assert result.returncode == 1
        assert "asks to wait 2 hours; at most 15 minutes are waited" in result.stderr


def test_an_unknown_image(source: tuple[DockerRegistry, Digest], tmp_path: Path) -> None:
    """A failure is printed with its remedy, exits with 1, and leaves no file."""
    registry, _ = source
    result = shiftergw("convert", "--plain-http", f"{registry.host}/no:1", str(tmp_path / "o"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


LAYERS = [tar_of([entry("etc"), entry("etc/motd", b"hello\n")])]
ARCHIVE = tar_of(docker_1_10(LAYERS, config_bytes(LAYERS), ["team/app:1"]))


def test_sources_that_are_no_registry(tmp_path: Path) -> None:
    """A layout, an archive and standard input give the same files; nothing else is left."""
    need("mksquashfs")
    digest = oci_layout(tmp_path / "layout", LAYERS)
    (tmp_path / "saved.tar").write_bytes(ARCHIVE)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "b.squashfs"
    ids, sums = [], set()
    for source, data in (
        (f"oci:{tmp_path}/layout:latest", b""),
        (f"docker-archive:{tmp_path}/saved.tar:team/app:1", b""),
        (f"{tmp_path}/saved.tar", b""),
        ("-", gzip.compress(ARCHIVE)),
    ):
        result = run("convert", source, str(out), stdin=data)
        assert result.returncode == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["bytes"] == out.stat().st_size
        assert document["seconds"]["total"] > 0
        ids.append(document["id"])
        sums.add(hashlib.sha256(out.read_bytes()).hexdigest())
        assert list(out.parent.iterdir()) == [out]
    assert ids[0] == digest.hex
    assert len(set(ids[1:])) == 1
    assert len(sums) == 1
    assert b"Unpacking the archive" in result.stderr


def test_a_file_without_an_image(tmp_path: Path) -> None:
    """A file that cannot be converted is explained, exits with 1, and leaves nothing."""
    (tmp_path / "rootfs.tar").write_bytes(LAYERS[0])
    for source, why in (("rootfs.tar", "docker export"), ("absent.tar", "does not exist")):
        result = shiftergw("convert", f"{tmp_path}/{source}", str(tmp_path / "o"))
        assert (result.returncode, result.stdout) == (1, "")
        assert why in result.stderr
        assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rootfs.tar"]


def test_a_file_that_is_taken_for_a_name(tmp_path: Path) -> None:
    """If a name in a registry is that of a file here, the command says how to name the file."""
    (tmp_path / "image").write_bytes(ARCHIVE)
    result = shiftergw("convert", "--plain-http", "image", "o", cwd=tmp_path)
    assert result.returncode == 2
    assert "for the file write ./image" in result.stderr


def test_a_pipe_that_is_interrupted(tmp_path: Path) -> None:
    """A signal ends the wait for standard input, and no file is left."""
    with start(
        *("convert", "-", str(tmp_path / "o")),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Reading standard input\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "Interrupted.\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def policy_file(path: Path, **transports: Any) -> Path:
    """Write a policy that rejects all but these scopes; return its path."""
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": transports}))
    return path


ACCEPT = [{"type": "insecureAcceptAnything"}]


def test_a_policy_of_the_command_line(
    source: tuple[DockerRegistry, Digest], tmp_path: Path
) -> None:
    """No layer of a refused image is fetched; message and exit code are those of a refusal."""
    registry, _ = source
    requests = registry.blob_requests()
    image = f"{registry.host}/a/b:1"
    policy = policy_file(tmp_path / "policy.json", docker={"reg.example.org": ACCEPT})
    command = ["convert", "--plain-http", "--policy", str(policy)]
    result = shiftergw(*command, image, str(tmp_path / "o"))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"The policy of local does not accept {image}, by reject (default)" in result.stderr
    assert registry.blob_requests() == requests + 1, "the configuration alone"
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


def test_the_policy_of_a_system(tmp_path: Path) -> None:
    """With a configuration that of the system counts, unless the command line names another."""
    (tmp_path / "saved.tar").write_bytes(ARCHIVE)
    document: dict[str, Any] = default_document(None, tmp_path, plain_http=False)
    refusing = policy_file(tmp_path / "refusing.json", sif={"": ACCEPT})
    document["Platforms"]["local"]["policy_file"] = str(refusing)
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document))
    accepting = policy_file(tmp_path / "accepting.json", **{"docker-archive": {"": ACCEPT}})
    command = ["convert", "--config", str(config), f"{tmp_path}/saved.tar", str(tmp_path / "o")]
    result = shiftergw(*command)
    assert (result.returncode, result.stdout) == (1, "")
    assert "does not accept an image of the transport docker-archive" in result.stderr
    result = shiftergw(*command, "--policy", str(accepting))
    assert result.returncode == 0, result.stderr
    requirement = "insecureAcceptAnything (transport docker-archive)"
    assert json.loads(result.stdout)["policy"]["requirement"] == requirement


def test_a_policy_that_cannot_be_read(tmp_path: Path) -> None:
    """A policy that cannot be read is a fault of the command line; no image is converted."""
    (tmp_path / "saved.tar").write_bytes(ARCHIVE)
    path = str(tmp_path / "absent.json")
    result = shiftergw("convert", "--policy", path, f"{tmp_path}/saved.tar", f"{tmp_path}/o")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{path} cannot be read" in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up(number: signal.Signals, tmp_path: Path) -> None:
    """After any signal no file is left, and the exit code is that of shells."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with start(
            *("convert", "--plain-http", f"{host}/a:1", str(tmp_path / "o")),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "Getting manifest\n"
            assert len(list(tmp_path.iterdir())) == 1
            process.send_signal(number)
            errors = process.stderr.read()
    assert process.returncode == 128 + number
    assert errors == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["UPPER:1", "o"],
        ["oci:", "o"],
        ["docker-daemon:ubuntu:1", "o"],
        ["--plain-http", "./image.tar", "o"],
        ["--plain-http", "ubuntu:1", "o"],
        ["ubuntu:1", "none/such/directory/o"],
        ["--config", "/nonexistent.json", "ubuntu:1", "o"],
        ["--compressor", "lz4", "--level", "1", "ubuntu:1", "o"],
    ],
)
def test_misuse(arguments: list[str], tmp_path: Path) -> None:
    """An invalid command line exits with 2 at once and leaves no file."""
    arguments = [*arguments[:-1], str(tmp_path / arguments[-1])]
    result = CliRunner().invoke(main, ["convert", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to a device", "long name"])
def test_special_files_are_not_replaced(kind: str, tmp_path: Path) -> None:
    """A device, such as `/dev/null`, and a directory are not replaced."""
    out = tmp_path / ("o" * 201 if kind == "long name" else "o")
    if kind == "directory":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "link to a device":
        out.symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["convert", "--plain-http", "127.0.0.1:1/a:1", str(out)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {'The name' if kind == 'long name' else out}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "hard link", "standard input", "file of a directory"])
def test_the_source_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """A conversion of a file to itself would cost its user the image."""
    source = out = tmp_path / "image.tar"
    if kind == "file of a directory":
        source = tmp_path / "layout"
        oci_layout(source, [tar_of([entry("etc")])])
        out = source / "index.json"
    else:
        source.write_bytes(tar_of([entry("etc")]))
    if kind == "hard link":
        out = tmp_path / "o"
        out.hardlink_to(source)
    content = out.read_bytes()
    if kind == "standard input":
        command = [*PROGRAM, "convert", "-", str(out)]
        with out.open() as stdin:
            done = subprocess.run(
                command, env=ENVIRONMENT, stdin=stdin, capture_output=True, text=True, check=False
            )
        code, errors = done.returncode, done.stderr
    else:
        result = CliRunner().invoke(main, ["convert", str(source), str(out)])
        code, errors = result.exit_code, result.stderr
    assert code == 2
    assert "is SOURCE itself, or a part of it" in errors
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("image", "plain_http", "location", "url"),
    [
        ("ubuntu:1", False, "registry-1.docker.io", "https://registry-1.docker.io"),
        ("team/ubuntu:1", False, "registry-1.docker.io", "https://registry-1.docker.io"),
        ("docker.io/library/ubuntu", False, "registry-1.docker.io", "https://registry-1.docker.io"),
        ("quay.io/a/b:1", False, "quay.io", "https://quay.io"),
        ("localhost/a:1", True, "localhost", "http://localhost"),
        ("host:5000/a:1", True, "host:5000", "http://host:5000"),
    ],
)
def test_the_registry_of_an_image(
    image: str, plain_http: bool, location: str, url: str, tmp_path: Path
) -> None:
    """Without a configuration images come from Docker Hub, or the registry in their name."""
    reference = ImageReference.parse(image)
    document = default_document(reference, tmp_path, plain_http=plain_http)
    configuration = Config.from_document(document, base=tmp_path, environ={})
    assert configuration.warnings == ()
    assert configuration.config.locate(reference)[0] == location
    assert configuration.config.locations[location].url == url


def test_options_of_the_command_line() -> None:
    """A compressor has its own default level; other levels must be valid for it."""
    configuration = SquashOptions("gzip", 5, memory="1G")
    assert squash_options(configuration, None, None) == configuration
    assert squash_options(configuration, "gzip", 9) == SquashOptions("gzip", 9, memory="1G")
    assert squash_options(configuration, "zstd", None) == SquashOptions("zstd", None, memory="1G")
    assert squash_options(SquashOptions("zstd", 3), "gzip", None) == SquashOptions("gzip", 5)
    assert squash_options(SquashOptions("zstd", 3), None, 22).level == 22
    with pytest.raises(Misuse, match="1 to 9"):
        squash_options(configuration, None, 10)
    with pytest.raises(Misuse, match="no levels"):
        squash_options(configuration, "xz", 1)


def test_the_result_is_reproducible(source: tuple[DockerRegistry, Digest], tmp_path: Path) -> None:
    """Two conversions of an image have the same bytes; the second replaces the first."""
    registry, _ = source
    out = tmp_path / "o"
    sums = set()
    for options in (["--plain-http", f"{registry.host}/a/b:1"], [f"http://{registry.host}/a/b:1"]):
        result = shiftergw("convert", *options, str(out))
        assert result.returncode == 0, result.stderr
        sums.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(sums) == 1
