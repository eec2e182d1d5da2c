"""The oldest versions of the TLS libraries that `pyproject.toml` allows.

    python -m tests.oldest      print the requirements of an environment that has them

`conf/setup.sh` creates that environment, and `tests/test_oldest_versions.py` runs tests in it. So
the lower bounds are tested versions.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"

OLDEST = frozenset(
    {"twisted", "pyopenssl", "service-identity", "cryptography", "treq", "txmongo", "celery"}
)
"""Packages pinned to their lower bounds; such versions of other packages lack newer Pythons."""

TOOLS = frozenset(
    {"pytest", "pytest-twisted", "pytest-timeout", "coverage", "hypothesis", "jsonschema"}
)

_REQUIREMENT = re.compile(r"([A-Za-z0-9-]+)(\[[a-z,]+\])?>=([0-9.]+)")


def requirements(project: Path = PROJECT) -> Iterator[str]:
    """Yield the requirements in the syntax of pip."""
    document = tomllib.loads(project.read_text())["project"]
    extras = document["optional-dependencies"]
    for line in [*document["dependencies"], *extras["celery"]]:
        match = _REQUIREMENT.match(line)
        if match is not None and match[1].lower() in OLDEST:
            yield f"{match[1]}{match[2] or ''}=={match[3]}"
        else:
            yield line
    for line in extras["test"]:
        match = _REQUIREMENT.match(line)
        if match is not None and match[1] in TOOLS:
            yield line


def pins(project: Path = PROJECT) -> dict[str, str]:
    """Return the pinned versions by the names of their packages."""
    lines = [line.partition("==") for line in requirements(project) if "==" in line]
    return {name.partition("[")[0].lower(): version for name, _, version in lines}


if __name__ == "__main__":
    print(*requirements(), sep="\n")  # noqa: T201 - the output of the program
