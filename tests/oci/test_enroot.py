"""The files for enroot: run by a shell, as enroot does, and read as enroot reads them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from shiftergw.model.images import ImageConfig
from shiftergw.oci.enroot import enroot_layer

EMPTY = "/tmp"


def files_of(config: ImageConfig) -> dict[str, str]:
    """Return the files of the layer, by their path."""
    content = enroot_layer(config)
    assert content is not None
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        assert {(member.mode, member.uid, member.gid, member.mtime) for member in members} == {
            (0o644, 0, 0, 0)
        }
        return {member.name: _content_of(archive, member) for member in members}


def _content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None
    return file.read().decode()


def run(config: ImageConfig, tmp_path: Path, *arguments: str, local: str = "") -> list[str]:
    """Run `/etc/rc` with arguments, and `local` as `/etc/rc.local`; return the lines printed."""
    script, rc_local = tmp_path / "rc", tmp_path / "rc.local"
    text = files_of(config)["etc/rc"].replace("/etc/rc.local", str(rc_local))
    script.write_text(text)
    rc_local.write_text(local)
    done = subprocess.run(
        ["/bin/sh", str(script), *arguments], capture_output=True, check=True, text=True
    )
    return done.stdout.splitlines()


def test_a_configuration_that_says_nothing() -> None:
    """An image without a configuration keeps its own files, which enroot may have made."""
    assert enroot_layer(ImageConfig(labels={"a": "b"}, created=5)) is None


def test_the_same_bytes_every_time() -> None:
    """The layer depends on nothing but the configuration."""
    config = ImageConfig(env=("A=1",), cmd=("sh",))
    assert enroot_layer(config) == enroot_layer(config)
    assert list(files_of(config)) == ["etc/environment", "etc/fstab", "etc/rc", "etc/rc.local"]
    assert files_of(config)["etc/rc.local"] == ""


def test_the_environment() -> None:
    """Variables that a line can hold are kept unchanged; enroot's own are left out."""
    env = ("PATH=/bin:/opt/x y", "EMPTY=", "Q='a'$b", "NL=1\nX=2", "NUL=\0", "BAD-NAME=1", "=", "X")
    files = files_of(ImageConfig(env=(*env, "ENROOT_ROOTFS=/", "É=1", "U=é")))
    assert files["etc/environment"].splitlines() == [
        "PATH=/bin:/opt/x y", "EMPTY=", "Q='a'$b", "U=é"
    ]  # fmt: skip


def test_volumes() -> None:
    """A volume is mounted on itself; a path that fstab would have to escape is left out."""
    volumes = (
        "/data",
        "/var/lib/db",
        "/a b",
        "/../etc",
        "/x/..",
        "relative",
        "/a\\040",
        "/",
        "/$HOME",
    )
    files = files_of(ImageConfig(volumes=volumes))
    assert [line.split()[:2] for line in files["etc/fstab"].splitlines()] == [
        ["${ENROOT_ROOTFS}/data", "/data"],
        ["${ENROOT_ROOTFS}/var/lib/db", "/var/lib/db"],
    ]


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "arguments", "words"),
    [
        (("printf", "%s\\n"), ("a b", "$HOME", "it's"), (), ["a b", "$HOME", "it's"]),
        (("printf", "%s\\n"), ("a",), ("x", "y z"), ["x", "y z"]),
        ((), ("echo", "`id`", "a\nb"), (), ["`id` a", "b"]),
        ((), ("echo", "a"), ("echo", "-n;", "b"), ["-n; b"]),
        ((), ("bad\0",), ("echo", "c"), ["c"]),
    ],
)
def test_the_command(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    arguments: tuple[str, ...],
    words: list[str],
    tmp_path: Path,
) -> None:
    """Arguments take the place of `Cmd`; no word of an image is a word of the shell."""
    config = ImageConfig(entrypoint=entrypoint, cmd=cmd, workdir=EMPTY)
    assert run(config, tmp_path, *arguments) == words


@pytest.mark.parametrize("form", ["{}", "{}/made/it's"])
def test_the_working_directory(form: str, tmp_path: Path) -> None:
    """The command runs in the working directory, which is made if it is missing."""
    workdir = form.format(tmp_path)
    for text in (workdir, workdir.lstrip("/")):  # Docker takes both for the same
        assert run(ImageConfig(workdir=text, cmd=("pwd",)), tmp_path) == [workdir]


def test_pyxis_runs_the_command_of_a_job(tmp_path: Path) -> None:
    """What pyxis writes into `/etc/rc.local` runs instead of the entrypoint."""
    config = ImageConfig(entrypoint=("false",), workdir=EMPTY)
    assert run(config, tmp_path, "echo", "job", local='exec "$@"\n') == ["job"]


def test_a_shell_without_any_command() -> None:
    """An image without a command starts a shell."""
    assert "set -- /bin/sh\n" in files_of(ImageConfig(env=("A=1",)))["etc/rc"]
