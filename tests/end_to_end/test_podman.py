"""Images that podman saves, in each of its forms, by the command line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cli.command import ENVIRONMENT, PROGRAM, shiftergw
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.trees import unsquash

LAYERS = [
    tar_of([entry("etc"), entry("etc/motd", b"hello"), entry("etc/old", b"old")]),
    tar_of([entry("etc/.wh.old", b""), entry("etc/release", b"two")]),
]


class Podman:
    """Runs podman with a storage of its own, and has two images in it."""

    def __init__(self, root: Path, run: Path) -> None:
        """Load the images `localhost/app:1` of two layers, and `localhost/base:1` of the first.

        Podman refuses a `--runroot` of more than 50 characters, so `run` is a short path.
        """
        self._options = [
            *["--root", str(root / "storage"), "--runroot", str(run)],
            *["--tmpdir", str(root / "tmp"), "--storage-driver", "vfs", "--events-backend", "none"],
        ]
        for name, layers in (("app", LAYERS), ("base", LAYERS[:1])):
            oci_layout(root / name, layers)
            image_id = self.run("pull", "--quiet", f"oci:{root / name}").decode().strip()
            self.run("tag", image_id, f"localhost/{name}:1")

    def arguments(self, *command: str) -> list[str]:
        """Return the command line of a command."""
        return [need("podman"), *self._options, *command]

    def run(self, *command: str) -> bytes:
        """Return the output of a command; show what it said if it fails."""
        done = subprocess.run(self.arguments(*command), check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Return podman with images."""
    need("mksquashfs")
    with TemporaryDirectory(prefix="podman-", dir="/tmp") as run:
        yield Podman(tmp_path_factory.mktemp("podman"), Path(run))


def check_files(image: Path) -> None:
    """Compare a converted file with the layers."""
    root = unsquash(image, image.parent / "files")
    assert {path.name: path.read_bytes() for path in (root / "etc").iterdir()} == {
        "motd": b"hello",
        "release": b"two",
    }


@pytest.mark.parametrize(
    ("form", "prefix"),
    [
        ("docker-archive", "docker-archive:"),
        ("docker-archive", ""),
        ("oci-archive", "oci-archive:"),
        ("oci-archive", ""),
        ("oci-dir", "oci:"),
        ("docker-dir", "dir:"),
    ],
)
def test_each_form(podman: Podman, form: str, prefix: str, tmp_path: Path) -> None:
    """`podman save --format` makes a source that is converted, named by form or by path."""
    podman.run(
        "save", "--quiet", "--format", form, "-o", str(tmp_path / "saved"), "localhost/app:1"
    )
    result = shiftergw("convert", f"{prefix}{tmp_path / 'saved'}", str(tmp_path / "out.squashfs"))
    assert result.returncode == 0, result.stderr
    check_files(tmp_path / "out.squashfs")


def test_one_of_several_images(podman: Podman, tmp_path: Path) -> None:
    """An archive of two images needs a name, and the error lists both names."""
    archive, out = tmp_path / "two.tar", tmp_path / "out.squashfs"
    podman.run(
        *["save", "--quiet", "--multi-image-archive", "-o", str(archive)],
        *["localhost/app:1", "localhost/base:1"],
    )
    result = shiftergw("convert", str(archive), str(out))
    assert result.returncode != 0
    assert "localhost/app:1" in result.stderr
    assert "localhost/base:1" in result.stderr
    result = shiftergw("convert", f"docker-archive:{archive}:localhost/app:1", str(out))
    assert result.returncode == 0, result.stderr
    check_files(out)


def test_a_pipe(podman: Podman, tmp_path: Path) -> None:
    """`podman save NAME | shiftergw convert - OUT` needs no file."""
    out = tmp_path / "out.squashfs"
    with subprocess.Popen(
        podman.arguments("save", "--quiet", "localhost/app:1"),
        stdout=subprocess.PIPE,
    ) as saving:
        result = subprocess.run(
            [*PROGRAM, "convert", "-", str(out)],
            stdin=saving.stdout,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (saving.returncode, result.returncode) == (0, 0), result.stderr
    check_files(out)
