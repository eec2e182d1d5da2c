"""`rpmbuild` makes a package of the source distribution.

Only with `SHIFTERGW_LONG=1`: the short form compares the spec with the installed files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.packaging.test_rpm import SPEC
from tests.packaging.thin_package import PYTHON
from tests.parts import need
from tests.patience import patient


def test_rpmbuild_accepts_spec_and_sources(
    source_distribution: Path, thin_wheel: Path, tmp_path: Path
) -> None:
    """The package has the program, a private configuration and a private directory."""
    python = Path("/usr/bin") / PYTHON
    subprocess.run(
        [need("rpmbuild"), "-bb", "--quiet", "--nodeps", SPEC,
         "--define", f"_sourcedir {source_distribution.parent}",
         "--define", f"_topdir {tmp_path}",
         "--define", f"python {python.name if python.exists() else sys.executable}",
         "--define", f"wheel {thin_wheel}"],
        env=os.environ | {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"},
        check=True,
        timeout=patient(120),
    )  # fmt: skip
    (package,) = tmp_path.glob("RPMS/*/*.rpm")
    query = "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]"
    listing = subprocess.run(
        ["rpm", "--query", "--package", f"--queryformat={query}", package],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert "-rw-r----- root shiftergw /etc/shiftergw/imagemanager.json\n" in listing
    assert "drwx------ shiftergw shiftergw /var/lib/shiftergw\n" in listing
    assert "-rwxr-xr-x root root /usr/lib/shiftergw/bin/twistd\n" in listing
