"""`shiftergw pull SOURCE NAME` with a running gateway: real archives, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Self

import pytest

from tests.cli import command
from tests.cli.command import ENVIRONMENT, PROGRAM
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.patience import patient
from tests.running_service import ALICE, BOB, SYSTEM, Service, until

LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}
"""No registry listens there: an image can come from nowhere but the client."""

LONG = os.environ.get("SHIFTERGW_LONG") == "1"
VICTIMS = [["client"] * 10, ["gateway"] * 10] if LONG else [["client", "gateway", "client"]]
"""What is killed at one point of an upload after the other, run by run."""

SIZE = (300 if LONG else 30) * 10**6
_PIECE = 10**7


def environment(url: str, user: str = ALICE) -> Mapping[str, str]:
    """Return the environment of a user's commands."""
    names = {"GATEWAY": url, "SYSTEM": SYSTEM, "CREDENTIAL": user}
    return {**ENVIRONMENT, **{f"SHIFTERGW_{name}": value for name, value in names.items()}}


def run(
    service: Service, *arguments: str, user: str = ALICE, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, output and standard error."""
    result = command.run(*arguments, env=environment(service.url, user), stdin=stdin, seconds=120)
    return result.returncode, result.stdout.decode().strip(), result.stderr.decode()


def skopeo_copy(source: str, target: str) -> None:
    """Copy an image by skopeo."""
    command = [need("skopeo"), "--insecure-policy", "copy", "--quiet", source, target]
    subprocess.run(command, check=True, capture_output=True, timeout=patient(60))


def noise_of(size: int) -> bytes:
    """Return random bytes, always the same ones for a size."""
    generator = random.Random(size)
    # Python makes no more than 256 MiB of them at once.
    pieces = [generator.randbytes(min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
    return b"".join(pieces)


def make_layout(path: Path, size: int = 100_000) -> str:
    """Make an OCI layout of two layers, one of which has random bytes; return its source."""
    noise = noise_of(size)
    layers = [
        tar_of([entry("etc"), entry("etc/motd", b"hello"), entry("etc/old", b"old")]),
        tar_of([entry("etc/.wh.old", b""), entry("data"), entry("data/noise", noise)]),
    ]
    oci_layout(path, layers, config={"Env": ["GREETING=hello"]})
    return f"oci:{path}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a gateway."""
    need("mksquashfs")
    with Service(tmp_path_factory.mktemp("gateway"), LOCATIONS) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the source of an OCI layout."""
    return make_layout(tmp_path_factory.mktemp("layout") / "image")


def file_in(image: Path, name: str) -> bytes:
    """Return the content of a file of a squashfs image."""
    command = [need("unsquashfs"), "-cat", str(image), name]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_the_same_command_again(service: Service, tmp_path: Path) -> None:
    """The same command sends and builds nothing, until the readers or the name change."""
    source = make_layout(tmp_path / "image", 60_000)
    spool = service.root / "state" / "uploads"
    first = run(service, "pull", source, "again:1", "--user", "2005")
    assert first[0] == 0, first[2]
    log = service.log_with("begins: ")
    code, image_id, errors = run(service, "pull", source, "again:1", "--user", "2005")
    assert (code, image_id) == first[:2], errors
    assert "is not sent: the image made of it is there already" in errors
    assert "Uploading" not in errors
    assert list(spool.iterdir()) == []
    assert "begins: " not in service.log.read_text()[len(log) :]
    for arguments in (["again:1"], ["again:2"]):
        code, image_id, errors = run(service, "pull", source, *arguments)
        assert (code, image_id) == first[:2], errors
        assert "Uploading" in errors
        assert "is not sent" not in errors


def test_an_archive_by_skopeo(service: Service, layout: str, tmp_path: Path) -> None:
    """A docker-archive becomes an image with its files, which no other user may see."""
    skopeo_copy(f"{layout}:latest", f"docker-archive:{tmp_path}/app.tar:team/app:1")
    code, image_id, errors = run(service, "pull", f"docker-archive:{tmp_path}/app.tar", "app:1")
    assert code == 0, errors
    image = service.images / f"{image_id}.squashfs"
    assert file_in(image, "etc/motd") == b"hello"
    assert len(file_in(image, "data/noise")) == 100_000
    listing = subprocess.run([need("unsquashfs"), "-l", image], capture_output=True, check=True)
    assert b"etc/old" not in listing.stdout
    assert run(service, "lookup", "custom:app:1")[:2] == (0, image_id)
    assert run(service, "lookup", "app:1")[0] == 4  # no image of a registry
    assert run(service, "lookup", "custom:app:1", user=BOB)[0] == 4
    # The same image, from a pipe, has the same id.
    content = (tmp_path / "app.tar").read_bytes()
    assert run(service, "pull", "-", "app:2", stdin=content)[:2] == (0, image_id)


def test_layouts_and_directories_of_skopeo(service: Service, layout: str, tmp_path: Path) -> None:
    """A layout and a directory of skopeo's have one id, under any name of theirs."""
    code, image_id, errors = run(service, "pull", "--public", f"{layout}:latest", "tree:1")
    assert code == 0, errors
    assert run(service, "lookup", "custom:tree:1", user=BOB)[:2] == (0, image_id)
    code, _, errors = run(service, "pull", f"{layout}:latest", "tree:1", user=BOB)
    assert (code, errors.count("\n")) == (4, 1), errors  # before anything is hashed
    assert "This name belongs to an image of another user." in errors
    skopeo_copy(f"{layout}:latest", f"dir:{tmp_path}/copy")
    code, out, errors = run(service, "pull", f"{tmp_path}/copy", "tree:2")
    assert (code, out) == (0, image_id), errors


def test_the_list_of_uploads(service: Service) -> None:
    """An upload that is not continued is listed for its user, and can be removed."""
    members = {"size": 10**6, "sha256": "ab" * 32, "kind": "sif", "filename": "app.sif"}
    body = json.dumps(members).encode()
    _, upload = service.ask(f"/api/upload/{SYSTEM}/", ALICE, "POST", body)
    code, out, errors = run(service, "uploads")
    assert code == 0, errors
    (line,) = [line for line in out.splitlines() if line.startswith(upload["upload"])]
    assert "0 bytes of 1 MB" in line
    assert line.endswith("app.sif")
    assert upload["upload"] not in run(service, "uploads", user=BOB)[1]
    assert run(service, "uploads", "--remove", upload["upload"], user=BOB)[0] == 4
    assert run(service, "uploads", "--remove", upload["upload"])[0] == 0
    assert service.get(f"/api/upload/{SYSTEM}/{upload['upload']}")[0] == 404


def test_import_of_a_delivered_image(service: Service, layout: str) -> None:
    """A squashfs file is built anew under a name of its own."""
    code, image_id, errors = run(service, "pull", layout, "first:1")
    assert code == 0, errors
    need("sqfs2tar")
    file = service.images / f"{image_id}.squashfs"
    code, out, errors = run(service, "import", "--user", "2002", str(file), "second:1")
    assert code == 0, errors
    assert file_in(service.images / f"{out}.squashfs", "etc/motd") == b"hello"
    assert run(service, "lookup", "custom:second:1", user=BOB)[:2] == (0, out)


def test_a_name_of_an_image_that_is_not_there(service: Service, layout: str) -> None:
    """A tag that the layout lacks is the fault of the command line: the error names the tags."""
    code, _, errors = run(service, "pull", f"{layout}:absent", "absent:1")
    assert code == 1
    assert "latest" in errors


class SlowLine:
    """A line to a port that passes `rate` bytes a second, and remembers the chunks on it.

    `count` is the number of bytes that clients have sent, `offsets` the offsets of their chunks.
    """

    def __init__(self, port: int, rate: float) -> None:
        """Listen on a free port."""
        self.count = 0
        self.offsets: list[int] = []
        self._rate = rate
        line = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
                    answers = threading.Thread(target=line._answer, args=(server, self.request))
                    answers.start()
                    line._pass(self.request, server)
                    answers.join()

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        """Begin to forward."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Accept no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        head = b""
        with suppress(OSError):
            while data := client.recv(65536):
                if len(head) < 1000:  # each request has a connection of its own
                    head += data[:1000]
                    match = re.match(rb"PUT \S*[?]offset=([0-9]+) HTTP", head)
                    if match is not None:
                        self.offsets.append(int(match[1]))
                        head += bytes(1000)
                self.count += len(data)
                server.sendall(data)
                time.sleep(len(data) / self._rate)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def wait_for_chunk(line: SlowLine, client: subprocess.Popen[str], point: float) -> None:
    """Wait until a client has sent a chunk more, and all clients `point` bytes.

    A client that was just started has to be known to the gateway before the next kill.
    """
    chunks = len(line.offsets)

    def is_sent() -> bool:
        assert client.poll() is None, client.communicate()
        return line.count >= point and len(line.offsets) > chunks

    until(is_sent, 120, f"byte {point:.0f}")


@pytest.mark.slow
@pytest.mark.parametrize("victims", VICTIMS, ids="-".join)
def test_kills_during_an_upload(tmp_path: Path, victims: Sequence[str]) -> None:
    """An upload survives kills of client and gateway: no confirmed chunk is sent again."""
    source = make_layout(tmp_path / "image", SIZE)
    # Far enough from one another and from the end that there is something to send after each.
    part = 0.7 * SIZE / len(victims)
    points = [part * (number + random.uniform(0.1, 0.9)) for number in range(len(victims))]
    service = Service(tmp_path / "site", LOCATIONS)
    with service, SlowLine(service.port, rate=20e6) as line:

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*PROGRAM, "pull", source, "mine:1"],
                env=environment(line.url),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        client = start()
        for victim, point in zip(victims, points, strict=True):
            wait_for_chunk(line, client, point)
            if victim == "gateway":
                service.stop(signal.SIGKILL)
                service.start()
            else:
                client.kill()
                client.communicate()
                client = start()
        image_id, errors = client.communicate(timeout=patient(120))
        assert client.returncode == 0, errors
        noise = file_in(service.images / f"{image_id.strip()}.squashfs", "data/noise")
        assert noise == noise_of(SIZE)
    offsets = line.offsets
    pairs = list(pairwise(offsets))
    assert all(after >= before for before, after in pairs), (points, offsets)
    assert sum(after == before for before, after in pairs) <= len(victims), (points, offsets)


def test_a_name_belongs_to_its_own_user(service: Service, tmp_path: Path) -> None:
    """A user who has uploaded the same image may not replace another user's name of it."""
    image = make_layout(tmp_path / "image", 2_000)
    next_image = make_layout(tmp_path / "next", 3_000)
    code, image_id, errors = run(service, "pull", image, "alices:1")
    assert code == 0, errors
    code, out, errors = run(service, "pull", image, "bobs:1", user=BOB)
    assert (code, out) == (0, image_id), errors
    code, out, errors = run(service, "pull", next_image, "bobs:1")
    assert code != 0, out
    assert "another user" in errors
    code, _, errors = run(service, "pull", next_image, "bobs:1", user=BOB)
    assert code == 0, errors
    assert run(service, "lookup", "custom:alices:1")[:2] == (0, image_id)
