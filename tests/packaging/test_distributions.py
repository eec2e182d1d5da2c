"""The source distribution has what a packager needs, and what is built from it runs.

With `SHIFTERGW_LONG=1` the libraries are installed, too, from the package index.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from shiftergw import __version__
from tests.matrices import LONG
from tests.packaging import CHECKOUT, FOR_OPERATORS
from tests.patience import patient


@pytest.fixture(scope="module")
def environment(source_distribution: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh environment into which the source distribution is installed.

    pip makes a wheel of it and installs that. In the short form the libraries are those of the
    tests. A `.pth` file there is not followed, so its editable install of this checkout is not
    used.
    """
    root = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    options = []
    if not LONG:
        (site,) = root.glob("lib/python3*/site-packages")
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        options = ["--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", root / "bin" / "python", "install", "-q",
         "--no-compile", *options, f"{source_distribution}[celery,direct]"],
        check=True,
        timeout=patient(600),
    )  # fmt: skip
    return root


def output_of(directory: Path, *command: str | Path) -> str:
    """Run a command of an environment in a directory; return its standard output."""
    result = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=patient(60)
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_source_distribution_is_complete(source_distribution: Path) -> None:
    """It has every file of `conf/`, the license, the manual and the tests, with their modes."""
    with tarfile.open(source_distribution) as archive:
        members = {
            member.name.removeprefix(f"shiftergw-{__version__}/"): member for member in archive
        }
    paths = {
        path.relative_to(CHECKOUT).as_posix(): path
        for pattern in ("*.md", "LICENSE", ".ci/*", ".github/**/*", "conf/**/*", "docs/**/*",
                        "tests/**/*", "twisted/**/*.py", "shiftergw/**/*")
        for path in CHECKOUT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert paths.keys() - members.keys() == set()
    assert members.keys() - paths.keys() == {".gitignore", "PKG-INFO", "pyproject.toml"}
    for name, path in paths.items():
        expected_mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        assert members[name].mode & 0o777 == expected_mode, name


def test_an_installed_wheel_has_its_commands(environment: Path, tmp_path: Path) -> None:
    """The commands run from a wheel, whose package is not that of the checkout."""
    text = output_of(tmp_path, environment / "bin" / "shiftergw", "--help")
    assert "pull" in text
    assert "release" in output_of(tmp_path, environment / "bin" / "shiftergw-pyxis", "--help")
    where = output_of(
        tmp_path,
        environment / "bin" / "python",
        "-c",
        "import shiftergw; print(shiftergw.__file__)",
    )
    assert Path(where).is_relative_to(environment)


@pytest.mark.parametrize("program", ["twistd", "twist"])
def test_an_installed_wheel_brings_the_plugin(
    environment: Path, tmp_path: Path, program: str
) -> None:
    """`twistd` and `twist` find the service of a wheel, and its options."""
    run = (
        "import sys; from twisted.scripts.twistd import run; run()"
        if program == "twistd"
        else "import sys; from twisted.application.twist._twist import Twist; Twist.main(sys.argv)"
    )
    text = output_of(tmp_path, environment / "bin" / "python", "-c", run, "shiftergw", "--help")
    assert "--config=" in text


def test_an_installed_wheel_has_the_files_for_operators(environment: Path) -> None:
    """Samples, units and files for monitoring are those of the checkout."""
    for name in FOR_OPERATORS:
        installed_file = environment / "share" / "shiftergw" / name
        assert installed_file.read_bytes() == (CHECKOUT / "conf" / name).read_bytes()
