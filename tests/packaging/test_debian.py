"""The Debian package has the right files with the right owners and modes, and its scripts."""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from shiftergw import __version__
from tests.packaging import CHECKOUT
from tests.packaging.thin_package import EPOCH, PYTHON, SCRIPTS

SITE = f"usr/lib/shiftergw/lib/{PYTHON}/site-packages"


@pytest.fixture(scope="module")
def archive(package: Path) -> tarfile.TarFile:
    """Return the files of the package."""
    content = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE
    ).stdout
    return tarfile.open(fileobj=BytesIO(content))


def text_of(archive: tarfile.TarFile, name: str) -> str:
    """Return the text of a file of a package, by its path without the first slash."""
    file = archive.extractfile(f"./{name}")
    assert file is not None
    return file.read().decode()


def test_the_fields_name_version_and_dependencies(package: Path) -> None:
    """A preliminary version precedes the final one, and the interpreter is that of the build."""
    fields = subprocess.run(
        ["dpkg-deb", "--field", package], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    version = __version__.replace(".dev", "~dev")
    assert package.name.startswith(f"shiftergw_{version}-7_")
    assert f"Version: {version}-7\n" in fields
    assert "Maintainer: Ann Other <ann@example.com>\n" in fields
    assert re.search(
        rf"^Depends: {PYTHON}, libc6 \(>= 2\.17\), .*squashfs-tools", fields, re.MULTILINE
    )


def test_every_file_belongs_to_root_and_is_written_by_root_alone(
    archive: tarfile.TarFile,
) -> None:
    """Files are readable for all, whatever the umask of the build, and have one time."""
    for member in archive:
        assert (member.uid, member.gid) == (0, 0), member.name
        assert member.mtime <= EPOCH, member.name
        if not member.issym():
            assert stat.S_IMODE(member.mode) in ({0o755} if member.isdir() else {0o644, 0o755})


def test_no_file_lies_where_a_site_writes(archive: tarfile.TarFile) -> None:
    """An upgrade replaces no configuration: `/etc/shiftergw` is empty in the package."""
    names = {member.name.removeprefix("./") for member in archive if not member.isdir()}
    assert {name.split("/")[0] for name in names} == {"usr"}
    assert "./etc/shiftergw" in archive.getnames()


def test_commands_run_in_the_environment_of_the_package(archive: tarfile.TarFile) -> None:
    """Users' commands ignore `PYTHONPATH`; no command of a library gets into the package."""
    commands = {"celery", "shiftergw", "shiftergw-pyxis", "twist", "twistd"}
    home = "./usr/lib/shiftergw"
    names = archive.getnames()
    programs = {name.rpartition("/")[2] for name in names if name.startswith(f"{home}/bin/")}
    assert programs == commands | {"python", "python3"}
    for command in commands:
        isolation = " -I" if command.startswith("shiftergw") else ""
        line = text_of(archive, f"usr/lib/shiftergw/bin/{command}").partition("\n")[0]
        assert line == f"#!/usr/lib/shiftergw/bin/python{isolation}"
    for command in ("shiftergw", "shiftergw-pyxis"):
        target = archive.getmember(f"./usr/bin/{command}").linkname
        assert target == f"../lib/shiftergw/bin/{command}"
    assert archive.getmember(f"{home}/bin/python").linkname.endswith(f"/bin/{PYTHON}")


def test_units_run_the_programs_of_the_package(archive: tarfile.TarFile) -> None:
    """Apart from the path of the program, the units are those of `conf/`."""
    for unit in ("shiftergw.service", "shiftergw-worker.service"):
        text = text_of(archive, f"usr/lib/systemd/system/{unit}")
        (program,) = re.findall(r"^ExecStart=/(\S+)", text, re.MULTILINE)
        assert f"./{program}" in archive.getnames()
        sample = (CHECKOUT / "conf" / unit).read_text()
        assert text == sample.replace("/opt/shiftergw/", "/usr/lib/shiftergw/")


def test_the_first_start_has_nothing_to_write(archive: tarfile.TarFile) -> None:
    """Twisted's cache of plug-ins is newer than they, and compiled files fit their sources."""
    plugins = f"./{SITE}/twisted/plugins"
    plugin = archive.getmember(f"{plugins}/shiftergw_plugin.py")
    assert archive.getmember(f"{plugins}/dropin.cache").mtime > plugin.mtime
    name = f"{plugins}/__pycache__/shiftergw_plugin.{sys.implementation.cache_tag}.pyc"
    compiled_file = archive.extractfile(name)
    assert compiled_file is not None
    # PEP 552: the magic number, flags (0: by time), then time and size of the source.
    header = struct.unpack("<4sIII", compiled_file.read(16))
    assert header[1:] == (0, plugin.mtime, plugin.size)


def test_no_path_of_the_build_is_in_the_package(package: Path, archive: tarfile.TarFile) -> None:
    """Neither the temporary directory nor the place of the wheel appears in a file."""
    for member in archive:
        if member.isfile() and not member.name.endswith("/thin.pth"):
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            assert b"/tmp" not in content or "/doc/" in member.name, member.name
            assert bytes(package.parent) not in content
    assert "direct_url" not in text_of(archive, f"{SITE}/shiftergw-{__version__}.dist-info/RECORD")


def test_shells_and_people_find_what_they_look_for(archive: tarfile.TarFile) -> None:
    """Completion, manual pages, the manual, the samples that it links to, and the licenses."""
    completions = {
        "bash-completion/completions/shiftergw": "COMP_LINE",
        "zsh/vendor-completions/_shiftergw": "#compdef shiftergw",
        "fish/vendor_completions.d/shiftergw.fish": "complete",
    }
    for name, word in completions.items():
        assert word in text_of(archive, f"usr/share/{name}")
    pages = {name for name in archive.getnames() if name.startswith("./usr/share/man/man1/")}
    assert {
        f"./usr/share/man/man1/shiftergw{command}.1.gz" for command in ("", "-pull", "-pyxis")
    } <= pages
    documents = "usr/share/doc/shiftergw"
    assert text_of(archive, f"{documents}/docs/running.md").startswith("# Running a gateway")
    assert archive.getmember(f"./{documents}/conf").linkname == "../../shiftergw"
    assert "Platforms" in text_of(archive, "usr/share/shiftergw/local.json")
    assert text_of(archive, f"{documents}/libraries.txt") == f"shiftergw=={__version__}\n"
    assert f"shiftergw {__version__}: " in text_of(archive, f"{documents}/copyright")


@pytest.mark.parametrize("script", ["build", "../install"])
def test_a_wrong_use_writes_nothing(tmp_path: Path, script: str) -> None:
    """Without a directory the usage is printed; a directory with files is left alone."""
    usage = subprocess.run([SCRIPTS / script], capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "DIRECTORY [WHEEL]" in usage.stderr
    if script == "../install":
        (tmp_path / "file").touch()
        result = subprocess.run(
            [SCRIPTS / script, tmp_path], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (1, f"shiftergw: {tmp_path} is not empty\n")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("version", "warns"), [("1.0-1", True), ("2.0-1", False), ("3.0", False)])
def test_only_a_downgrade_is_explained(tmp_path: Path, version: str, warns: bool) -> None:
    """Before an older version is unpacked, the user reads what becomes of the database."""
    query = tmp_path / "dpkg-query"
    query.write_text("#!/bin/sh\nprintf 2.0-1\n")
    query.chmod(0o755)
    result = subprocess.run(
        ["sh", SCRIPTS / "prerm", "upgrade", version],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("going back from 2.0-1 to 1.0-1" in result.stderr) is warns
    assert ("backup of /var/lib/shiftergw" in result.stderr) is warns
