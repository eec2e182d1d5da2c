"""The RPM spec can be read, is of this version, and names every file that is installed."""

from __future__ import annotations

import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from shiftergw import __version__
from tests.packaging import CHECKOUT
from tests.parts import need

SPEC = CHECKOUT / "conf" / "packaging" / "rpm" / "shiftergw.spec"


@pytest.fixture(scope="module")
def spec() -> str:
    """Return the spec with its macros expanded."""
    return subprocess.run(
        [need("rpmspec"), "--parse", SPEC], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_the_spec_is_of_this_version(spec: str) -> None:
    """Its version sorts as that of the program, and its source is the source distribution."""
    assert f"\nVersion:        {__version__.replace('.dev', '~dev')}\n" in spec
    assert f"\nSource0:        shiftergw-{__version__}.tar.gz\n" in spec


def files_of(spec: str) -> list[str]:
    """Return the patterns of the files that belong to the package."""
    section = spec.partition("\n%files\n")[2].partition("\n%changelog")[0]
    return [line.split()[-1] for line in section.splitlines() if line]


def test_the_spec_names_every_installed_file(spec: str, package: Path) -> None:
    """A file that the spec does not name would end the build, and so does the reverse."""
    listing = subprocess.run(
        ["dpkg-deb", "--contents", package], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    names = [line.split()[5].removeprefix(".") for line in listing.splitlines()]
    files = [
        name.replace("/zsh/vendor-completions/", "/zsh/site-functions/")
        for name in names
        if not name.endswith("/")
    ]
    patterns = files_of(spec)
    made_by_the_spec = {"/etc/shiftergw", "/etc/shiftergw/imagemanager.json", "/var/lib/shiftergw"}
    for file in files:
        assert any(fnmatch(file, pattern) or file.startswith(f"{pattern}/") for pattern in patterns)
    for pattern in set(patterns) - made_by_the_spec:
        assert any(fnmatch(file, pattern) or file.startswith(f"{pattern}/") for file in files)


def test_secrets_are_private(spec: str) -> None:
    """The configuration is the site's: upgrades leave it alone, and no other user reads it."""
    assert (
        "%config(noreplace) %attr(0640, root, shiftergw) /etc/shiftergw/imagemanager.json" in spec
    )
    assert "%attr(0700, shiftergw, shiftergw) /var/lib/shiftergw" in spec
