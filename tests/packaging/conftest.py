"""What several tests of packages share: the distributions of this checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from shiftergw import __version__
from tests.matrices import LONG
from tests.packaging import CHECKOUT, FOR_OPERATORS
from tests.packaging.thin_package import build
from tests.parts import need
from tests.patience import patient

collect_ignore = [] if LONG else ["test_debian_chroot.py", "test_rpm_build.py"]
"""Tests that take minutes; the first installs a Debian system from the package archive."""

_PLUGIN = "twisted/plugins/shiftergw_plugin.py"
_ENTRY_POINTS = """[console_scripts]
celery = celery.__main__:main
cftp = twisted.conch.scripts.cftp:run
shiftergw = shiftergw.cli.start:main
shiftergw-pyxis = shiftergw.cli.start:importer_main
twist = twisted.application.twist._twist:Twist.main
twistd = twisted.scripts.twistd:run
"""


@pytest.fixture(scope="session")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source distribution of this checkout."""
    directory = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=patient(60),
    )
    return directory / f"shiftergw-{__version__}.tar.gz"


@pytest.fixture(scope="session")
def thin_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that has commands, samples and plug-in of the real one, but no further code.

    The code is that of this checkout, and the libraries are those of the tests. Packaging a
    hundredth of the files takes little time.
    """
    name = f"shiftergw-{__version__}"
    wheel = tmp_path_factory.mktemp("wheel") / f"{name}-py3-none-any.whl"
    members = {
        "thin.pth": f"{CHECKOUT}\n{sysconfig.get_path('purelib')}\n",
        "shiftergw_thin.py": "",
        _PLUGIN: (CHECKOUT / _PLUGIN).read_text(),
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: shiftergw\n"
        f"Version: {__version__}\nProvides-Extra: celery\nProvides-Extra: direct\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-manylinux_2_17_x86_64\n",
        f"{name}.dist-info/entry_points.txt": _ENTRY_POINTS,
    } | {
        f"{name}.data/data/share/shiftergw/{file}": (CHECKOUT / "conf" / file).read_text()
        for file in FOR_OPERATORS
    }
    record = f"{name}.dist-info/RECORD"
    members[record] = "".join(f"{member},,\n" for member in [*members, record])
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return wheel


@pytest.fixture(scope="session")
def package(thin_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Debian package whose environment has a thin wheel."""
    need("dpkg-deb")
    return build(tmp_path_factory.mktemp("package"), thin_wheel)
