"""Build a Debian package quickly: with a wheel that has no code, and without network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.packaging import CHECKOUT
from tests.patience import patient

SCRIPTS = CHECKOUT / "conf" / "packaging" / "debian"
EPOCH = 1_600_000_000
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def build(directory: Path, wheel: Path) -> Path:
    """Build a package of a wheel without network; return its path."""
    result = subprocess.run(
        [SCRIPTS / "build", directory, wheel],
        env=os.environ
        | {
            "PYTHON": str(Path(sys.base_prefix) / "bin" / PYTHON),
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "SOURCE_DATE_EPOCH": str(EPOCH),
            "REVISION": "7",
            "DEBFULLNAME": "Ann Other",
            "DEBEMAIL": "ann@example.com",
            "DPKG_DEB_COMPRESSOR_TYPE": "none",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
        umask=0o077,  # the package must not depend on it
    )
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())
